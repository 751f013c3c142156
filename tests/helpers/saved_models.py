"""Checkpoints of toy models of every family, as the trainer writes them, without a training."""

from __future__ import annotations

from pathlib import Path

import torch

from rvqlm.checkpoints.file import FORMAT, save_checkpoint
from rvqlm.models.factory import model_identity

FLAGS = {"exp-dir": "/home/ada/exp", "manifest-dir": "/home/ada/tokens", "seed": 3,
         "condition-prompt-seconds": 2.0, "max-duration": 7.0}  # fmt: skip


def checkpoint_of(model, step: int = 7, ema: bool = True) -> dict:
    """Its averages are the weights and a little."""
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    averages = {k: v + 0.01 if v.is_floating_point() else v for k, v in weights.items()}
    return {
        "format": FORMAT,
        "rvqlm_version": "0.1.0",
        **model_identity(model),
        "config": FLAGS,
        "model": weights,
        "ema": averages if ema else None,
        "optimizer": [{"exp_avg": torch.ones(3)}],
        "loader": {"epoch": 0, "step": step},
        "step": step,
        "epoch": step // 5,
        "total_frames": 100 * step,
        "elapsed": 60.0 * step,
        "best": {"loss": float("inf"), "step": 0},
    }


def save_model(model, path: Path, step: int = 7, ema: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint_of(model, step, ema), path)
    return path
