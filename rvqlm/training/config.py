"""The trainer's flags: one dataclass, in groups, with every contradiction found at once.

The groups of the data and of the model are the `PlanConfig` and the config of the chosen model
themselves, so a new model brings its own flags along (`flags_class`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError


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
    label_smoothing: float = 0.0
    """Share of each target spread over all codes, in the training loss only."""


@dataclass
class LogConfig:
    """When to log, validate and save."""

    log_every_steps: int = 10
    """Steps that each line of metrics.jsonl averages over."""
    valid_every_steps: int = 0
    """Validate every so many steps."""
    valid_every_minutes: float = 0.0
    """Validate every so many minutes. With neither: at the end of each epoch. Always at the end."""
    valid_max_batches: int = 0
    """Use only the first so many batches of the validation split, the same every time; 0: all."""
    save_every_steps: int = 0
    """Write latest.pt every so many steps."""
    save_every_minutes: float = 5.0
    """Write latest.pt every so many minutes. 0: only as --save-every-steps says; always at the end
    and on Ctrl-C or SIGTERM."""


@dataclass
class TrainerConfig:
    """Flags of `rvqlm trainer` without those of the model."""

    exp_dir: str
    """Folder of the experiment: checkpoints, logs, flags."""
    manifest_dir: str
    """Token directory with the indexes of the splits."""
    model_name: str = "codec-lm"
    """Family to train (`rvqlm models` lists them); its flags are in the group `model`."""
    num_quantizers: int = 0
    """Use only the first so many levels of the codes; 0: all."""
    condition_prompt_seconds: float = 3.0
    """With --conditions prompt: how much of another recording of the speaker is heard at most."""
    train_split: str = "train"
    """Split to train on."""
    valid_split: str = "valid"
    """Split to validate on."""
    num_epochs: int = 0
    """Budget: passes over the data. The first budget used up ends training, and the learning rate
    follows the budget that is nearest its end; 0: not a limit."""
    max_steps: int = 0
    """Budget: optimizer steps; 0: not a limit."""
    max_minutes: float = 0.0
    """Budget: minutes of training, validation and saving included, pauses between an interruption
    and --resume not; 0: not a limit."""
    resume: str = "auto"
    """auto: continue from EXP_DIR/latest.pt if there is one; no: start over, moving an earlier run
    aside; or the path of a checkpoint to continue from."""
    seed: int = 0
    """Initial weights, order of the data, dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, float32 elsewhere."""
    num_threads: int = 0
    """CPU threads; 0: torch's choice."""
    dry_run: bool = False
    """Print parameters, batches, steps and memory, then exit without writing anything."""
    data: PlanConfig = field(default_factory=PlanConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)


def flags_class(model_config_class: type) -> type:
    """`TrainerConfig` with a group `model` of the given dataclass."""
    group = ("model", model_config_class, field(default_factory=model_config_class))
    return dataclasses.make_dataclass(
        "TrainerFlags",
        [group],
        bases=(TrainerConfig,),
        namespace={"__doc__": TrainerConfig.__doc__},
    )


def check(config: TrainerConfig) -> None:
    """Raise one `UserError` that lists everything wrong with the flags."""
    found: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            found.append(message)

    def at_least(low: float, **flags: float) -> None:
        for name, value in flags.items():
            need(
                isfinite(value) and value >= low,
                f"--{name.replace('_', '-')} {value}: at least {low}",
            )

    o, g = config.optim, config.log
    heard = config.condition_prompt_seconds
    need(isfinite(heard) and heard > 0, f"--condition-prompt-seconds {heard}: above 0")
    need(
        heard == TrainerConfig.condition_prompt_seconds
        or "prompt" in getattr(getattr(config, "model", None), "conditions", ()),
        f"--condition-prompt-seconds {heard} means nothing without --conditions prompt",
    )
    at_least(0, num_quantizers=config.num_quantizers)
    at_least(0, num_epochs=config.num_epochs, max_steps=config.max_steps,
             max_minutes=config.max_minutes, num_threads=config.num_threads)  # fmt: skip
    need(
        bool(config.num_epochs or config.max_steps or config.max_minutes),
        "no budget: give --num-epochs, --max-steps or --max-minutes",
    )
    need(isfinite(o.base_lr) and o.base_lr > 0, f"--base-lr {o.base_lr}: above 0")
    need(
        o.warmup_steps is None or o.warmup_ratio is None,
        "--warmup-steps and --warmup-ratio exclude each other",
    )
    if o.warmup_steps is not None:
        at_least(0, warmup_steps=o.warmup_steps)
        need(
            not config.max_steps or o.warmup_steps < config.max_steps,
            f"--warmup-steps {o.warmup_steps} is not below --max-steps {config.max_steps}",
        )
    if o.warmup_ratio is not None:
        need(0 <= o.warmup_ratio < 1, f"--warmup-ratio {o.warmup_ratio}: in [0, 1)")
    need(0 <= o.eta_min_ratio <= 1, f"--eta-min-ratio {o.eta_min_ratio}: in [0, 1]")
    need(
        o.eta_min_ratio == 0 or o.schedule != "constant",
        "--eta-min-ratio has no meaning with --schedule constant",
    )
    need(all(0 <= b < 1 for b in o.betas), f"--betas {o.betas[0]} {o.betas[1]}: each in [0, 1)")
    need(0 <= o.momentum < 1, f"--momentum {o.momentum}: in [0, 1)")
    need(0 <= o.ema_decay < 1, f"--ema-decay {o.ema_decay}: in [0, 1)")
    need(0 <= o.label_smoothing < 1, f"--label-smoothing {o.label_smoothing}: in [0, 1)")
    at_least(0, weight_decay=o.weight_decay, clip_grad_norm=o.clip_grad_norm)
    at_least(1, accum=o.accum, log_every_steps=g.log_every_steps)
    at_least(0, valid_every_steps=g.valid_every_steps, valid_every_minutes=g.valid_every_minutes,
             valid_max_batches=g.valid_max_batches, save_every_steps=g.save_every_steps,
             save_every_minutes=g.save_every_minutes)  # fmt: skip
    need(
        not (g.valid_every_steps and g.valid_every_minutes),
        "--valid-every-steps and --valid-every-minutes exclude each other",
    )
    try:
        config.data.check()
    except UserError as e:
        found.append(str(e))
    if found:
        raise UserError("; ".join(found))
