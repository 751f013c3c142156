"""The trainer's flags of the group `optim`: optimizer, schedule and averaging."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal


@dataclass
class OptimConfig:
    """Optimizer, schedule and averaging."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for the matrices between hidden layers, AdamW for the rest;
    fewer steps to the same loss, each a little longer."""
    base_lr: float = 1e-3
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves both."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int | None = None
    """Steps over which the learning rate grows from 0."""
    warmup_ratio: float | None = None
    """The same as a share of the budget; 0.02 when neither is given."""
    eta_min_ratio: float = 0.0
    """Where the cosine ends, as a share of --base-lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and square."""
    momentum: float = 0.95
    """Muon's decay rate of the gradient's mean."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; gains, biases and other vectors are never decayed."""
    clip_grad_norm: float = 1.0
    """Scale gradients down to this norm; 0: never. The gradient is that of the mean loss of a
    token."""
    accum: int = 1
    """Micro-batches of --max-duration in one step; equals one larger batch exactly."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that validation and generation use; it warms up as
    (1 + n) / (10 + n). 0: no averaging."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found: list[str] = []

        def need(ok: bool, message: str) -> None:
            if not ok:
                found.append(message)

        need(isfinite(self.base_lr) and self.base_lr > 0, f"--base-lr {self.base_lr}: above 0")
        need(
            self.warmup_steps is None or self.warmup_ratio is None,
            "--warmup-steps and --warmup-ratio exclude each other",
        )
        if self.warmup_steps is not None:
            need(self.warmup_steps >= 0, f"--warmup-steps {self.warmup_steps}: at least 0")
            need(
                not config.max_steps or self.warmup_steps < config.max_steps,
                f"--warmup-steps {self.warmup_steps} is not below --max-steps {config.max_steps}",
            )
        if self.warmup_ratio is not None:
            need(0 <= self.warmup_ratio < 1, f"--warmup-ratio {self.warmup_ratio}: in [0, 1)")
        need(0 <= self.eta_min_ratio <= 1, f"--eta-min-ratio {self.eta_min_ratio}: in [0, 1]")
        need(
            self.eta_min_ratio == 0 or self.schedule != "constant",
            "--eta-min-ratio has no meaning with --schedule constant",
        )
        first, second = self.betas
        need(0 <= first < 1 and 0 <= second < 1, f"--betas {first} {second}: each in [0, 1)")
        need(0 <= self.momentum < 1, f"--momentum {self.momentum}: in [0, 1)")
        need(0 <= self.ema_decay < 1, f"--ema-decay {self.ema_decay}: in [0, 1)")
        for name, low in (("weight_decay", 0), ("clip_grad_norm", 0), ("accum", 1)):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            need(isfinite(value) and value >= low, f"{flag} {value}: at least {low}")
        return found
