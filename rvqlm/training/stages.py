"""Families trained in stages: stage N works in EXP/stageN and begins from the best of the stage
before, so that one experiment directory holds the whole model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.errors import UserError


def enter_stage(config, model):
    """The trainer's config with the directory of the model's stage."""
    name = f"stage{model.stage}"
    if not model.stage or Path(config.exp_dir).name == name:  # as EXP/stageN/config.yaml says it
        return config
    return dataclasses.replace(config, exp_dir=str(Path(config.exp_dir) / name))


@torch.no_grad()
def begin_from_previous(model, exp_dir: Path) -> Path | None:
    """Load the averaged weights of the previous stage's best checkpoint into the model; its path,
    or None in the first stage.

    :param exp_dir: of this stage.
    :raises UserError: no such checkpoint, or one of another shape.
    """
    if model.stage < 2:
        return None
    path = exp_dir.parent / f"stage{model.stage - 1}" / "best.pt"
    if not path.exists():
        raise UserError(
            f"--train-stage {model.stage} begins from {path}, which is not there: train with "
            f"--train-stage {model.stage - 1} and the same --exp-dir first, or both at once with "
            "--train-stage 0"
        )
    state = load_checkpoint(path)
    mine, theirs = dataclasses.asdict(model.config), state["model_config"]
    differing = [
        f"--{k.replace('_', '-')} was {theirs.get(k)}, is {mine[k]}"
        for k in mine
        if k != "train_stage" and mine[k] != theirs.get(k)
    ]
    if differing or state["model_name"] != model.name:
        raise UserError(
            f"{path} is of another model ({state['model_name']}: {'; '.join(differing)}); give the "
            "flags of the stage before"
        )
    model.load_state_dict(state["ema"] if state["ema"] is not None else state["model"])
    return path
