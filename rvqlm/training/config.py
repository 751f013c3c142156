"""The trainer's flags: one dataclass, in groups, with every contradiction found at once.

Each group is a dataclass of its own (config_optim.py and its neighbours, the `PlanConfig` of the
data, the config of the chosen model), so a new model brings its own flags along (`flags_class`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.training.config_guard import GuardConfig
from rvqlm.training.config_log import LogConfig
from rvqlm.training.config_loss import LossConfig
from rvqlm.training.config_optim import OptimConfig
from rvqlm.training.config_save import SaveConfig


@dataclass(frozen=True)
class TrainPlan(PlanConfig):
    """How cuts become batches; lengths in frames unless a name says duration (seconds)."""

    max_duration: float | Literal["auto"] = 150.0
    """Seconds of audio in a batch, padding included: no batch exceeds it. auto: as many as the
    memory holds, measured before the first step."""

    def check(self) -> None:
        if self.max_duration == "auto":  # what it will be has no faults
            dataclasses.replace(self, max_duration=1e6).check()
        else:
            super().check()


@dataclass
class TrainerConfig:
    """Flags of `rvqlm trainer` without those of the model."""

    exp_dir: str
    """Folder of the experiment: checkpoints, logs, flags."""
    manifest_dir: str
    """Token directory with the indexes of the splits."""
    mix_dirs: tuple[str, ...] = ()
    """Further token directories of the same codec to train on, mixed by hours (--mix-weights).
    Validation stays with --manifest-dir."""
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
    aside; or the path of a checkpoint to continue from. Continuing, flags that are not given are
    those of the run."""
    init_from: str | None = None
    """Begin with the weights of another experiment or checkpoint, as far as names and shapes
    match; optimizer, schedule and data start anew."""
    seed: int = 0
    """Initial weights, order of the data, dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, float32 elsewhere. fp16 with a loss
    scale, for GPUs without bf16."""
    tf32: bool = True
    """On NVIDIA GPUs, multiply what stays float32 with TF32: faster, ten bits of mantissa."""
    compile: bool = False
    """torch.compile of the blocks in training, warmed up before the first step."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp keeps all weights on each rank; fsdp shards weights, gradients and
    moments over them, for models that don't fit otherwise."""
    num_threads: int = 0
    """CPU threads; 0: torch's choice."""
    dry_run: bool = False
    """Print parameters, batches, steps and memory, then exit without writing anything."""
    data: TrainPlan = field(default_factory=TrainPlan)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
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
    need(
        config.init_from is None or config.resume in ("auto", "no"),
        f"--init-from begins a training and --resume {config.resume} continues one: give one",
    )
    need(
        not config.mix_dirs or config.manifest_dir not in config.mix_dirs,
        f"--mix-dirs has --manifest-dir {config.manifest_dir} too",
    )
    for group in (config.optim, config.loss, config.guard, config.save, config.log):
        found += group.problems(config)
    try:
        config.data.check()
    except UserError as e:
        found.append(str(e))
    if found:
        raise UserError("; ".join(found))
