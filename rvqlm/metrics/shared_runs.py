"""The longest run of frames that a sequence has in common with a corpus, which passes by once.

Frames are compared as 64-bit numbers, runs by a polynomial of them modulo 2^64 (Karp & Rabin, 1987,
"Efficient randomized pattern-matching algorithms"): two that differ look alike with a probability
of about 2^-64 each, which a corpus of years does not make likely. Memory is that of the sequences
and of `CHUNK` frames of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 19
"""Frames of the corpus that are looked at together."""
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_INVERSE = pow(_BASE, -1, 1 << 64)


def symbols_of(codes: np.ndarray) -> np.ndarray:
    """(T, K) codes -> (T,) uint64 by which equal frames are known; of one level give (T, 1)."""
    found = np.zeros(len(codes), np.uint64)
    for level in np.asarray(codes).T:
        found = _mixed(found ^ (level.astype(np.uint64) + np.uint64(1)))
    return found


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al., 2014)."""
    x = x + np.uint64(_BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Runs:
    """Keys of all runs of one length in some frames."""

    def __init__(self, symbols: np.ndarray):
        powers = np.full(len(symbols) + 1, _BASE, np.uint64)
        inverses = np.full(len(symbols) + 1, _INVERSE, np.uint64)
        powers[0] = inverses[0] = 1
        self.inverses = np.cumprod(inverses, dtype=np.uint64)
        terms = symbols * np.cumprod(powers, dtype=np.uint64)[:-1]
        self.sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])

    def keys(self, length: int, at: np.ndarray | None = None) -> np.ndarray:
        """Of the runs that begin ``at`` these frames, all of which have so many behind them; None:
        of all that there are."""
        if at is None:
            at = np.arange(max(0, len(self.sums) - length))
        return (self.sums[at + length] - self.sums[at]) * self.inverses[at]


class SharedRun(NamedTuple):
    """Of one sequence."""

    frames: int
    """Length of the run; 0 where no frame is shared."""
    row: int
    """The part of the corpus where it is, the first of several; -1 without any."""


class SharedRuns:
    """Finds them for several sequences at once.

    >>> runs = SharedRuns([symbols_of(np.array([[1], [2], [3], [9]]))])
    >>> runs.search(symbols_of(np.array(part)) for part in ([[2], [2]], [[5], [1], [2], [3], [4]]))
    [SharedRun(frames=3, row=1)]
    """

    def __init__(self, sequences: Sequence[np.ndarray]):
        """:param sequences: (T,) of `symbols_of` each."""
        self.lengths = [len(s) for s in sequences]
        self._runs = [_Runs(s) for s in sequences]
        self._found = [SharedRun(0, -1) for _ in sequences]

    def search(self, corpus: Iterable[np.ndarray]) -> list[SharedRun]:
        """Of each sequence the longest run that is also in one part of the corpus."""
        parts: list[np.ndarray] = []
        first = frames = row = 0
        for row, part in enumerate(corpus, 1):
            parts.append(part)
            frames += len(part) + 1
            if frames >= CHUNK:
                self._look(parts, first)
                parts, frames, first = [], 0, row
        if parts:
            self._look(parts, first)
        return self._found

    def _look(self, parts: list[np.ndarray], first_row: int) -> None:
        # between two parts a number that no frame has, another each time
        walls = _mixed(_mixed(np.arange(len(parts), dtype=np.uint64) + np.uint64(1 << 63)))
        joined = np.concatenate([x for p, wall in zip(parts, walls) for x in (p, wall[None])])
        starts = np.cumsum([0] + [len(p) + 1 for p in parts])
        corpus, waiting = _Runs(joined), set(range(len(self.lengths)))
        while waiting:
            length = 1 + min(self._found[n].frames for n in waiting)
            group = [n for n in waiting if self._found[n].frames + 1 == length]
            waiting -= set(group)
            at = None  # where in the corpus a run of one of the group may begin: anywhere
            while group := [n for n in group if self.lengths[n] >= length]:
                keys = corpus.keys(length, at)
                own = np.concatenate([self._runs[n].keys(length) for n in group])
                owner = np.repeat(group, [self.lengths[n] - length + 1 for n in group])
                there = np.flatnonzero(np.isin(keys, own))
                places = there if at is None else at[there]
                hits, where = np.unique(keys[there], return_index=True)
                if not len(hits):
                    break
                which = np.searchsorted(hits, own).clip(max=len(hits) - 1)
                found = hits[which] == own
                group = []
                # the first place of a sequence's first run of this length
                for n in np.unique(owner[found]).tolist():
                    place = places[where[which[found & (owner == n)]].min()]
                    row = first_row + int(np.searchsorted(starts, place, side="right")) - 1
                    self._found[n] = SharedRun(length, row)
                    group.append(n)
                length += 1
                at = places[places + length < len(corpus.sums)]
