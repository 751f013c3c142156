"""Schedules by epoch: a list of ``EPOCH:VALUE``, each from its epoch on, the first from 0.

Everything is a function of the epoch, so a run resumes in the middle of a curriculum like anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

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
