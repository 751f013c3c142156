"""Where a series of losses leaves its usual range, and whether it comes back.

The usual range is the median of the last `WINDOW` usual values and their interquartile range, both
robust to outliers. Values above it form excursions: one that ends is a spike, one that lasts until
the end of the series is a divergence, and a small one that lasts long is a new level, as a change
of the data makes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median_high

WINDOW = 50
"""Usual values that tell what is usual."""
ENOUGH = 8
"""Values before any is judged."""
SETTLED = 20
"""Values whose median may count as the lowest level of the series."""
DEVIATIONS = 8.0
"""Width of the range in standard deviations of the window (its quartiles' distance / 1.349).
Batches of unequal recordings scatter with heavier tails than a Gaussian, so this is wide."""
RELATIVE = 0.05
"""The least width of the range as a share of the level."""
EXPLOSION = 0.15
"""Share of the level by which a lasting rise is a divergence rather than a new level."""
LASTING = 3
"""Values until the end of the series that make a divergence of an excursion."""


@dataclass
class Excursion:
    """Values from the index `first` above the range around `level`."""

    first: int
    level: float
    scale: float
    highest: int
    """index of the highest value"""
    open: bool = True
    """it lasts until the end"""


@dataclass
class Judged:
    """What became of a series."""

    spikes: list[Excursion]
    divergence: Excursion | None = None
    creeping: bool = False
    """the divergence is a slow rise, not a jump"""


def judge(values: Sequence[float | None], least: float) -> Judged:
    """Find the excursions of a series; non-finite values count as infinitely high, those that are
    None are passed over.

    :param least: width of the range at least, in the unit of the values.

    >>> calm = [4.0, 4.1] * 20
    >>> judged = judge([*calm, 9.0, *calm, 5.0, 7.0, 11.0], least=0.05)
    >>> [s.first for s in judged.spikes], judged.divergence.first
    ([40], 81)
    """
    values = [v if v is None or isfinite(v) else inf for v in values]
    window: deque[float] = deque(maxlen=WINDOW)
    spikes, current = [], None
    lowest, lowest_at, lowest_scale = inf, 0, 0.0
    inside: list[float] = []  # values of the current excursion
    for i, value in enumerate(values):
        if value is None:
            continue
        if len(window) < ENOUGH:
            if value < inf:
                window.append(value)
            continue
        level, scale = _level_and_scale(window)
        if len(window) >= SETTLED and level < lowest:
            lowest, lowest_at, lowest_scale = level, i, scale
        if value <= level + max(DEVIATIONS * scale, RELATIVE * level, least):
            if current is not None:
                current.open = False
                spikes.append(current)
                current = None
            window.append(value)
            continue
        if current is None:
            current, inside = Excursion(i, level, scale, highest=i), []
        elif value > values[current.highest]:
            current.highest = i
        inside.append(value)
        late = inside[-WINDOW:]
        if len(late) == WINDOW and median_high(late) < level + max(EXPLOSION * level, 10 * least):
            current, lowest = None, inf  # a new level
            window = deque(late, maxlen=WINDOW)
    # what the level had risen by already, in a range that grew with it
    margin = max(DEVIATIONS * lowest_scale, EXPLOSION * lowest, 10 * least)
    divergence, creeping = None, False
    if current is not None and len(inside) < LASTING and values[current.highest] < inf:
        spikes.append(current)
    elif current is not None:
        divergence, creeping = current, current.level > lowest + margin
    else:
        tail = [v for v in values if v is not None][-WINDOW // 5 :]
        if lowest < inf and tail and median_high(tail) > lowest + margin:
            end = len(values)
            divergence, creeping = Excursion(end, lowest, lowest_scale, highest=end - 1), True
    if divergence is None:
        return Judged(spikes)
    if creeping:
        divergence.level, divergence.scale = lowest, lowest_scale
    divergence.first = max(lowest_at if creeping else 0, _onset(values, divergence))
    spikes = [s for s in spikes if s.first < divergence.first]
    return Judged(spikes, divergence, creeping)


def _level_and_scale(window: Sequence[float]) -> tuple[float, float]:
    """Median, and the standard deviation of a Gaussian with the same quartiles."""
    ordered, n = sorted(window), len(window)
    return ordered[n // 2], (ordered[3 * n // 4] - ordered[n // 4]) / 1.349


def _onset(values: Sequence[float | None], excursion: Excursion) -> int:
    """First index after the last value that was still at the usual level: a divergence begins
    before it leaves the range."""
    limit = excursion.level + excursion.scale
    for i in range(excursion.first - 1, -1, -1):
        if values[i] is not None and values[i] <= limit:
            return min(i + 1, len(values) - 1)
    return excursion.first
