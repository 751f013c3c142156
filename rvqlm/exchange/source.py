"""Whatever holds tokens, opened as a stream of items: the one door of import and decode.

A token directory, a manifest of token cuts, an export of `rvqlm export` or `rvqlm npq export`, a
lhotse Shar folder, .npy arrays or .npq files.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_manifest, read_sidecar
from rvqlm.errors import UserError
from rvqlm.exchange.codec import codec_beside, read_codec
from rvqlm.exchange.directory import (
    Skipped,
    TokenItem,
    read_items,
    read_token_dir,
    splits_of,
)
from rvqlm.exchange.names import find_files
from rvqlm.exchange.npq import read_npq
from rvqlm.exchange.npy import MANIFEST, read_npy, read_npy_manifest
from rvqlm.exchange.shar import read_shar, shar_files

MANIFESTS = (".jsonl", ".jsonl.gz")


@dataclass
class TokenSource:
    """Tokens from somewhere."""

    kind: str
    """"token directory", "token cuts", "shar", "npy", ".npy files" or ".npq files" """
    items: Iterator[TokenItem | Skipped]
    info: CodecInfo | None = None
    """None where nothing says it"""
    audio: Path | None = None
    """manifest of the audio cuts, where there is one"""
    count: int | None = None
    """of items, where known beforehand"""

    def peek(self) -> TokenItem:
        """The first item that has codes; `UserError` if none has."""
        before = []
        for item in self.items:
            before.append(item)
            if isinstance(item, TokenItem):
                self.items = itertools.chain(before, self.items)
                return item
        reason = f"; the first, {before[0].path}: {before[0].reason}" if before else ""
        raise UserError(f"no tokens in the input{reason}")


def open_tokens(
    inputs: Sequence[str | os.PathLike],
    split: str | None = None,
    order: str | None = None,
    layout: str | None = None,
) -> TokenSource:
    """Find out what the inputs are and open them.

    Args:
        inputs: one folder or manifest; or .npy or .npq files as folders, quoted globs and names.
        split: of a token directory or a Shar export; None: all cuts.
        order: of .npy files without a manifest, "tk" or "kt"; None is "tk".
        layout: of .npq files, see `npq_layouts`.

    Raises `UserError` for what holds no tokens, and for an option that the input has no use for.
    """
    source = _open_one(Path(inputs[0]), split) if len(inputs) == 1 else None
    if source is None:
        source = _open_files([os.fspath(i) for i in inputs], order or "tk", layout)
        if split is not None:
            raise UserError(f"--split {split}: {source.kind} have no splits")
    for flag, value, kind in (
        ("--order", order, ".npy files"),
        ("--layout", layout, ".npq files"),
    ):
        if value is not None and source.kind != kind:
            raise UserError(f"{flag} {value} is for {kind}; {inputs[0]} says its own")
    return source


def _open_one(path: Path, split: str | None) -> TokenSource | None:
    """An input that describes itself; None for what may be .npy or .npq files."""
    if path.name == "tokens.json" or (
        path.name == MANIFEST and (path.parent / "codec.json").is_file()
    ):
        path = path.parent
    if path.is_file() and path.name.endswith(MANIFESTS):
        if split is not None:
            raise UserError(f"--split {split} is for token directories; {path} is one manifest")
        return _open_manifest(path)
    if not path.is_dir():
        return None
    if (path / "tokens.json").exists():
        return _open_token_dir(path, split)
    info, fields = None, {}
    if (path / "codec.json").is_file():
        info, fields = read_codec(path / "codec.json")
    audio = path / "audio_cuts.jsonl.gz"
    audio = audio if audio.exists() else None
    if (path / MANIFEST).is_file():
        items = read_npy_manifest(path / MANIFEST)
        if split is not None:
            items = (item for item in items if item.split == split)
        return TokenSource("npy", items, info, audio)
    if shar_files(path)[0]:
        if split is not None:
            raise UserError(f"--split {split}: {path} is one Shar folder")
        return TokenSource("shar", read_shar(path), info or codec_beside(path / "x", 2), audio)
    if fields.get("format") == "shar":
        names = list(fields.get("splits") or [])
        if split is not None and split not in names:
            raise UserError(f"--split {split}: {path} has {', '.join(names) or 'no splits'}")
        folders = [split] if split else names or ["all"]
        parts = (read_shar(path / n, n if n in names else None) for n in folders)
        return TokenSource("shar", itertools.chain.from_iterable(parts), info, audio)
    return None


def _open_token_dir(path: Path, split: str | None) -> TokenSource:
    sidecar = read_sidecar(path)
    everything = split is None or (split == "all" and "all" not in splits_of(path))
    audio = path / "audio_cuts.jsonl.gz"
    return TokenSource(
        "token directory",
        read_token_dir(path, [None if everything else split]),
        CodecInfo.from_dict(sidecar["codec"]),
        audio if audio.exists() else None,
        int(sidecar.get("num_cuts", 0)) or None if everything else None,
    )


def _open_manifest(path: Path) -> TokenSource:
    """Token cuts that lie in some token directory, beside the manifest or where it points to."""
    first = next(read_manifest(path), None)
    if first is None:
        raise UserError(f"{path}: an empty manifest")
    features = first.get("features") or {}
    shard = Path(features.get("storage_path") or "")
    for folder in (path.parent, shard.parent.parent):
        if (folder / "tokens.json").is_file():
            info = CodecInfo.from_dict(read_sidecar(folder)["codec"])
            return TokenSource("token cuts", read_items(path, info, folder), info)
    if not features:
        raise UserError(f"{path}: cuts without tokens; give token cuts, cuts.jsonl.gz for example")
    raise UserError(
        f"{path}: no tokens.json beside it, nor where its first cut points to ({shard}); put the "
        "manifest into its token directory"
    )


def _open_files(inputs: list[str], order: str, layout: str | None) -> TokenSource:
    """.npq files if there is one among the inputs, else .npy files."""
    for suffix in (".npq", ".npy"):
        try:
            files = find_files(inputs, suffix)
        except UserError:
            continue
        if all(path.lower().endswith(suffix) for _, path in files):
            break
    else:
        raise UserError(
            f"{inputs[0]}: no tokens there; give a token directory, a manifest of token cuts, an "
            "export, .npy or .npq files"
        )
    info = codec_beside(files[0][1])
    if suffix == ".npq":
        return TokenSource(".npq files", _npq_items(files, layout), info, count=len(files))
    return TokenSource(".npy files", _npy_items(files, order), info, count=len(files))


def _npq_items(files: list[tuple[str, str]], layout: str | None) -> Iterator[TokenItem | Skipped]:
    for id, path in files:
        try:
            header, codes = read_npq(path, layout)
        except UserError as e:
            yield Skipped(id, path, str(e).removeprefix(f"{path}: "))
        else:
            yield TokenItem(id, codes, token_rate=header.token_rate)


def _npy_items(files: list[tuple[str, str]], order: str) -> Iterator[TokenItem]:
    levels = None
    for id, path in files:
        codes = read_npy(path, order)
        levels = levels or codes.shape[1]
        if codes.shape[1] != levels:
            other = "kt" if order == "tk" else "tk"
            raise UserError(
                f"{path}: shape {codes.shape} taken as (T, K) where {files[0][1]} has {levels} "
                f"levels; give --order {other} if the arrays lie the other way round"
            )
        yield TokenItem(id, codes)
