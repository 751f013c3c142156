"""Intervals by the bootstrap: how a figure scatters when other items of the same kind are drawn
(Efron, 1979, "Bootstrap methods: another look at the jackknife"). Items are what was drawn
independently: recordings, sentences. Figures are functions of sums over items, so that only sums
are resampled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 2000
_BLOCK = 1 << 22
"""Numbers at once: 32 MiB."""


def bootstrapped(figure: Callable[..., np.ndarray], *columns: np.ndarray) -> np.ndarray:
    """Figures (`DRAWS`, ...) of N items drawn again and again, with replacement, the same items for
    all columns and in every call.

    :param figure: of sums (n, ...) of the columns, of n draws at once.
    :param columns: (N, ...) each.

    >>> means = bootstrapped(np.divide, np.array([1.0, 2.0]), np.array([10.0, 10.0]))
    >>> means.shape, sorted(set(means.tolist()))
    ((2000,), [0.1, 0.15, 0.2])
    """
    columns = [np.asarray(column, float) for column in columns]
    N, rng, found = len(columns[0]), np.random.default_rng(0), []
    size = max(1, _BLOCK // max(N, *(column[0].size for column in columns)))
    for first in range(0, DRAWS, size):
        drawn = rng.integers(N, size=(min(size, DRAWS - first), N))
        drawn += N * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        sums = ((times @ c.reshape(N, -1)).reshape(-1, *c.shape[1:]) for c in columns)
        found.append(figure(*sums))
    return np.concatenate(found)


def ratio(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of sums; NaN where nothing was counted."""
    return np.divide(values, counts, out=np.full_like(values, np.nan), where=counts > 0)


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
    return interval(bootstrapped(ratio, values, counts))
