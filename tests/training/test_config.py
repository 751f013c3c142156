"""Contradictions between flags, values out of range, flags without effect: all are refused."""

from typing import get_args, get_type_hints

import pytest
from toy import toy_flags

from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.flags import Problems
from rvqlm.training.config import GuardConfig, OptimConfig, check
from rvqlm.training.schedule import SCHEDULES, Schedule, schedule_flags


def test_all_problems_in_one_message(tmp_path):
    flags = toy_flags(
        tmp_path,
        warmup_ratio=0.1,
        accum=0,
        ema_decay=1.0,
        betas=(0.9, 1.5),
        valid_every_steps=5,
        valid_every_minutes=1.0,
        data=PlanConfig(filter_min_duration=5, filter_max_duration=3),
    )
    with pytest.raises(UserError) as error:
        check(flags)
    for part in (
        *("no budget", "--warmup-steps and --warmup-ratio", "--accum 0", "--ema-decay 1.0"),
        *("--betas 0.9 1.5", "--valid-every-steps and --valid-every-minutes"),
        "--filter-min-duration",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 3}, "--warmup-steps 3 is not below --max-steps 3"),
        ({"schedule": "constant", "eta_min_ratio": 0.1}, "--eta-min-ratio"),
        ({"base_lr": float("nan")}, "--base-lr nan"),
        ({"max_minutes": -1.0}, "--max-minutes -1.0"),
        ({"weight_decay": float("inf")}, "--weight-decay inf"),
    ],
)
def test_contradictions(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        check(toy_flags(tmp_path, **values))


def test_good_flags_pass(tmp_path):
    check(toy_flags(tmp_path, max_minutes=7.0))


OPTIMIZERS = get_args(get_type_hints(OptimConfig)["optimizer"])
OF_SCHEDULES = {
    "eta_min_ratio": 0.1,
    "lr_gamma": 0.3,
    "lr_step_epochs": 3.0,
    "plateau_patience": 0,
    "lr_batches": 99.0,
    "lr_epochs": 2.0,
}
OF_OPTIMIZERS = {"momentum": (0.5, {"muon"}), "weight_decay": (0.3, {"adamw", "muon"})}
BAD = {
    "lr_gamma": (0.0, 1.0, float("nan")),
    "lr_step_epochs": (0.0, float("inf")),
    "plateau_patience": (-1,),
    "lr_batches": (0.0, -5.0),
    "lr_epochs": (float("nan"),),
    "eps": (0.0,),
    "embedding_lr": (0.0, float("inf")),
}


def refused(tmp_path, of: str, choice: str, name: str, value) -> bool:
    flags = toy_flags(tmp_path, max_steps=9, **{of: choice, name: value})
    if of == "optimizer":
        flags.optim.base_lr = 0.02
    try:
        check(flags)
    except UserError as e:
        assert str(e).startswith(f"--{name.replace('_', '-')} has no meaning with --{of} {choice}")
        return True
    return False


def course(schedule: str, **flags) -> list[float]:
    """The learning rate over a training whose validation loss soon stands still."""
    schedule = Schedule(OptimConfig(schedule=schedule, warmup_steps=0, **flags))
    factors = []
    for n in range(101):
        factors.append(schedule.factor(100 * n, float(n), n / 100))
        schedule.observe(max(3.0, 5 - n))
    return factors


@pytest.mark.parametrize("choice", SCHEDULES)
def test_flags_are_refused_exactly_where_they_change_no_schedule(choice, tmp_path):
    for name, value in OF_SCHEDULES.items():
        changes = course(choice) != course(choice, **{name: value})
        assert refused(tmp_path, "schedule", choice, name, value) != changes, name


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_flags_are_refused_where_the_optimizer_has_none(choice, tmp_path):
    for name, (value, needed) in OF_OPTIMIZERS.items():
        assert refused(tmp_path, "optimizer", choice, name, value) != (choice in needed)


def test_every_choice_with_its_defaults_passes(tmp_path):
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            check(toy_flags(tmp_path, max_steps=9, optimizer=optimizer, schedule=schedule))


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range(name, tmp_path):
    choice = next((s for s in SCHEDULES if name in schedule_flags(s)), "cosine")
    for value in BAD[name]:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}"):
            check(toy_flags(tmp_path, max_steps=9, schedule=choice, **{name: value}))


def test_the_learning_rate_of_scaled_adam_has_to_be_given(tmp_path):
    check(toy_flags(tmp_path, max_steps=9, base_lr=0.001))
    with pytest.raises(UserError, match=r"--base-lr 0\.001 .* give about 0\.045"):
        check(toy_flags(tmp_path, max_steps=9, optimizer="scaled_adam", base_lr=0.001))


def test_averaging_that_is_off_has_no_warm_up(tmp_path):
    with pytest.raises(UserError, match="--no-ema-warmup has no meaning with --ema-decay 0"):
        check(toy_flags(tmp_path, max_steps=9, ema_decay=0.0, ema_warmup=False))


def test_flags_of_the_guards():
    def problems(**flags):
        found = Problems(GuardConfig(**flags))
        found.group.examine(found, None)
        return found

    assert problems() == problems(outlier_deviations=0) == problems(max_rollbacks=0) == []
    wrong = problems(
        outlier_deviations=1.5, outlier_warmup_steps=1, max_skips=0, rollback_lr=0.0,
        max_rollbacks=-1, keep_bad_batches=-1, hang_minutes=float("nan"),
    )  # fmt: skip
    assert [p.split()[0] for p in wrong] == [
        "--outlier-deviations", "--outlier-warmup-steps", "--max-skips", "--rollback-lr",
        "--max-rollbacks", "--keep-bad-batches", "--hang-minutes",
    ]  # fmt: skip
    assert "--outlier-deviations 0" in problems(outlier_deviations=0, outlier_warmup_steps=7)[0]
    assert "--max-rollbacks 0" in problems(max_rollbacks=0, rollback_lr=0.3)[0]
