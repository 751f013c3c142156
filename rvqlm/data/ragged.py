"""Ragged columns: sequences of unequal lengths beside the rows of an index, memory-mapped.

One file holds one condition of one split (``text_train.bin``): a JSON header with the fingerprint
of the index that it belongs to, where each row begins (uint64, in steps), then the steps of all
rows one after another, F integers each, in the smallest type that holds them. Writing streams
(8 bytes of memory a row), reading maps.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "text_train.bin"
>>> write_ragged(path, [np.array([3, 1]), np.array([], int), np.array([300])], 1, "0" * 16)
3
>>> ragged = Ragged.open(path)
>>> ragged.lengths.tolist(), ragged.read(0).tolist(), ragged.steps.dtype.name
([2, 0, 1], [[3], [1]], 'uint16')
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rvqlm.data.mapped import has_checksum, map_columns, write_columns
from rvqlm.data.schemas import RaggedHeader
from rvqlm.errors import UserError, reason_of

MAGIC = b"RVQRAG01"
_LIMITS = {"uint8": 1 << 8, "uint16": 1 << 16, "int32": 1 << 31}  # in order of size
_BLOCK = 1 << 20  # numbers converted at a time


def write_ragged(
    path: str | os.PathLike, rows: Iterable[np.ndarray], num_fields: int, fingerprint: str
) -> int:
    """Write a ragged column; returns its number of rows.

    Parameters
    ----------
    rows: (S, F) integer arrays, (S,) for one field, in the order of the index; S may be 0. Ids are
        from 0 to 2^31 - 1.
    fingerprint: of the index (`TokenDataset.fingerprint`); `Ragged.open` compares it.

    The file appears when it is complete. Raises `ValueError` for arrays of another shape or type.
    """
    path = Path(path)
    highest = np.full(num_fields, -1, np.int64)
    starts = array("Q", [0])
    with tempfile.TemporaryFile(dir=path.parent) as data:
        for row in rows:
            ids, count = np.asarray(row), len(starts) - 1
            if ids.ndim == 1:
                ids = ids.reshape(-1, num_fields if ids.size == 0 else 1)
            if ids.ndim != 2 or ids.shape[1] != num_fields:
                raise ValueError(f"row {count}: shape {ids.shape}, expected (S, {num_fields})")
            if ids.size:
                if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 1 << 31:
                    raise ValueError(f"row {count}: not ids of 0 ... 2^31 - 1 ({ids.dtype})")
                np.maximum(highest, ids.max(axis=0).astype(np.int64), out=highest)
            data.write(np.ascontiguousarray(ids, "<i4").tobytes())
            starts.append(starts[-1] + len(ids))
        largest = int(highest.max(initial=-1))
        dtype = next(name for name, limit in _LIMITS.items() if largest < limit)
        header = {
            "fingerprint": fingerprint,
            "fields": num_fields,
            "rows": len(starts) - 1,
            "steps": starts[-1],
            "dtype": dtype,
            "max_ids": highest.tolist(),
        }
        stored = np.dtype(dtype).newbyteorder("<")

        def columns() -> Iterator[bytes]:
            yield np.array(starts, "<u8").tobytes()
            data.seek(0)
            for block in iter(lambda: data.read(4 * _BLOCK), b""):
                yield np.frombuffer(block, "<i4").astype(stored).tobytes()

        write_columns(path, MAGIC, header, columns())
    return len(starts) - 1


class Ragged:
    """A ragged column mapped into memory.

    Attributes
    ----------
    num_fields: F.
    steps: (sum of all S, F) read-only, every row one after another.
    starts: (N + 1,) uint64, where each row begins in `steps`, and where the last ends.
    """

    def __init__(self, path: Path, header: dict, starts: np.ndarray, steps: np.ndarray):
        self.path, self.header, self.starts, self.steps = path, header, starts, steps
        self.num_fields: int = header["fields"]
        self.fingerprint: str = header["fingerprint"]
        self.max_ids: tuple[int, ...] = tuple(header["max_ids"])
        """Largest id of each field; -1 where there are no steps."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        fingerprint: str | None = None,
        remedy: str = "make it again",
    ) -> Ragged:
        """Map the file that `write_ragged` made.

        Raises `UserError`, ending in `remedy`, when it is missing, damaged, or belongs to another
        index than the one of `fingerprint`.
        """
        path = Path(path)
        try:
            header, columns = map_columns(path, MAGIC, RaggedHeader)
            count, steps, fields = header["rows"], header["steps"], header["fields"]
            if len(header["max_ids"]) != fields:
                raise ValueError("wrong header")
            dtype = np.dtype(header["dtype"]).newbyteorder("<")
            if len(columns) != 8 * (count + 1) + steps * fields * dtype.itemsize:
                raise ValueError("wrong size")
            starts = columns[: 8 * (count + 1)].view("<u8")
            if starts[0] != 0 or starts[-1] != steps or (starts[1:] < starts[:-1]).any():
                raise ValueError("rows out of order")
            values = columns[8 * (count + 1) :].view(dtype).reshape(steps, fields)
            checked = has_checksum(header) or not steps
            if not checked and (values.max(0).tolist() != header["max_ids"] or values.min() < 0):
                raise ValueError("other ids than its header says")
            ragged = cls(path, header, starts, values)
        except FileNotFoundError:
            raise UserError(f"{path} not found; {remedy}") from None
        except (ValueError, OSError) as e:
            raise UserError(f"{path} is damaged ({reason_of(e)}); {remedy}") from None
        if fingerprint is not None and ragged.fingerprint != fingerprint:
            raise UserError(
                f"{path} belongs to other data (fingerprint {ragged.fingerprint}, the index has "
                f"{fingerprint}); {remedy}"
            )
        return ragged

    def mark(self) -> str:
        """16 hex digits of what is in all rows, of this index: the fingerprint of a column that
        belongs to this one."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for part in (self.starts, self.steps):
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Number of rows, those without steps included."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, steps of every row."""
        return np.diff(self.starts).astype(np.int64)

    def read(self, row: int) -> np.ndarray:
        """The steps of a row, (S, F) int32, to keep."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self.path}")
        return self.steps[int(self.starts[row]) : int(self.starts[row + 1])].astype(np.int32)
