"""Who speaks in each row of an index, and draws of another cut of the same speaker.

The manifest is read for it once: speaker and origin of every row are kept beside the index in
``speakers_SPLIT.bin`` (12 to 16 bytes a cut), and made again when index or manifest change. Rows
have one origin where they hold the same audio: augmented copies and their original, and windows of
one recording that overlap. A cut of several speakers goes with cuts of exactly the same ones.
"""

from __future__ import annotations

import hashlib
import sys
from array import array

import numpy as np

from rvqlm.cli import bar
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.splits import components
from rvqlm.data.splits import speakers as speakers_of
from rvqlm.data.store import hash64
from rvqlm.errors import UserError

_LOW = np.uint64(0xFFFFFFFF)


class Speakers:
    """Draws cuts of the speaker of a given cut.

    Attributes
    ----------
    table: (N, 2), speaker (0: none) and origin of every row.
    """

    def __init__(self, table: np.ndarray):
        self.table = table
        keys = self._keys(slice(None))
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._sorted = keys[self._order]

    @classmethod
    def open(cls, dataset: TokenDataset) -> Speakers:
        """Map ``speakers_SPLIT.bin``, made first where it is missing or out of date.

        Where the directory cannot be written, a line on stderr says so and the table stays in
        memory. Raises `UserError` for a damaged manifest.
        """
        path = column_path(dataset.directory, "speakers", dataset.split)
        mark = _fingerprint(dataset)
        try:
            return cls(Ragged.open(path, mark).steps)
        except UserError:  # missing or of an older index; all of it can be made again
            table = _read_speakers(dataset)
        try:
            write_ragged(path, (row[None] for row in table), 2, mark)
        except OSError as e:
            print(
                f"{path} could not be written ({e.strerror}): the speakers of {len(table)} cuts "
                "will be read from the manifest again by every process",
                file=sys.stderr,
            )
            return cls(table)
        return cls(Ragged.open(path, mark).steps)

    def _keys(self, rows) -> np.ndarray:
        """Speaker in the upper half, origin in the lower: (n,) uint64."""
        speaker, origin = (self.table[rows, n].astype(np.uint64) for n in (0, 1))
        return speaker << np.uint64(32) | origin

    def _runs(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where in the sorted rows the speaker of each row begins, and its origin; how many cuts
        there are of other origins, and of this one: four (n,) int64."""
        keys = self._keys(rows)
        first = np.searchsorted(self._sorted, keys & ~_LOW)
        last = np.searchsorted(self._sorted, keys | _LOW, side="right")
        own = np.searchsorted(self._sorted, keys)
        own_last = np.searchsorted(self._sorted, keys, side="right")
        others = np.where(keys > _LOW, (last - first) - (own_last - own), 0)
        return first, own, others, own_last - own

    def num_others(self, rows) -> np.ndarray:
        """(n,) how many cuts of the same speaker and another origin there are."""
        return self._runs(rows)[2]

    def draw(self, rows: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """(n,) int64 rows of other cuts of the same speakers, -1 where there is none.

        chance: (n,) in [0, 1), uniform; each of the other cuts has an equal share of it.
        """
        first, own, others, mine = self._runs(rows)
        at = first + np.minimum((chance * others).astype(np.int64), np.maximum(others - 1, 0))
        at += np.where(at >= own, mine, 0)  # step over the cuts of the same origin
        drawn = self._order[np.minimum(at, len(self._order) - 1)].astype(np.int64)
        return np.where(others > 0, drawn, -1)


def uniform(seed: int, epoch: int, rows: np.ndarray, stream: int) -> np.ndarray:
    """(n,) float64 in [0, 1), a function of the arguments alone, whatever the other rows are.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
    generators") over one word after another; numpy's counter-based generators cannot be asked for
    scattered counters in one call.
    """
    state = np.zeros(1, np.uint64)
    for word in (seed % (1 << 64), epoch, stream, np.asarray(rows)):
        state = state + np.asarray(word).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        state = state ^ state >> np.uint64(31)
    return (state >> np.uint64(11)) * 2.0**-53


def _fingerprint(dataset: TokenDataset) -> str:
    """That of the index leaves speakers out: a manifest with other names has to count."""
    text = f"{dataset.fingerprint} {dataset.header['manifest']['sha256']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_speakers(dataset: TokenDataset) -> np.ndarray:
    """(N, 2) int32 of speakers and origins, from the manifest."""
    numbers: dict[tuple[str, ...], int] = {}
    speaker, name = array("i"), array("Q")
    for cut in bar(dataset.cuts(), "speakers"):
        found = tuple(sorted(speakers_of(cut)))
        speaker.append(numbers.setdefault(found, len(numbers) + 1) if found else 0)
        origin = (cut.get("custom") or {}).get("augmented_from")
        name.append(hash64(str(cut["id"] if origin is None else origin)))
    # cuts that share bytes of a shard, directly or through others, are a chain
    begin, end = dataset.extents()
    order = np.argsort(begin, kind="stable")
    apart = begin[order][1:] >= np.maximum.accumulate(end[order])[:-1]
    chain = np.empty(len(order), np.int64)
    chain[order] = np.concatenate(([0], np.cumsum(apart)))
    part = components(chain, np.array(name), int(chain.max()) + 1)
    return np.stack([np.array(speaker), part[chain]], axis=1).astype(np.int32)
