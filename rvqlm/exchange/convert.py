"""Token directories to lhotse Shar or .npy files, and whatever holds tokens to token directories.

An export is a folder with ``codec.json`` (codec, format, splits), a copy of ``audio_cuts.jsonl.gz``
where the tokens had one, and the tokens: for Shar one folder per split (``all`` where there are no
splits), for .npy ``manifest.jsonl`` and ``codes/``. Importing it gives the token directory again:
ids, order, codes, supervisions, custom fields, codec and splits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs, resolve_codec, write_codec
from rvqlm.exchange.directory import Written, new_folder, read_token_dir, splits_of, write_token_dir
from rvqlm.exchange.npy import write_npy
from rvqlm.exchange.shar import write_shar
from rvqlm.exchange.source import open_tokens

Progress = Callable[[Iterable], Iterable]


def export_tokens(
    manifest_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    format: str,
    split: str | None = None,
    shard_size: int = 1000,
    progress: Progress = lambda items: items,
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
    inputs: Sequence[str],
    out_dir: str,
    args: CodecArgs,
    order: str | None = None,
    progress: Progress = lambda items: items,
) -> tuple[Written, CodecInfo]:
    """Make a token directory of an export, a Shar folder or .npy files.

    Args:
        inputs: see `open_tokens`.
        out_dir: the token directory.
        args: the codec, where no ``codec.json`` says it; given although one does, the two must
            agree.
        order: of .npy arrays without a manifest: "tk" for (T, K), "kt" for (K, T).
        progress: wraps the items.

    Raises `UserError` for what is none of these, is damaged, or of another codec than `args`.
    """
    args.check()
    source = open_tokens(inputs, order=order)
    if source.kind in ("token directory", "token cuts"):
        raise UserError(f"{inputs[0]} holds tokens of rvqlm already; there is nothing to import")
    if source.kind == ".npq files":
        raise UserError(f"{inputs[0]}: NPQ files are imported by rvqlm npq import")
    info = source.info
    if info is None or args.given:
        levels = source.peek().codes.shape[1]
        named = resolve_codec(args, levels, str(inputs[0]))
        if info is not None:
            info.require_same(named, str(inputs[0]), f"--codec {args.codec or args.codec_name}")
        info = info or named
    origin = {"path": [str(i) for i in inputs[:3]], "format": source.kind}
    return write_token_dir(out_dir, info, progress(source.items), origin, source.audio), info
