"""Statistics of listening tests against closed forms and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from rvqlm.metrics.opinions import holm, mean_with_interval, sign_test, signs_of_items


def test_the_sign_test_is_the_exact_binomial_one():
    for first in range(8):
        for second in range(1, 30, 4):
            wanted = binomtest(first, first + second).pvalue
            assert sign_test(first, second) == pytest.approx(wanted)
            assert sign_test(second, first) == sign_test(first, second)


def test_holm():
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([]) == [] and holm([0.4]) == [0.4] and max(holm([0.9, 0.8])) <= 1


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(25):  # grades that items and raters both move
        items, raters = rng.normal(size=(25, 1)), rng.normal(size=(1, 8))
        answers = 3 + items + raters + 0.5 * rng.normal(size=(25, 8))
        answers[rng.random(answers.shape) < 0.2] = np.nan
        mean, (low, high) = mean_with_interval(answers)
        assert mean == pytest.approx(np.nanmean(answers)) and low < mean < high
        held.append(low <= 3 <= high)
    assert np.mean(held) > 0.85  # 8 raters are few, and the bootstrap knows no more than they


def test_one_rater_and_one_item():
    assert mean_with_interval(np.array([[1.0, 3.0]])) == (2.0, None)
    mean, (low, high) = mean_with_interval(np.array([[1.0], [2.0], [np.nan], [3.0]]))
    assert mean == 2.0 and 1 <= low < 2 < high <= 3
    with pytest.raises(ValueError, match="no answers"):
        mean_with_interval(np.full((2, 2), np.nan))


def test_items_are_counted_and_not_answers():
    answers = np.array([[1, 1, 1], [1, -1, np.nan], [-1, 0, 0], [np.nan, 1, 0]])
    assert signs_of_items(answers) == (2, 1)
