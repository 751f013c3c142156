import math

import numpy as np
import pytest

from rvqlm.metrics.code_use import coverage, divergence, entropy


def test_closed_forms():
    counts, others = np.array([[3, 1, 0], [2, 2, 2]]), np.array([[1, 1, 4], [9, 9, 9]])
    p, q = np.array([4, 2, 1]) / 7, np.array([2, 2, 5]) / 9
    assert divergence(counts, others) == pytest.approx([(p * np.log(p / q)).sum(), 0.0])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy(counts) == pytest.approx([expected, math.log(3)])
    assert coverage(counts, others) == pytest.approx([2 / 3, 1.0])


def test_nothing_counted():
    none, some = np.zeros((1, 4), int), np.array([[1, 0, 2, 0]])
    assert (
        entropy(none) == [0.0] and coverage(none, some) == [0.0] and coverage(some, none) == [0.0]
    )
    assert np.isfinite(divergence(none, some)).all()
