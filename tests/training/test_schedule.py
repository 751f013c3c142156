import io
import math
import random

import pytest
import torch

from rvqlm.training.config import OptimConfig
from rvqlm.training.schedule import SCHEDULES, Budget, Schedule


def make(name: str, **flags) -> Schedule:
    return Schedule(OptimConfig(schedule=name, **{"warmup_steps": 0, **flags}))


def test_progress_is_that_of_the_budget_nearest_its_end():
    budget = Budget(num_epochs=4, max_steps=100, max_minutes=2)
    assert budget.progress(step=10, epochs=1.0, elapsed=12.0) == 0.25
    assert budget.progress(step=60, epochs=1.0, elapsed=12.0) == 0.6
    assert budget.progress(step=60, epochs=1.0, elapsed=90.0) == 0.75
    assert budget.progress(step=60, epochs=9.0, elapsed=90.0) == 1.0
    assert Budget(max_minutes=1).progress(10**6, 10**6, 30.0) == 0.5


def test_cosine_with_warmup_in_steps():
    schedule = make("cosine", warmup_steps=5, eta_min_ratio=0.1)
    for step in range(50):
        p = step / 50
        decay = 0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2
        assert schedule.factor(step, 0.0, p) == pytest.approx(min(1, (step + 1) / 5) * decay)
    assert schedule.factor(50, 0.0, 1.0) == pytest.approx(0.1)


def test_linear():
    schedule = make("linear", eta_min_ratio=0.2)
    assert [schedule.factor(9, 1.0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])


def test_step_goes_by_epochs():
    schedule = make("step", lr_gamma=0.1, lr_step_epochs=2.0, eta_min_ratio=0.005)
    epochs = (0.0, 1.99, 2.0, 3.9, 4.0, 5.9, 6.0)
    expected = (1, 1, 0.1, 0.1, 0.01, 0.01, 0.005)
    assert [schedule.factor(0, e, 0.9) for e in epochs] == pytest.approx(expected)


def test_eden_is_the_formula():
    schedule = make("eden", lr_batches=100.0, lr_epochs=3.0, warmup_steps=50)
    for step, epoch in ((0, 0.0), (60, 0.5), (1000, 7.25)):
        by_step = ((step**2 + 100**2) / 100**2) ** -0.25
        by_epoch = ((epoch**2 + 9) / 9) ** -0.25
        warm = min(1.0, (step + 1) / 50)
        assert schedule.factor(step, epoch, 0.3) == pytest.approx(warm * by_step * by_epoch)


def test_plateau_waits_falls_and_survives_a_checkpoint():
    schedule = make("plateau", plateau_patience=2, lr_gamma=0.5, eta_min_ratio=0.2)
    factors = []
    for loss in (5.0, 4.0, 4.0, 4.1, 4.2, 3.9, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0):
        again = make("plateau", plateau_patience=2, lr_gamma=0.5, eta_min_ratio=0.2)
        again.load_state_dict(schedule.state_dict())
        schedule = again
        schedule.observe(loss)
        factors.append(schedule.factor(1, 1.0, 0.5))
    # a third validation without a new best is one more than the patience
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_plateau_is_that_of_torch():
    rng = random.Random(0)
    losses = [3 + rng.random() / (1 + n / 50) for n in range(200)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.7, patience=4, threshold=0, min_lr=0.01
    )
    schedule, factors = make("plateau", plateau_patience=4, lr_gamma=0.7, eta_min_ratio=0.01), set()
    for n, loss in enumerate(losses):
        theirs.step(loss)
        schedule.observe(loss)
        if n % 7 == 0:  # through a file
            file = io.BytesIO()
            torch.save({"progress": 0.1, **schedule.state_dict()}, file)
            file.seek(0)
            schedule = Schedule(schedule.config)
            schedule.load_state_dict(torch.load(file, weights_only=True))
        factors.add(schedule.factor(n, 0.0, 0.0))
        assert schedule.factor(n, 0.0, 0.0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(factors) > 5 and min(factors) == 0.01


def test_nan_is_no_new_lowest():
    schedule = make("plateau", plateau_patience=0)
    for loss in (2.0, math.nan, 1.0):
        schedule.observe(loss)
    assert schedule.factor(0, 0.0, 0.0) == 0.5 and schedule.best == 1.0


def test_state_of_a_checkpoint_without_plateau():
    schedule = make("plateau")
    schedule.load_state_dict({"progress": 0.5, "lr": 0.1})
    assert schedule.state_dict() == make("plateau").state_dict()


def test_only_plateau_takes_notice_of_losses():
    for name in SCHEDULES.keys() - {"plateau"}:
        schedule = make(name)
        before = schedule.factor(5, 0.5, 0.5)
        for _ in range(20):
            schedule.observe(1.0)
        assert schedule.factor(5, 0.5, 0.5) == before


def test_warmup_ratio_and_its_default():
    def constant(**flags):
        return Schedule(OptimConfig(schedule="constant", **flags))

    assert constant(warmup_ratio=0.5).factor(0, 0.0, 0.25) == 0.5
    assert constant().factor(0, 0.0, 0.01) == pytest.approx(0.5)
    assert constant(warmup_ratio=0.0).factor(0, 0.0, 0.0) == 1.0
    assert constant(warmup_steps=0).factor(0, 0.0, 0.0) == 1.0
    assert {make("constant").factor(n, n / 10, n / 100) for n in range(2, 101)} == {1.0}


def test_all_schedules_end_lower_or_equal():
    for name in SCHEDULES:
        assert 0 <= make(name).factor(10**5, 50.0, 1.0) <= make(name).factor(0, 0.0, 0.0) == 1.0
