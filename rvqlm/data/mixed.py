"""`open_mixed`: several token directories of one codec as one dataset, row after row.

How much of each an epoch takes is the plan's business (``--mix-weights``).
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError


class MixedDataset:
    """Stands for a `TokenDataset`; rows of the first one come first.

    Attributes
    ----------
    datasets: the data sets; parts: (D,) the first row of each.
    """

    def __init__(self, datasets: Sequence[TokenDataset]):
        self.datasets, first = list(datasets), datasets[0]
        self.directory: Path = first.directory
        self.split, self.info = first.split, first.info
        sizes = [len(d) for d in datasets]
        self.parts = np.cumsum([0, *sizes[:-1]])
        self._first: list[int] = self.parts.tolist()  # bisect is faster for one row
        self.frames = np.concatenate([d.frames for d in datasets])
        self._ends = np.concatenate([d.ends(slice(None)) for d in datasets])
        self.num_frames = sum(d.num_frames for d in datasets)
        self.hours = sum(d.hours for d in datasets)
        self.dtype = max((d.dtype for d in datasets), key=lambda dtype: dtype.itemsize)
        prints = " ".join(" ".join(_content(d)) for d in datasets)
        self.fingerprint = hashlib.sha256(prints.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.frames)

    def place(self, row: int) -> tuple[TokenDataset, int]:
        """The data set of a row and the row within it."""
        part = bisect_right(self._first, row) - 1
        return self.datasets[part], int(row) - self._first[part]

    def part_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) which data set each row belongs to."""
        return np.searchsorted(self.parts, rows, side="right") - 1

    def view(self, row: int, start: int = 0, num: int | None = None) -> np.ndarray:
        dataset, inside = self.place(row)
        return dataset.view(inside, start, num)

    def read(self, row: int, start: int = 0, num: int | None = None) -> np.ndarray:
        dataset, inside = self.place(row)
        return dataset.read(inside, start, num)

    def ends(self, rows: np.ndarray) -> np.ndarray:
        return self._ends[rows]

    def cuts(self) -> Iterator[dict]:
        for dataset in self.datasets:
            yield from dataset.cuts()

    def ids(self) -> Iterator[str]:
        for cut in self.cuts():
            yield cut["id"]

    def id_of(self, row: int) -> str:
        dataset, inside = self.place(row)
        return dataset.id_of(inside)


def _content(dataset: TokenDataset) -> tuple[str, ...]:
    """What tells two data sets apart: tokens of a changed copy of the audio have the same ids and
    lengths, so the checksums of their codes count too."""
    return (dataset.fingerprint, *(shard["sha256"] for shard in dataset.header["tokens"]))


def open_mixed(
    directories: Sequence[str | os.PathLike], split: str, num_codebooks: int | None = None
) -> MixedDataset:
    """Open a split of each directory; `UserError` where codecs differ or one comes twice."""
    datasets = [TokenDataset.open(d, split, num_codebooks=num_codebooks) for d in directories]
    first, seen = datasets[0], {}
    for dataset in datasets:
        dataset.info.require_same(first.info, str(dataset.directory), str(first.directory))
        if (other := seen.setdefault(_content(dataset), dataset)) is not dataset:
            raise UserError(
                f"{dataset.directory} has the data of {other.directory}: give each once and weigh "
                "it with --mix-weights"
            )
    return MixedDataset(datasets)
