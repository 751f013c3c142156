"""Token directories to lhotse Shar or .npy files, and whatever holds tokens to token directories.

An export is a folder with ``codec.json`` (codec, format, splits), a copy of ``audio_cuts.jsonl.gz``
where the tokens had one, and the tokens: for Shar one folder per split (``all`` where there are no
splits), for .npy ``manifest.jsonl`` and ``codes/``. Importing it gives the token directory again:
ids, order, codes, supervisions, custom fields, codec and splits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs, codec_of, write_codec
from rvqlm.exchange.directory import Written, new_folder, read_token_dir, splits_of, write_token_dir
from rvqlm.exchange.items import Progress, Skipped, TokenItem, TokenSource, no_progress
from rvqlm.exchange.npy import write_npy
from rvqlm.exchange.shar import write_shar


def export_tokens(
    manifest_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    format: str,
    split: str | None = None,
    shard_size: int = 1000,
    progress: Progress = no_progress,
) -> tuple[int, list[str]]:
    """Write a token directory as ``shar`` or ``npy``; returns (cuts, splits).

    Args:
        manifest_dir: the token directory.
        out_dir: a new folder.
        format: "shar" or "npy".
        split: only this one, or "all" cuts without regard to splits; None: each there is, or all
            cuts of a directory without splits.
        shard_size: cuts per file of Shar.
        progress: wraps the items.

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
            count = write_npy(folder, progress(read_token_dir(manifest_dir, splits)), info)
        else:
            count = 0
            for name in splits:
                items = progress(read_token_dir(manifest_dir, [name]))
                count += write_shar(folder / (name or "all"), items, info, shard_size)
        if audio.exists():
            shutil.copyfile(audio, folder / audio.name)
        write_codec(folder / "codec.json", info, format=format, splits=names)
    return count, names


def import_tokens(
    source: TokenSource, out_dir: str, args: CodecArgs, progress: Progress = no_progress
) -> tuple[Written, CodecInfo]:
    """Make a token directory of an export, a Shar folder, .npy or .npq files.

    Args:
        source: of `open_tokens` or `open_npq`.
        out_dir: the token directory.
        args: the codec, where no ``codec.json`` says it; given although one does, the two must
            agree.
        progress: wraps the items.

    What cannot be read goes to ``skipped.jsonl`` with the reason, as does what has no frames.
    Raises `UserError` for tokens of rvqlm, for damaged ones, and for those of another codec.
    """
    if source.kind in ("token directory", "token cuts"):
        raise UserError(f"{source.where} holds tokens of rvqlm already; there is nothing to import")
    info = codec_of(source, args)
    items = _completed(progress(source.items, total=source.count), info)
    origin = {"path": source.where, "format": source.kind}
    return write_token_dir(out_dir, info, items, origin, source.audio), info


def _completed(
    items: Iterable[TokenItem | Skipped], info: CodecInfo
) -> Iterator[TokenItem | Skipped]:
    """With what token cuts keep of an NPQ header."""
    for item in items:
        if isinstance(item, TokenItem) and item.vocab_sizes is not None:
            item.custom = {"num_samples": info.num_samples(len(item.codes)), **item.custom}
            if set(item.vocab_sizes) != {info.codebook_size}:
                item.custom["vocab_sizes"] = list(item.vocab_sizes)
        yield item
