import json
import math

import numpy as np
import pytest
import torch

from rvqlm.training.config import GuardConfig
from rvqlm.training.guards import LossGuard, LossScale


def noise(number, mean=4.0, deviation=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, number).tolist()


def verdicts(guard, losses):
    return [guard.judge(loss, 1.0) for loss in losses]


def settled(**flags) -> LossGuard:
    guard = LossGuard(GuardConfig(**flags))
    assert set(verdicts(guard, noise(1000))) == {"good"}
    return guard


def test_the_running_statistics_are_those_of_the_series():
    guard, losses = LossGuard(GuardConfig(outlier_warmup_steps=2)), noise(150)
    verdicts(guard, losses)
    assert guard.mean == pytest.approx(np.mean(losses))  # a plain mean, while shorter than memory
    assert guard.variance == pytest.approx(np.var(losses))
    verdicts(guard, noise(2000, mean=4.1, seed=1))
    assert guard.mean == pytest.approx(4.1, abs=0.03)
    assert math.sqrt(guard.variance) == pytest.approx(0.1, rel=0.15)


def test_a_spike_is_skipped_and_leaves_the_rule_strict():
    guard = settled()
    before = guard.threshold
    for spike in (5.0, 1e30):
        assert guard.judge(spike, 1.0) == "outlier"
        assert guard.judge(4.0, 1.0) == "good" and guard.in_a_row == 0
    assert before < guard.threshold < before + 0.15
    assert guard.counts == {"nonfinite": 0, "outlier": 2}
    assert guard.judge(1.0, 1e6) == "good"  # a low loss is no harm, a large gradient is clipped


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_skipped_from_the_first_step_and_never_averaged(bad):
    guard = LossGuard(GuardConfig(outlier_deviations=0))
    assert guard.judge(bad, 1.0) == guard.judge(4.0, bad) == "nonfinite"
    assert (guard.seen, guard.counts["nonfinite"], guard.in_a_row) == (0, 2, 2)
    assert guard.judge(4.0, 1.0) == "good" and guard.mean == 4.0


def test_a_lasting_change_of_level_is_accepted_before_a_rollback():
    guard = settled()
    level = 4.0 + 12 * 0.1  # deviations
    said = verdicts(guard, noise(40, mean=level))
    skipped = said.count("outlier")
    assert 1 <= skipped < guard.config.max_skips
    assert said[:skipped] == ["outlier"] * skipped  # all at the beginning
    assert not guard.must_roll_back


def test_a_divergence_ends_in_a_rollback():
    guard = settled(max_skips=4)
    assert verdicts(guard, [9.0, 9.5, float("nan")]) == ["outlier", "outlier", "nonfinite"]
    assert not guard.must_roll_back
    guard.judge(12.0, 1.0)
    assert guard.must_roll_back and not guard.exhausted


def test_a_slow_drift_and_a_steep_start_are_no_outliers():
    guard = LossGuard(GuardConfig(outlier_warmup_steps=20))
    start = [7 * math.exp(-n / 50) + 3 for n in range(400)]
    assert set(verdicts(guard, [a + b for a, b in zip(start, noise(400, 0))])) == {"good"}
    drift = [3 + n / 500 for n in range(3000)]
    assert set(verdicts(guard, [a + b for a, b in zip(drift, noise(3000, 0))])) == {"good"}


def test_a_loss_that_hardly_varies_may_wander_a_little():
    guard = LossGuard(GuardConfig(outlier_warmup_steps=5))
    verdicts(guard, [4.0] * 500)
    assert guard.judge(4.0 * 1.05, 1.0) == "good" and guard.judge(4.0 * 1.09, 1.0) == "outlier"
    learnt = LossGuard(GuardConfig(outlier_warmup_steps=5))
    verdicts(learnt, [1e-4] * 500)
    assert learnt.judge(0.004, 1.0) == "good" and learnt.judge(0.05, 1.0) == "outlier"


def test_a_spike_while_nothing_is_judged_does_not_blind_the_rule():
    guard = LossGuard(GuardConfig(outlier_warmup_steps=50))
    assert guard.judge(4.0, 1.0) == guard.judge(1e30, 1.0) == "good"
    verdicts(guard, noise(100))
    assert guard.threshold < 6


def test_never_judged():
    guard = LossGuard(GuardConfig(outlier_deviations=0))
    assert set(verdicts(guard, [*noise(300), 1e9])) == {"good"}


def test_rollbacks_are_counted_and_run_out():
    guard = settled(max_skips=2, max_rollbacks=2, rollback_lr=0.5)
    for returned in range(2):
        assert guard.lr_factor == 0.5**returned
        verdicts(guard, [float("nan")] * 2)
        assert guard.must_roll_back and not guard.exhausted
        guard.rolled_back()
        assert (guard.in_a_row, guard.seen, guard.must_roll_back) == (0, 0, False)
        assert guard.judge(90.0, 1.0) == "good"  # another level: statistics start anew
        assert not guard.exhausted  # the last return is a return like others
    verdicts(guard, [float("nan")] * 2)
    assert guard.rollbacks == 2 and guard.exhausted
    none = LossGuard(GuardConfig(max_skips=1, max_rollbacks=0))
    assert not none.exhausted
    none.judge(float("nan"), 1.0)
    assert none.exhausted


def test_state_goes_on_exactly():
    config = GuardConfig(outlier_warmup_steps=10, max_skips=3)
    losses = [*noise(300), 9.0, 9.0, 4.0, float("nan"), 9.0, *noise(50, seed=2), 5.0]
    whole, other = LossGuard(config), LossGuard(config)
    for number, loss in enumerate(losses):
        expected = whole.judge(loss, 1.0)
        if number % 7 == 0:  # an interruption
            state = json.loads(json.dumps(other.state_dict()))
            other = LossGuard(config)
            other.load_state_dict(state)
        assert other.judge(loss, 1.0) == expected
        assert other.state_dict() == whole.state_dict()
    assert whole.counts == {"nonfinite": 1, "outlier": 4}
    saved = whole.state_dict()
    whole.judge(float("nan"), 1.0)
    assert saved["counts"] == {"nonfinite": 1, "outlier": 4}  # a state is no view


def test_loss_scale():
    scale = LossScale(torch.float16, initial=8.0, growth_steps=2)
    assert scale.overflowed(1.0, math.inf)
    assert scale.value == 4.0 and scale.apply(torch.tensor(3.0)) == 12.0
    assert not scale.overflowed(1.0, 1.0)
    again = LossScale(torch.float16)
    again.load_state_dict(scale.state_dict())
    again.growth_steps = 2
    assert not again.overflowed(1.0, 1.0) and again.value == 8.0
    assert not again.overflowed(math.nan, math.nan) and again.value == 8.0
    again.value = 2.0**-25
    assert not again.overflowed(1.0, math.inf)
    plain = LossScale(torch.float32)
    assert not plain.overflowed(1.0, math.inf)
    assert plain.value == 1.0 and plain.apply(torch.tensor(3.0)) == 3.0
