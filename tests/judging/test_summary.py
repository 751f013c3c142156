"""Means and intervals over recordings, and the table."""

import doctest

import numpy as np
import pytest

from rvqlm.judging import summary
from rvqlm.judging.summary import cell, distance_of, halves_of, mean_of, table
from rvqlm.metrics.distances import frechet_distance, kernel_distance


def test_docstring_examples():
    assert doctest.testmod(summary).failed == 0


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400)
    found = mean_of(values, np.ones(400), [str(n) for n in range(400)])
    within = 1.96 * 2 / 20
    assert found["mean"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx(
        [values.mean() - within, values.mean() + within], abs=0.04
    )


def test_several_clips_of_a_recording_make_nothing_surer():
    rng = np.random.default_rng(0)
    values, names = rng.normal(size=40), [str(n) for n in range(40)]
    once = mean_of(values, np.ones(40), names)
    often = mean_of(np.repeat(values, 5), np.ones(200), np.repeat(names, 5))
    assert often["interval"] == pytest.approx(once["interval"])
    assert (often["clips"], often["recordings"]) == (200, 40)
    assert mean_of([1.0, 2.0], [1, 1], ["a", "a"])["interval"] is None


def test_weights_are_words():
    found = mean_of([0.5, 0.0], [2, 8], ["a", "b"])
    assert found["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_the_interval_of_a_distance_holds_it(distance):
    rng = np.random.default_rng(0)

    def some(shift, many):
        return {str(n): rng.normal(shift + rng.normal(0, 0.1), 1, (30, 3)) for n in range(many)}

    true = distance(*(np.concatenate(list(some(s, 100).values())) for s in (0, 1)))
    found = distance_of(distance, some(0, 40), some(1, 40))
    low, high = found["interval"]
    assert low < true < high and high - low < true
    assert found["vectors"] == [1200, 1200]
    same = some(0, 12)
    assert distance_of(distance, same, same)["mean"] == 0
    a, b = halves_of(same)
    assert len(a) == len(b) == 6 and not a.keys() & b.keys()
    assert distance_of(distance, {"a": np.zeros((1, 3))}, same)["mean"] is None


def test_the_table():
    found = {
        "recordings": {"x.wer": {"mean": 0.25, "interval": [0.2, 0.3]}},
        "samples": {
            "x.wer": {"mean": 1.5, "interval": None},
            "x.mos": {"mean": 3.21, "interval": None},
        },
    }
    lines = table(
        found, {"x.wer": ("lower", True), "x.mos": ("higher", False), "y": ("lower", False)}
    )
    assert [line.split() for line in lines] == [
        ["recordings", "samples"],
        ["x.wer", "↓", "25.0", "%", "(20.0", "to", "30.0)", "150.0", "%"],
        ["x.mos", "↑", "-", "3.21"],
    ]
    assert cell({"mean": 0.0123, "interval": [0.0, 0.1]}) == "0.012 (0.000 to 0.100)"
