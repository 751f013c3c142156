"""Schedules by epoch, and which cuts an epoch of so many hours takes.

A schedule is a list of ``EPOCH:VALUE``, each from its epoch on, the first from 0. Everything is a
function of the epoch and the seed, so a run resumes in the middle of a curriculum like anywhere.

Epochs of so many hours are slices of an endless line of passes over the cuts, each pass in an order
of its own: within a pass no cut comes twice, however the epochs fall. Where a schedule changes
which cuts are eligible, the passes begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from rvqlm.errors import UserError

V = TypeVar("V")
Schedule = list[tuple[int, V]]


def parse_schedule(words: Sequence[str], flag: str, convert: Callable[[str], V]) -> Schedule:
    """``("0:512", "10:1024")`` -> ``[(0, 512), (10, 1024)]``; `UserError` names what is wrong.

    >>> parse_schedule(("0:512", "10:1024"), "--window-schedule", int)
    [(0, 512), (10, 1024)]
    """
    found: Schedule = []
    for word in words:
        epoch, colon, value = word.partition(":")
        try:
            if not colon:
                raise ValueError
            found.append((int(epoch), convert(value)))
        except ValueError:
            raise UserError(f"{flag} {word}: expected EPOCH:VALUE, such as {words[0]!r}") from None
    epochs = [epoch for epoch, _ in found]
    if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise UserError(f"{flag} {' '.join(words)}: epochs begin with 0 and rise")
    return found


def value_at(schedule: Schedule, epoch: int) -> V:
    """The value that holds in an epoch."""
    return [value for first, value in schedule if first <= epoch][-1]


def to_frames(text: str) -> int:
    frames = int(text)
    if frames < 1:
        raise ValueError
    return frames


def to_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def to_weights(text: str) -> tuple[float, ...]:
    """``1,2.5`` -> shares that add up to 1."""
    weights = tuple(map(float, text.split(",")))
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ValueError
    return tuple(w / sum(weights) for w in weights)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Random numbers of their own for each (seed, epoch, stream < 256): Philox, counter-based."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed % (1 << 64), epoch << 8 | stream], np.uint64))
    )


def take_hours(
    rows: np.ndarray, frames: np.ndarray, begin: float, end: float, seed: int, stream: int
) -> np.ndarray:
    """The rows whose cuts begin in frames [begin, end) of the endless line of passes over them.

    :param rows: (n,) eligible rows, `frames` (n,) their lengths.
    :param stream: of random numbers, one for each data set and change of what is eligible.
    :return: rows, in the order of the line; a row comes again where several passes are touched.
    """
    total = int(frames.sum(dtype=np.int64))
    found = []
    for number in range(int(begin // total), int(-(-end // total))):
        order = np.arange(len(rows), dtype=np.uint32)
        # streams from 64 on: those below are the plan's
        generator(seed, number, 64 + stream % 192).shuffle(order)
        lengths = frames[order].astype(np.int64)
        at = number * total + np.cumsum(lengths) - lengths
        found.append(rows[order[(at >= begin) & (at < end)]])
    return np.concatenate(found) if found else rows[:0]
