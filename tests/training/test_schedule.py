import math

import pytest

from rvqlm.training.schedule import Budget, Schedule


def test_progress_is_that_of_the_budget_nearest_its_end():
    budget = Budget(num_epochs=4, max_steps=100, max_minutes=2)
    assert budget.progress(step=10, epochs=1.0, elapsed=12.0) == 0.25
    assert budget.progress(step=60, epochs=1.0, elapsed=12.0) == 0.6
    assert budget.progress(step=60, epochs=1.0, elapsed=90.0) == 0.75
    assert budget.progress(step=60, epochs=9.0, elapsed=90.0) == 1.0
    assert Budget(max_minutes=1).progress(10**6, 10**6, 30.0) == 0.5


def test_cosine_with_warmup_in_steps():
    schedule = Schedule("cosine", warmup_steps=5, eta_min_ratio=0.1)
    for step in range(50):
        p = step / 50
        decay = 0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2
        assert schedule.factor(step, p) == pytest.approx(min(1, (step + 1) / 5) * decay)
    assert schedule.factor(50, 1.0) == pytest.approx(0.1)


def test_warmup_ratio_and_its_default():
    assert Schedule("constant", warmup_ratio=0.5).factor(0, 0.25) == 0.5
    assert Schedule("constant").factor(0, 0.01) == pytest.approx(0.5)
    assert Schedule("constant", warmup_ratio=0.0).factor(0, 0.0) == 1.0
    assert Schedule("constant", warmup_steps=0).factor(0, 0.0) == 1.0


def test_constant_stays():
    assert {Schedule("constant").factor(n, n / 100) for n in range(2, 101)} == {1.0}
