"""Which codes are used, and how often: of what a model makes beside what was recorded. All take
counts (K, V) of `rvqlm.metrics.losses.count_codes` and return a number for each level. Of few codes
fewer kinds are seen, and they look further away than they are: compare with as many recorded ones.
"""

from __future__ import annotations

import numpy as np


def divergence(counts: np.ndarray, others: np.ndarray) -> list[float]:
    """KL(counts || others) in nats, with one added to each count.

    >>> divergence(np.array([[5, 5]]), np.array([[50, 50]]))
    [0.0]
    """
    p, q = ((c + 1.0) / (c + 1.0).sum(1, keepdims=True) for c in (counts, others))
    return (p * np.log(p / q)).sum(1).tolist()


def entropy(counts: np.ndarray) -> list[float]:
    """Of the frequencies, in nats; 0 where nothing was counted.

    >>> entropy(np.array([[2, 2, 0], [7, 0, 0]]))
    [0.6931471805599453, 0.0]
    """
    p = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.abs((p * np.log(np.where(p > 0, p, 1))).sum(1)).tolist()


def coverage(counts: np.ndarray, others: np.ndarray) -> list[float]:
    """Share of the codes that ``others`` use of which ``counts`` has at least one.

    >>> coverage(np.array([[9, 0, 1, 0]]), np.array([[3, 1, 0, 0]]))
    [0.5]
    """
    used = others > 0
    return ((used & (counts > 0)).sum(1) / np.maximum(used.sum(1), 1)).tolist()
