"""The state of a trainer: what a checkpoint holds, when it may be continued, where it goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from rvqlm.checkpoints.archives import archive
from rvqlm.checkpoints.file import FORMAT, load_checkpoint, require_resumable
from rvqlm.checkpoints.sharded import load_sharded, save_sharded
from rvqlm.cli import flatten
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.version import __version__


def state_of(trainer) -> dict:
    """Everything needed to go on; plain values and tensors."""
    t = trainer
    return {
        "format": FORMAT,
        "rvqlm_version": __version__,
        "model_name": t.model.name,
        "model_config": dataclasses.asdict(t.model.config),
        "codec": t.info.to_dict(),
        "conditions": {k: c.to_dict() for k, c in t.model.conditions.items()},
        "config": flatten(t.config),
        "model": t.model.state_dict(),
        "ema": t.ema.state_dict(t.model) if t.ema is not None else None,
        "ema_updates": t.ema.updates if t.ema is not None else 0,
        "optimizer": t.optimizers.state_dict(),
        "schedule": {"progress": t.progress, "lr": t.lr, **t.schedule.state_dict()},
        "stepper": t.stepper.state_dict(),
        "loader": t.train.state_dict(),
        "rng": {"seed": t.config.seed},
        "step": t.step,
        "epoch": t.train.epoch,
        "total_frames": t.total_frames,
        "elapsed": t.elapsed,
        "since": dict(t.since),
        "best": t.best,
        "validated": t.validated,
        "interval": t.interval.state_dict(),
        "epoch_meter": t.epoch_meter.state_dict(),
    }


def restore(trainer, state: dict, where: str) -> None:
    """Continue from a checkpoint; `UserError` if model, codec, optimizer, seed or data differ."""
    t = trainer
    require_resumable(state, where)
    require_same_run(t, state, where)
    _restore_weights(t, state)
    t.schedule.load_state_dict(state["schedule"])
    t.stepper.load_state_dict(state["stepper"])
    t.train.load_state_dict(state["loader"])
    t.step, t.total_frames = state["step"], state["total_frames"]
    t.elapsed, t.since = state["elapsed"], dict(state["since"])
    t.best, t.validated = dict(state["best"]), dict(state["validated"])
    if t.world.main:
        t.interval.load_state_dict(state["interval"])
    else:  # the sums are with the main rank; what all ranks know alike is with all
        t.interval.load_state_dict(
            {**state["interval"], "totals": _nothing(state["interval"]["totals"])}
        )
    t.epoch_meter.load_state_dict(state["epoch_meter"])


def _nothing(totals: dict) -> dict:
    """Sums of no steps with all names of `totals`: ranks add up one name after the other."""
    return {
        "sums": torch.zeros_like(totals["sums"]),
        "extra": {name: torch.zeros_like(sums) for name, sums in totals["extra"].items()},
        "frames": 0,
        "cells": 0,
    }


def restore_weights(trainer, path: Path) -> int:
    """Weights, moments and averages of a checkpoint of this run, and nothing else; its step."""
    state = load(trainer, path)
    _restore_weights(trainer, state)
    trainer.optimizers.zero_grad()
    return state["step"]


def _restore_weights(t, state: dict) -> None:
    t.model.load_state_dict(state["model"])
    t.optimizers.load_state_dict(state["optimizer"])
    if t.ema is not None:
        t.ema.load_state_dict(state["ema"], state["ema_updates"])


def load(trainer, path: Path) -> dict:
    """The checkpoint as this trainer can take it in: whole tensors, or its shards of them. All
    ranks call it."""
    state = error = None
    try:
        state = load_checkpoint(path, gather=False)
    except UserError as e:
        error = str(e)
    trainer.world.raise_together(error)
    return load_sharded(path, state, state_of(trainer), trainer.world)


def save(trainer, improved: bool, archived: bool) -> None:
    """Write latest.pt, with `improved` best.pt of the same content, and archives as the flags
    say. All ranks call it."""
    t, flags = trainer, trainer.config.save
    latest, best = t.exp_dir / "latest.pt", t.exp_dir / "best.pt"
    if improved:
        save_sharded(state_of(t), best, t.world, also=latest)
    else:
        save_sharded(state_of(t), latest, t.world)
    error = None
    try:
        if archived and t.world.main:
            archive(t.exp_dir, latest, t.step, flags.keep_archived)
        if improved and flags.archive_best and t.world.main:
            archive(t.exp_dir, best, t.step, flags.keep_archived)
    except UserError as e:
        error = str(e)
    t.world.raise_together(error)


@contextmanager
def weights_for_samples(trainer) -> Iterator:
    """The model with the averaged weights, ready to generate on any rank; all ranks enter."""
    averaged = trainer.ema.swapped() if trainer.ema is not None else nullcontext()
    with averaged, trainer.world.whole(trainer.model) as model:
        yield model


def require_same_run(trainer, state: dict, where: str) -> None:
    """Refuse a checkpoint that this command line does not continue, naming every difference."""
    model, config = trainer.model, trainer.config
    mine = {
        "--model-name": model.name,
        "--seed": config.seed,
        "--optimizer": config.optim.optimizer,
    }
    theirs = {
        "--model-name": state["model_name"],
        "--seed": state["rng"]["seed"],
        "--optimizer": state["config"].get("optimizer"),
    }
    if model.name == state["model_name"]:
        for name, value in dataclasses.asdict(model.config).items():
            flag = f"--{name.replace('_', '-')}"
            mine[flag], theirs[flag] = value, state["model_config"].get(name)
    mine["averaging (--ema-decay above 0)"] = trainer.ema is not None
    theirs["averaging (--ema-decay above 0)"] = state["ema"] is not None
    differing = [f"{k} was {theirs[k]}, is {mine[k]}" for k in mine if mine[k] != theirs[k]]
    if differing:
        raise UserError(
            f"{where} is of another run: {'; '.join(differing)}; give the same flags "
            f"(--config {Path(where).parent / 'config.yaml'}), another --exp-dir, or --resume no"
        )
    for kind, info in model.conditions.items():
        before = ConditionInfo.from_dict(state["conditions"][kind])
        info.require_same(before, config.manifest_dir, where)
    trainer.info.require_same(CodecInfo.from_dict(state["codec"]), config.manifest_dir, where)
