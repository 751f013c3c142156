"""Flags of optimizer and schedule: each belongs to some choices and is refused with the others."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
from toy import toy_flags

from rvqlm.errors import UserError
from rvqlm.training.config import check
from rvqlm.training.config import OptimConfig

OPTIMIZERS, SCHEDULES = (
    get_args(get_type_hints(OptimConfig)[k]) for k in ("optimizer", "schedule")
)
CHANGED = {
    "eta_min_ratio": (0.1, {"cosine", "linear", "step", "plateau"}),
    "lr_gamma": (0.3, {"step", "plateau"}),
    "lr_step_epochs": (3.0, {"step"}),
    "plateau_patience": (7, {"plateau"}),
    "lr_batches": (99.0, {"eden"}),
    "lr_epochs": (2.0, {"eden"}),
    "momentum": (0.5, {"muon"}),
    "weight_decay": (0.3, {"adamw", "muon"}),
}
BAD = {
    "lr_gamma": (0.0, 1.0, float("nan")),
    "lr_step_epochs": (0.0, float("inf")),
    "plateau_patience": (-1,),
    "lr_batches": (0.0, -5.0),
    "lr_epochs": (float("nan"),),
    "eps": (0.0,),
    "embedding_lr": (0.0, float("inf")),
}


@pytest.mark.parametrize("name", CHANGED)
def test_flags_are_refused_where_they_mean_nothing(name, tmp_path):
    value, needed = CHANGED[name]
    of = "optimizer" if name in ("momentum", "weight_decay") else "schedule"
    for choice in OPTIMIZERS if of == "optimizer" else SCHEDULES:
        flags = toy_flags(tmp_path, max_steps=9, **{of: choice, name: value})
        if choice in needed:
            check(flags)
            continue
        with pytest.raises(UserError) as error:
            check(flags)
        flag = f"--{name.replace('_', '-')}"
        assert str(error.value).startswith(f"{flag} has no meaning with --{of} {choice}")


def test_every_choice_with_its_defaults_passes(tmp_path):
    for optimizer in OPTIMIZERS:
        for schedule in SCHEDULES:
            check(toy_flags(tmp_path, max_steps=9, optimizer=optimizer, schedule=schedule))


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range(name, tmp_path):
    choice = next(iter(CHANGED.get(name, (0, {"cosine"}))[1]))
    if name == "lr_gamma":
        choice = "step"
    for value in BAD[name]:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}"):
            check(toy_flags(tmp_path, max_steps=9, schedule=choice, **{name: value}))


def test_the_learning_rate_of_scaled_adam_has_to_be_given(tmp_path):
    default = {f.name: f.default for f in dataclasses.fields(OptimConfig)}["base_lr"]
    check(toy_flags(tmp_path, max_steps=9, base_lr=default))
    with pytest.raises(UserError, match=r"--base-lr 0\.001 .* give about 0\.045"):
        check(toy_flags(tmp_path, max_steps=9, optimizer="scaled_adam", base_lr=default))


def test_averaging_that_is_off_has_no_warm_up(tmp_path):
    with pytest.raises(UserError, match="--no-ema-warmup has no meaning with --ema-decay 0"):
        check(toy_flags(tmp_path, max_steps=9, ema_decay=0.0, ema_warmup=False))
