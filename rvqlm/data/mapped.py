"""Files of columns that are mapped into memory: indexes, and what lies beside their rows.

Eight bytes say what the file is, eight how long its JSON header is; the header is padded so that
the columns behind it start aligned. It has checksums of itself and of the columns, which are
compared whenever the file is opened: 1 to 3 GB a second.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rvqlm.files import MOST, atomic_open, fits, with_checksum, without_checksum


def column_path(directory: Path, kind: str, split: str) -> Path:
    """``KIND_SPLIT.bin`` beside the index: text, midi, source or speakers of its rows."""
    return directory / f"{kind}_{split}.bin"


def write_columns(path: Path, magic: bytes, header: dict, columns: Iterable[bytes]) -> None:
    """Write header and columns, given in blocks; the file appears when it is complete."""

    def head(crc: int) -> bytes:
        text = json.dumps(with_checksum({**header, "columns": f"crc32:{crc:08x}"})).encode()
        text += b" " * (-(len(magic) + 8 + len(text)) % 64)
        return magic + len(text).to_bytes(8, "little") + text

    crc = 0
    with atomic_open(path) as out:
        out.write(head(crc))
        for block in columns:
            out.write(block)
            crc = zlib.crc32(block, crc)
        out.seek(0)
        out.write(head(crc))


def read_header(path: Path, magic: bytes, schema: Any) -> dict:
    """The header alone, whatever the columns are; raises like `map_columns`."""
    with open(path, "rb") as file:
        start = file.read(16)
        if start[:8] != magic:
            raise ValueError("of another format" if start else "empty")
        size = int.from_bytes(start[8:], "little")
        if size > MOST:
            raise ValueError("wrong size of its header")
        try:
            header = json.loads(file.read(size))
        except RecursionError:
            raise ValueError("nested too deeply") from None
    fits(without_checksum(header), schema)
    if ("checksum" in header) != ("columns" in header):
        raise ValueError("one of two checksums")
    return header


def map_columns(path: Path, magic: bytes, schema: Any) -> tuple[dict, np.ndarray]:
    """The header, and all that is behind it as read-only (bytes,) uint8, both compared with their
    checksums; those without any (`has_checksum`) are of an earlier version.

    Raises `FileNotFoundError`, and `ValueError` for anything that `write_columns` did not write.
    """
    header = read_header(path, magic, schema)
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    columns = data[16 + int.from_bytes(data[8:16].tobytes(), "little") :]
    crc = f"crc32:{zlib.crc32(columns):08x}"
    if header.get("columns", crc) != crc:
        raise ValueError("other bytes than its checksum is of")
    return header, columns


def has_checksum(header: dict) -> bool:
    return "checksum" in header
