import numpy as np

from rvqlm.metrics import bootstrap
from rvqlm.metrics.bootstrap import bootstrapped, interval, ratio, ratio_interval


def test_as_drawn_one_by_one():
    """The sums of items drawn with replacement, whatever fits into a block."""
    rng = np.random.default_rng(1)
    values, counts = rng.random(7), rng.integers(1, 5, 7).astype(float)
    drawn = np.random.default_rng(0).integers(7, size=(bootstrap.DRAWS, 7))
    expected = values[drawn].sum(1) / counts[drawn].sum(1)
    assert np.allclose(bootstrapped(ratio, values, counts), expected)
    ends = np.percentile(expected, [2.5, 97.5])
    assert np.allclose(ratio_interval(values, counts), ends)


def test_blocks_change_nothing(monkeypatch):
    wide = np.random.default_rng(2).random((9, 2, 3))
    whole = bootstrapped(lambda x: x, wide)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    assert np.allclose(bootstrapped(lambda x: x, wide), whole)
    assert np.array(interval(whole)).shape == (2, 3, 2)


def test_nothing_counted_and_single_items():
    assert ratio_interval(np.ones(1), np.ones(1)) is None
    found = ratio_interval(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert found == [0.5, 0.5]  # draws without any count are left out


def test_it_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(3), 0
    for _ in range(30):
        low, high = ratio_interval(rng.normal(1.0, 0.3, 40), np.ones(40))
        held += low <= 1.0 <= high
    assert held >= 24
