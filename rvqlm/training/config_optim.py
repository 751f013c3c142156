"""The trainer's flags of the group `optim`: optimizer, schedule and averaging."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal


@dataclass
class OptimConfig:
    """Optimizer, schedule and averaging."""

    optimizer: Literal["adamw", "muon", "scaled_adam"] = "adamw"
    """muon: orthogonalised momentum for the matrices between hidden layers, AdamW for the rest;
    fewer steps to the same loss, each a little longer. scaled_adam: changes in proportion to the
    size of each tensor, as in icefall's recipes, where --base-lr is 0.045 and --schedule eden."""
    base_lr: float = 1e-3
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves both; that
    of scaled_adam is relative to the size of the weights and has to be given: about 0.045."""
    embedding_lr: float | None = None
    """Peak learning rate of the embedding tables; None: --base-lr."""
    schedule: Literal["cosine", "linear", "step", "plateau", "eden", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine and linear end with the budget, step goes by epochs,
    plateau by validations, eden by steps and epochs; constant stays."""
    warmup_steps: int | None = None
    """Steps over which the learning rate grows from 0."""
    warmup_ratio: float | None = None
    """The same as a share of the budget; 0.02 when neither is given."""
    eta_min_ratio: float = 0.0
    """Where cosine and linear end and step and plateau stop falling, as a share of --base-lr."""
    lr_gamma: float = 0.5
    """What --schedule step and plateau multiply the learning rate by, each time."""
    lr_step_epochs: float = 10.0
    """Epochs from one fall of --schedule step to the next."""
    plateau_patience: int = 3
    """Validations without a new lowest loss that --schedule plateau lets pass; one more and the
    learning rate falls."""
    lr_batches: float = 7500.0
    """--schedule eden: steps at which its first factor is 0.84; later it falls as the root."""
    lr_epochs: float = 3.5
    """--schedule eden: epochs at which its second factor is 0.84; later it falls as the root."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the gradient's mean and square."""
    eps: float = 1e-8
    """Added to the root of the square in Adam's denominator."""
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
    """Decay of the averaged weights that validation, samples and export use. 0: no averaging."""
    ema_warmup: bool = True
    """Let the decay grow as (1 + n) / (10 + n) up to --ema-decay, so that the average is not one
    over random beginnings."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found: list[str] = []

        def need(ok: bool, message: str) -> None:
            if not ok:
                found.append(message)

        need(isfinite(self.base_lr) and self.base_lr > 0, f"--base-lr {self.base_lr}: above 0")
        need(
            self.optimizer != "scaled_adam" or self.base_lr != OptimConfig.base_lr,
            f"--base-lr {self.base_lr} is for the other optimizers: scaled_adam's is relative to "
            "the size of the weights, give about 0.045",
        )
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
        need(0 < self.lr_gamma < 1, f"--lr-gamma {self.lr_gamma}: between 0 and 1")
        need(self.plateau_patience >= 0, f"--plateau-patience {self.plateau_patience}: at least 0")
        for name in ("lr_step_epochs", "lr_batches", "lr_epochs", "eps", "embedding_lr"):
            value = getattr(self, name)
            good = value is None or (isfinite(value) and value > 0)
            need(good, f"--{name.replace('_', '-')} {value}: above 0")
        found += self._without_effect()
        first, second = self.betas
        need(0 <= first < 1 and 0 <= second < 1, f"--betas {first} {second}: each in [0, 1)")
        need(0 <= self.momentum < 1, f"--momentum {self.momentum}: in [0, 1)")
        need(0 <= self.ema_decay < 1, f"--ema-decay {self.ema_decay}: in [0, 1)")
        for name, low in (("weight_decay", 0), ("clip_grad_norm", 0), ("accum", 1)):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            need(isfinite(value) and value >= low, f"{flag} {value}: at least {low}")
        return found

    def _without_effect(self) -> list[str]:
        """Flags that were changed and mean nothing with the chosen optimizer and schedule."""
        schedules = {
            "eta_min_ratio": ("cosine", "linear", "step", "plateau"),
            "lr_gamma": ("step", "plateau"),
            "lr_step_epochs": ("step",),
            "plateau_patience": ("plateau",),
            "lr_batches": ("eden",),
            "lr_epochs": ("eden",),
        }
        optimizers = {"momentum": ("muon",), "weight_decay": ("adamw", "muon")}
        default, found = OptimConfig(), []
        for of, flag in ((schedules, "schedule"), (optimizers, "optimizer")):
            for name, needed in of.items():
                if (
                    getattr(self, name) != getattr(default, name)
                    and getattr(self, flag) not in needed
                ):
                    found.append(
                        f"--{name.replace('_', '-')} has no meaning with --{flag} "
                        f"{getattr(self, flag)}, only with {' or '.join(needed)}"
                    )
        if not self.ema_decay and not self.ema_warmup:
            found.append("--no-ema-warmup has no meaning with --ema-decay 0")
        return found
