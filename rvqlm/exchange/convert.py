"""Exports of token directories, and imports that make token directories of whatever holds tokens.

An export as Shar or .npy is a folder with ``codec.json`` (codec, format, splits), a copy of
``audio_cuts.jsonl.gz`` where the tokens had one, and the tokens: for Shar one folder per split
(``all`` where there are no splits), for .npy ``manifest.jsonl`` and ``codes/``. Importing it gives
the token directory again: ids, order, codes, supervisions, custom fields, codec and splits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar, splits_of
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs, codec_of, write_codec
from rvqlm.exchange.directory import Written, new_folder, read_token_dir, write_token_dir
from rvqlm.exchange.items import Skipped, TokenItem, TokenSource
from rvqlm.exchange.names import new_path
from rvqlm.exchange.npq import SUFFIX, write_npq
from rvqlm.exchange.npy import write_npy
from rvqlm.exchange.shar import write_shar


def export_tokens(
    manifest_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    format: str,
    split: str | None = None,
    shard_size: int = 1000,
) -> tuple[int, list[str]]:
    """Write a token directory as ``shar`` or ``npy``; returns (cuts, splits).

    Args:
        manifest_dir: the token directory.
        out_dir: a new folder.
        format: "shar" or "npy".
        split: only this one, or "all" cuts without regard to splits; None: each there is, or all
            cuts of a directory without splits.
        shard_size: cuts per file of Shar.

    Raises `UserError`, leaving nothing, for what is damaged or cannot be written.
    """
    info = CodecInfo.from_dict(read_sidecar(manifest_dir)["codec"])
    there = splits_of(manifest_dir)
    if split == "all" and "all" not in there:
        splits: list[str | None] = [None]
    else:
        splits = [split] if split else [*there] or [None]
    names = [s for s in splits if s is not None]
    audio = Path(manifest_dir) / "audio_cuts.jsonl.gz"
    with new_folder(out_dir) as folder:
        if format == "npy":
            items = bar(read_token_dir(manifest_dir, splits), "export")
            count = write_npy(folder, items, info)
        else:
            count = 0
            for name in splits:
                items = bar(read_token_dir(manifest_dir, [name]), name or "export")
                count += write_shar(folder / (name or "all"), items, info, shard_size)
        if audio.exists():
            shutil.copyfile(audio, folder / audio.name)
        write_codec(folder / "codec.json", info, format=format, splits=names)
    return count, names


def export_npq(
    items: Iterable[TokenItem],
    info: CodecInfo,
    out_dir: str | os.PathLike,
    dtype: str | None = None,
    drop_scales: bool = False,
) -> tuple[int, int]:
    """Write ``ID.npq`` for every item below `out_dir`, and ``codec.json``; returns (files, frames).

    NPQ has no ids, text or true length: read again, ids come from the paths, and a recording is
    taken to be as long as its frames.

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
            path = new_path(folder, item.id, SUFFIX)
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


def import_tokens(source: TokenSource, out_dir: str, args: CodecArgs) -> tuple[Written, CodecInfo]:
    """Make a token directory of an export, a Shar folder, .npy or .npq files.

    Args:
        source: of `open_tokens`.
        out_dir: the token directory.
        args: the codec, where no ``codec.json`` says it; given although one does, the two must
            agree.

    What cannot be read goes to ``skipped.jsonl`` with the reason, as does what has no frames.
    Raises `UserError` for tokens of rvqlm, for damaged ones, and for those of another codec.
    """
    if source.kind in ("token directory", "token cuts"):
        raise UserError(f"{source.where} holds tokens of rvqlm already; there is nothing to import")
    info = codec_of(source, args)
    items = _completed(bar(source.items, "import", source.count), info)
    origin = {"path": [source.where], "format": source.kind}
    return write_token_dir(out_dir, info, items, origin, source.audio), info


def _completed(
    items: Iterable[TokenItem | Skipped], info: CodecInfo
) -> Iterator[TokenItem | Skipped]:
    """With what token cuts keep of an NPQ header beside its kbps: the length, and the vocabulary
    sizes where they are not the codec's."""
    for item in items:
        if isinstance(item, TokenItem) and item.vocab_sizes is not None:
            item.custom = {"num_samples": info.num_samples(len(item.codes)), **item.custom}
            if set(item.vocab_sizes) != {info.codebook_size}:
                item.custom["vocab_sizes"] = list(item.vocab_sizes)
        yield item
