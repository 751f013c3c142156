"""NPQ files to a token directory and back.

NPQ has no ids, text or true length: ids come from the paths, and a recording is taken to be as long
as its frames. What it has and tokens do not is kept in the cuts: ``custom["orig_kbps"]``, and
``custom["vocab_sizes"]`` where levels differ in size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.exchange.codec import (
    CodecArgs,
    codec_beside,
    rates_fit,
    resolve_codec,
    write_codec,
)
from rvqlm.exchange.directory import (
    Skipped,
    TokenItem,
    Written,
    new_folder,
    write_token_dir,
)
from rvqlm.exchange.names import path_for_id
from rvqlm.exchange.npq import read_npq, write_npq
from rvqlm.exchange.npq_layouts import NpqHeader, parse_layout


def import_npq(
    files: list[tuple[str, str]],
    out_dir: str,
    args: CodecArgs,
    layout: str | None = None,
    progress: Callable[[Iterable], Iterable] = lambda files: files,
) -> tuple[Written, CodecInfo]:
    """Make a token directory of NPQ files.

    Args:
        files: (id, path) of each.
        out_dir: the token directory.
        args: the codec, where no ``codec.json`` beside the files says it; its number of levels
            follows from the files.
        layout: see `npq_layouts.parse_layout`; None finds out for each file.
        progress: wraps the files.

    Files that cannot be read go to ``skipped.jsonl`` with the reason, as do those without frames.
    Raises `UserError` where none is usable, and for files of different codecs.
    """
    if layout is not None:
        parse_layout(layout)
    first = _first_readable(files, layout)
    info = _codec_of(first, args)

    def items() -> Iterator[TokenItem | Skipped]:
        for id, path in progress(files):
            try:
                header, codes = read_npq(path, layout)
            except UserError as e:
                yield Skipped(id, path, str(e).removeprefix(f"{path}: "))
                continue
            _require_same_shape(path, header, *first)
            if header.num_frames == 0:
                yield Skipped(id, path, "no frames: a recording without sound has no tokens")
                continue
            yield TokenItem(id, codes, custom=_custom(header, info))

    source = {"path": [p for _, p in files[:3]], "items": len(files), "format": "npq"}
    return write_token_dir(out_dir, info, items(), source), info


def _first_readable(files: list[tuple[str, str]], layout: str | None) -> tuple[str, NpqHeader]:
    """Path and header of the first file with frames, or of the first that can be read."""
    fallback, reason = None, ""
    for _, path in files:
        try:
            header = read_npq(path, layout)[0]
        except UserError as e:
            reason = reason or str(e)
            continue
        if header.num_frames:
            return path, header
        fallback = fallback or (path, header)
    if fallback is None:
        raise UserError(f"not one of {len(files)} NPQ files can be read; the first, {reason}")
    return fallback


def _codec_of(first: tuple[str, NpqHeader], args: CodecArgs) -> CodecInfo:
    path, header = first
    size = max(header.vocab_sizes) if header.vocab_sizes else None
    info = codec_beside(path)
    if info is None or args.given:
        named = resolve_codec(args, header.num_codebooks, path, header.token_rate, size)
        if info is not None:
            info.require_same(named, f"codec.json beside {path}", "the codec given")
        info = info or named
    if info.num_codebooks != header.num_codebooks or (size or 0) > info.codebook_size:
        raise UserError(
            f"{path}: {header.num_codebooks} levels of {size} codes, codec {info.name} has "
            f"{info.num_codebooks} of {info.codebook_size}: another codec made these tokens"
        )
    if not rates_fit(header.token_rate, float(info.frame_rate), header.num_frames):
        raise UserError(
            f"{path}: {header.token_rate:g} frames per second, codec {info.name} has "
            f"{float(info.frame_rate):g}: another codec made these tokens; give that one"
        )
    return info


def _require_same_shape(path: str, header: NpqHeader, other: str, expected: NpqHeader) -> None:
    """Refuse files of different codecs; rates measured from T / seconds may differ a little."""
    mine = (header.num_codebooks, header.vocab_sizes)
    theirs = (expected.num_codebooks, expected.vocab_sizes)
    if mine != theirs or not rates_fit(header.token_rate, expected.token_rate, header.num_frames):
        raise UserError(
            f"{path} (K={mine[0]}, vocabularies {_sizes(mine[1])}, {header.token_rate:g} frames/s) "
            f"and {other} (K={theirs[0]}, vocabularies {_sizes(theirs[1])}, "
            f"{expected.token_rate:g} frames/s) are of different codecs; import them apart"
        )


def _sizes(sizes: tuple[int, ...] | None) -> str:
    if sizes is None:
        return "not stated"
    return str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"


def _custom(header: NpqHeader, info: CodecInfo) -> dict:
    custom: dict = {"num_samples": info.num_samples(header.num_frames)}
    if header.orig_kbps:
        custom["orig_kbps"] = header.orig_kbps
    if header.vocab_sizes and set(header.vocab_sizes) != {info.codebook_size}:
        custom["vocab_sizes"] = list(header.vocab_sizes)
    return custom


def export_npq(
    items: Iterable[TokenItem],
    info: CodecInfo,
    out_dir: str | os.PathLike,
    dtype: str | None = None,
    drop_scales: bool = False,
) -> tuple[int, int]:
    """Write ``ID.npq`` for every item below `out_dir`, and ``codec.json``; returns (files, frames).

    Args:
        items: of a token directory.
        info: their codec.
        out_dir: a new folder.
        dtype: uint8, uint16 or uint32; None takes the narrowest that holds the codebooks.
        drop_scales: write codes whose codec also stores scales, without them.

    Raises `UserError` for tokens with scales, of which NPQ can keep none, and for a dtype that is
    too narrow.
    """
    if dtype is not None and info.codebook_size > 1 << (8 * np.dtype(dtype).itemsize):
        raise UserError(
            f"--dtype {dtype}: codec {info.name} has {info.codebook_size} codes; choose a wider one"
        )
    count = frames = 0
    with new_folder(out_dir) as folder:
        for item in items:
            if item.custom.get("scales") is not None and not drop_scales:
                raise UserError(
                    f"cut {item.id!r}: codec {info.name} stores a loudness scale for every second, "
                    "and NPQ has no place for them; export as shar or npy (rvqlm export), or give "
                    "--drop-scales to lose them"
                )
            path = path_for_id(Path(folder), item.id, ".npq")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npq(
                path,
                item.codes,
                float(info.frame_rate),
                item.custom.get("vocab_sizes") or info.codebook_size,
                float(item.custom.get("orig_kbps") or 0.0),
                dtype,
            )
            count, frames = count + 1, frames + len(item.codes)
        write_codec(folder / "codec.json", info, format="npq")
    return count, frames
