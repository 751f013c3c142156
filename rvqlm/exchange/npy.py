"""Tokens as .npy files: one (T, K) integer array per cut, and a ``manifest.jsonl`` about them.

A line of the manifest has ``id``, ``path`` (below its folder), ``num_frames``, ``num_samples``,
``text``, ``codec`` and ``fingerprint`` for whoever reads it with other programs, and all the rest
of the token cut (``recording_id, channel, supervisions, custom, split``) for coming back.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_manifest
from rvqlm.data.schemas import Cut, FileName, PathName
from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.items import Skipped, TokenItem
from rvqlm.exchange.names import new_path
from rvqlm.files import Count

MANIFEST = "manifest.jsonl"


class _About(TypedDict, total=False):
    num_samples: Count
    recording_id: str | None
    split: FileName | None


class _Line(Cut, _About):
    path: PathName
    num_frames: Count


def write_npy(folder: Path, items: Iterable[TokenItem], info: CodecInfo) -> int:
    """Write ``codes/ID.npy`` for every item and the manifest; returns their number."""
    count = 0
    with open(folder / MANIFEST, "w", encoding="utf-8", errors="surrogatepass") as lines:
        for item in items:
            path = new_path(folder / "codes", item.id, ".npy")
            np.save(path, np.ascontiguousarray(item.codes), allow_pickle=False)
            texts = [str(s["text"]) for s in item.supervisions if s.get("text")]
            line = {
                "id": item.id,
                "path": path.relative_to(folder).as_posix(),
                "num_frames": len(item.codes),
                "num_samples": item.num_samples(info),
                "text": " ".join(texts) or None,
                "codec": info.name,
                "fingerprint": info.fingerprint,
                "recording_id": item.recording_id,
                "channel": item.channel,
                "supervisions": item.supervisions,
                "custom": item.custom,
                "split": item.split,
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_npy(path: str | os.PathLike, order: str = "tk") -> np.ndarray:
    """Codes (T, K) of a .npy file, mapped; `order` "kt" for arrays with levels first.

    Raises `UserError` for what is no two-dimensional integer array.
    """
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # its header is parsed as Python, with errors of all kinds
        raise UserError(f"{path}: no .npy array of codes: {reason_of(e)}") from None
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
        found = f"{codes.dtype} array of shape {codes.shape}" if hasattr(codes, "dtype") else "zip"
        raise UserError(f"{path}: a {found}; codes are a (T, K) integer array")
    return codes if order == "tk" else codes.T


def parse_npy(data: bytes) -> np.ndarray:
    """Codes (T, K), a read-only view, of the bytes of a .npy file.

    No more memory is taken than there are bytes, whatever the header claims. Raises ValueError for
    what is damaged or no two-dimensional integer array.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of .npy")
    shape, fortran, dtype = readers[version](file)
    if len(shape) != 2 or dtype.kind not in "iu":
        raise ValueError(f"a {dtype} array of shape {shape}: features, not tokens")
    if min(shape) < 0 or shape[0] * shape[1] * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{shape} codes of {dtype} in {len(data) - file.tell():,} bytes")
    codes = np.frombuffer(data, dtype, offset=file.tell())
    return codes.reshape(shape, order="F" if fortran else "C")


def read_npy_manifest(manifest: Path) -> Iterator[TokenItem | Skipped]:
    """The items that `write_npy` wrote, one at a time, or why one cannot be read; `UserError`
    naming a line that is wrong."""
    for number, line in enumerate(read_manifest(manifest, _Line), 1):
        try:
            path = manifest.parent / line["path"]
            try:
                codes = read_npy(path)
            except UserError as e:
                yield Skipped.of(str(line["id"]), path, e)
                continue
            if len(codes) != line["num_frames"]:
                raise UserError(
                    f"{manifest}, entry {number}: {line['path']} has {len(codes)} frames, listed "
                    f"are {line['num_frames']}; export again"
                )
            yield TokenItem(
                str(line["id"]),
                codes,
                line.get("recording_id"),
                line.get("channel", 0),
                list(line.get("supervisions") or []),
                dict(line.get("custom") or {"num_samples": line["num_samples"]}),
                line.get("split"),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{manifest}, entry {number}: incomplete ({e!r})") from None


def npy_items(files: list[tuple[str, str]], order: str) -> Iterator[TokenItem | Skipped]:
    """Arrays without a manifest, (id, path) each, or why one is none; `order` "tk" or "kt"."""
    levels = None
    for id, path in files:
        try:
            codes = read_npy(path, order)
        except UserError as e:
            yield Skipped.of(id, path, e)
            continue
        levels = levels or codes.shape[1]
        if codes.shape[1] != levels:
            other = "kt" if order == "tk" else "tk"
            raise UserError(
                f"{path}: shape {codes.shape} taken as (T, K) where {files[0][1]} has {levels} "
                f"levels; give --order {other} if the arrays lie the other way round"
            )
        yield TokenItem(id, codes)
