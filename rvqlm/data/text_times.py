"""When each symbol of a text is said: ``text-times_SPLIT.bin`` beside ``text_SPLIT.bin``.

A row has as many steps as the text, of two fields: where a symbol begins and ends, in 0.1 ms from
the beginning of its cut, in the order in which they are said; or none, where the text could not be
aligned. The column is bound to the symbols it is of by a hash of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.notes import SECOND
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError


class TextTimes:
    """When the symbols of the cuts of a split are said."""

    def __init__(self, column: Ragged):
        self.column = column

    @staticmethod
    def path(directory: Path, split: str) -> Path:
        return column_path(directory, "text-times", split)

    @classmethod
    def open(cls, dataset: TokenDataset, text: Ragged) -> TextTimes:
        """Map the column that `write` made.

        Raises `UserError` where it is missing, damaged, or of another text than `text`.
        """
        path = cls.path(dataset.directory, dataset.split)
        remedy = f"run rvqlm align --manifest-dir {dataset.directory}"
        column = Ragged.open(path, None, remedy)
        if column.fingerprint != text.mark() or column.num_fields != 2 or len(column) != len(text):
            raise UserError(f"{path} does not belong to {text.path}; {remedy}")
        sizes = column.lengths
        if ((sizes != 0) & (sizes != text.lengths)).any():
            raise UserError(f"{path} has rows of other lengths than {text.path}; {remedy}")
        return cls(column)

    @classmethod
    def write(cls, dataset: TokenDataset, text: Ragged, rows: Iterable[np.ndarray | None]) -> None:
        """Write the column.

        :param rows: for each cut (S, 2) seconds, begin and end of its symbols, or None.
        """
        nothing = np.empty((0, 2), np.int32)
        path = cls.path(dataset.directory, dataset.split)
        stored = (nothing if r is None else np.rint(r * SECOND).astype(np.int32) for r in rows)
        write_ragged(path, stored, 2, text.mark())

    def read(self, row: int) -> np.ndarray | None:
        """(S, 2) float64, begin and end of each symbol in seconds; None without alignment."""
        found = self.column.read(row)
        return found / SECOND if len(found) else None
