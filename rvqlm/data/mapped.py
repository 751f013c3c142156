"""Files of columns that are mapped into memory: indexes, and what lies beside their rows.

Eight bytes say what the file is, eight how long its JSON header is; the header is padded so that
the columns behind it start aligned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rvqlm.files import atomic_open


def column_path(directory: Path, kind: str, split: str) -> Path:
    """``KIND_SPLIT.bin`` beside the index: text, midi, source or speakers of its rows."""
    return directory / f"{kind}_{split}.bin"


def write_columns(path: Path, magic: bytes, header: dict, columns: Iterable[bytes]) -> None:
    """Write header and columns, given in blocks; the file appears when it is complete."""
    text = json.dumps(header).encode()
    text += b" " * (-(len(magic) + 8 + len(text)) % 64)
    with atomic_open(path) as out:
        out.write(magic + len(text).to_bytes(8, "little") + text)
        out.writelines(columns)


def map_columns(path: Path, magic: bytes) -> tuple[dict, np.ndarray]:
    """The header, and all that is behind it as read-only (bytes,) uint8.

    Raises `FileNotFoundError`, and `ValueError` for anything that `write_columns` did not write.
    """
    if path.stat().st_size == 0:  # cannot be mapped
        raise ValueError("empty")
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    if data[:8].tobytes() != magic:
        raise ValueError("of another format")
    size = int.from_bytes(data[8:16].tobytes(), "little")
    return json.loads(data[16 : 16 + size].tobytes()), data[16 + size :]
