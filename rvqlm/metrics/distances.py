"""Distances between two sets of vectors: how far what a model makes is from what is recorded, as a
whole and without pairs. Fréchet's, of two normal distributions, and the kernel distance, which
assumes none. numpy only.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

KERNEL_SCALE = 100.0
"""What the squared mean discrepancy is multiplied with, as in KAD."""
MOST_VECTORS = 4000
"""Of a set, that the kernel distance compares with each other, spread evenly over it."""
_BLOCK = 1000


def moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), the latter over N - 1, of (N, D) vectors, N > 1."""
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"moments of (N > 1, D) vectors, got {vectors.shape}")
    return vectors.mean(0), np.cov(vectors, rowvar=False).reshape(vectors.shape[1], -1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the moments of two sets.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``, the square of Dowson & Landau's distance
    (1982), as in FID and FAD (arXiv:1812.08466). The trace of the root is that of the symmetric
    ``(C_a^(1/2) C_b C_a^(1/2))^(1/2)``, which singular covariances do not disturb. It grows with
    fewer vectors, by about the inverse of their number: compare sets of about one size, of several
    times D vectors.

    :param a, b: (N, D) and (M, D), at least two each.
    :returns: 0 for equal sets, never less.
    """
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    if np.array_equal(mean_a, mean_b) and np.array_equal(cov_a, cov_b):
        return 0.0
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = root @ cov_b @ root
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0)).sum()
    apart = mean_a - mean_b
    return float(max(0.0, apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * crossed))


def kernel_distance(reference: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of two sets, times `KERNEL_SCALE`: the kernel audio
    distance, KAD (arXiv:2502.15602).

    The kernel is Gaussian, ``exp(-d^2 / (2 s^2))``, with the median distance of the reference's
    vectors to each other for s. Unlike Fréchet's distance it does not grow with fewer vectors, and
    may be a little less than 0. Vectors are not compared with themselves: those that stand in both
    sets not with the one they equal in the other either, so that equal sets are 0 apart.

    :param reference, other: (N, D) and (M, D), at least two each; of more than `MOST_VECTORS`,
        these many.
    """
    a, b = (_spread(np.asarray(x, np.float64)) for x in (reference, other))
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"kernel_distance of (N > 1, D) vectors, got {a.shape} and {b.shape}")
    mean = a.mean(0)  # distances lose less to rounding near the origin
    a, b = a - mean, b - mean
    width = _median_distance(a)
    within = [(_kernel_sum(x, x, width) - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    shared = Counter(x.tobytes() for x in a) & Counter(x.tobytes() for x in b)
    same = sum(shared.values())
    if same == len(a) == len(b):
        return 0.0
    between = (_kernel_sum(a, b, width) - same) / (len(a) * len(b) - same)
    return float(KERNEL_SCALE * (sum(within) - 2 * between))


def _spread(vectors: np.ndarray) -> np.ndarray:
    """At most `MOST_VECTORS` rows, as far from each other as can be, in their order."""
    if len(vectors) <= MOST_VECTORS:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, MOST_VECTORS).round().astype(int)]


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) squared distances."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


def _median_distance(vectors: np.ndarray) -> float:
    """Of all pairs of different rows; 1 where all are equal."""
    found = [
        _squares(vectors[i : i + _BLOCK], vectors)[np.arange(len(vectors)) > row[:, None]]
        for i in range(0, len(vectors), _BLOCK)
        for row in [np.arange(i, min(i + _BLOCK, len(vectors)))]
    ]
    return float(np.sqrt(np.median(np.concatenate(found)))) or 1.0


def _kernel_sum(a: np.ndarray, b: np.ndarray, width: float) -> float:
    """Sum of the kernel over all pairs, a block of rows at a time."""
    blocks = (_squares(a[i : i + _BLOCK], b) for i in range(0, len(a), _BLOCK))
    return float(sum(np.exp(-squares / (2 * width**2)).sum() for squares in blocks))
