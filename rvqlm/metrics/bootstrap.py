"""Intervals by the bootstrap: how a figure scatters when other items of the same kind are drawn
(Efron, 1979, "Bootstrap methods: another look at the jackknife"). Items are what was drawn
independently: recordings, sentences. Figures are functions of sums over items, so that only sums
are resampled.
"""

from __future__ import annotations

import numpy as np

DRAWS = 2000
_BLOCK = 1 << 22
"""Items drawn at once: 32 MiB of numbers."""


def resampled(*columns: np.ndarray) -> list[np.ndarray]:
    """Sums (`DRAWS`, ...) of each column (N, ...) over N items drawn with replacement, the same
    items for all columns and in every call.

    >>> a, b = resampled(np.array([1.0, 2.0]), np.array([10.0, 20.0]))
    >>> sorted(set(a.tolist())), bool((b == 10 * a).all())
    ([2.0, 3.0, 4.0], True)
    """
    columns = [np.asarray(column, float) for column in columns]
    N, rng, parts = len(columns[0]), np.random.default_rng(0), [[] for _ in columns]
    size = max(1, _BLOCK // N)
    for first in range(0, DRAWS, size):
        drawn = rng.integers(N, size=(min(size, DRAWS - first), N))
        drawn += N * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        for part, column in zip(parts, columns):
            sums = times.astype(float) @ column.reshape(N, -1)
            part.append(sums.reshape(-1, *column.shape[1:]))
    return [np.concatenate(part) for part in parts]


def interval(figures: np.ndarray) -> list:
    """Low and high end of what holds 95 % of figures (`DRAWS`, ...): (..., 2) lists."""
    ends = np.nanpercentile(figures, [2.5, 97.5], axis=0)
    return np.moveaxis(ends, 0, -1).tolist()


def ratio_interval(values: np.ndarray, counts: np.ndarray) -> list[float] | None:
    """Of sum(values) / sum(counts), (N,) each; None for a single item: it says nothing of others.

    >>> ratio_interval(np.ones(5), np.full(5, 4.0))
    [0.25, 0.25]
    """
    if len(values) < 2:
        return None
    values, counts = resampled(values, counts)
    return interval(np.divide(values, counts, out=np.full_like(values, np.nan), where=counts > 0))
