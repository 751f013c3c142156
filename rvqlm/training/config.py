"""The trainer's flags: one dataclass in groups, and everything wrong with them found at once.

The docstring under a field is its help; the comment above it says why its default is what it is.
Groups that one part alone reads stand with it: `PlanConfig` with the data, `LossConfig` and
`GuardConfig` with what they steer, the config of the chosen model with the model, so that a new one
brings its own flags along (`flags_class`).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

import tyro

from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.flags import Problems, flag
from rvqlm.training.guards import GuardConfig
from rvqlm.training.level_weights import LossConfig
from rvqlm.training.schedule import SCHEDULES, schedule_flags


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


def _schedule_help() -> str:
    choices = (f"{name}: {' '.join(f.__doc__.split())}" for name, f in SCHEDULES.items())
    return f"Learning rate after the warm-up. {'; '.join(choices)}."


@dataclass
class OptimConfig:
    """Optimizer, schedule and averaging."""

    # The usual one. In seven minutes of egs/mini Muon reached 3.51 nats per code where AdamW
    # reached 3.79, at one learning rate each (docs/LOG.md).
    optimizer: Literal["adamw", "muon", "scaled_adam"] = "adamw"
    """muon: orthogonalised momentum for the matrices between hidden layers, AdamW for the rest;
    fewer steps to the same loss, each a little longer. scaled_adam: changes in proportion to the
    size of each tensor, as in icefall's recipes, where --base-lr is 0.045 and --schedule eden."""
    base_lr: float = 1e-3
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one value serves both; that
    of scaled_adam is relative to the size of the weights and has to be given: about 0.045."""
    embedding_lr: float | None = None
    """Peak learning rate of the embedding tables; None: --base-lr."""
    schedule: Annotated[
        Literal[tuple(SCHEDULES)], tyro.conf.arg(help=_schedule_help())
    ] = "cosine"  # fmt: skip
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
    # Both as in icefall's recipes for Zipformer.
    lr_batches: float = 7500.0
    """--schedule eden: steps at which its first factor is 0.84; later it falls as the root."""
    lr_epochs: float = 3.5
    """--schedule eden: epochs at which its second factor is 0.84; later it falls as the root."""
    # These, the weight decay and the clipping are those of GPT-3 (arXiv:2005.14165, appendix B).
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

    def examine(self, found: Problems, config: TrainerConfig) -> None:
        """Add everything wrong with the group; `config` is the whole of the flags."""
        found.above(0, "base_lr")
        found.need(
            self.optimizer != "scaled_adam" or found.changed("base_lr"),
            f"--base-lr {self.base_lr} is for the other optimizers: scaled_adam's is relative to "
            "the size of the weights, give about 0.045",
        )
        found.excludes("warmup_steps", "warmup_ratio")
        if self.warmup_steps is not None:
            found.at_least(0, "warmup_steps")
            found.need(
                not config.max_steps or self.warmup_steps < config.max_steps,
                f"--warmup-steps {self.warmup_steps} is not below --max-steps {config.max_steps}",
            )
        ratio = self.warmup_ratio
        found.need_of("warmup_ratio", ratio is None or 0 <= ratio < 1, "in [0, 1)")
        found.need_of("eta_min_ratio", 0 <= self.eta_min_ratio <= 1, "in [0, 1]")
        found.need_of("lr_gamma", 0 < self.lr_gamma < 1, "between 0 and 1")
        found.at_least(0, "plateau_patience")
        found.above(0, "lr_step_epochs", "lr_batches", "lr_epochs", "eps", "embedding_lr")
        self._without_effect(found)
        first, second = self.betas
        found.need(0 <= first < 1 and 0 <= second < 1, f"--betas {first} {second}: each in [0, 1)")
        for name in ("momentum", "ema_decay"):
            found.need_of(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        found.at_least(0, "weight_decay", "clip_grad_norm")
        found.at_least(1, "accum")

    def _without_effect(self, found: Problems) -> None:
        """Flags that were changed and mean nothing with the chosen schedule and optimizer."""
        needed: dict[tuple[str, str], list[str]] = {}
        for choice in SCHEDULES:
            for name in schedule_flags(choice):
                needed.setdefault((name, "schedule"), []).append(choice)
        needed["momentum", "optimizer"] = ["muon"]
        needed["weight_decay", "optimizer"] = ["adamw", "muon"]
        for (name, of), choices in needed.items():
            found.need(
                not found.changed(name) or getattr(self, of) in choices,
                f"{flag(name)} has no meaning with {flag(of)} {getattr(self, of)}, only with "
                + " or ".join(choices),
            )
        found.need(
            bool(self.ema_decay) or self.ema_warmup,
            "--no-ema-warmup has no meaning with --ema-decay 0",
        )


@dataclass
class SaveConfig:
    """When to save, and what to keep."""

    save_every_steps: int = 0
    """Write latest.pt every so many steps."""
    save_every_minutes: float = 5.0
    """Write latest.pt every so many minutes. 0: only as --save-every-steps says; always at the end
    and on Ctrl-C or SIGTERM."""
    archive_every: int = 0
    """Keep a checkpoint in EXP_DIR/archive every so many epochs, for a return to before a
    divergence and for `rvqlm average`; 0: not."""
    archive_every_steps: int = 0
    """The same every so many steps; 0: not."""
    archive_best: bool = False
    """Keep each best.pt in EXP_DIR/archive as well."""
    keep_archived: int = 10
    """How many archives to keep, the newest ones, of periodic ones and of best ones so many each;
    0: all. Each is as large as latest.pt."""
    lock_minutes: float = 0.0
    """Wait so many minutes, 50 at most, for another training in EXP_DIR to end, for schedulers that
    start a job again while it still lives; 0: refused at once."""

    def examine(self, found: Problems, config: TrainerConfig) -> None:
        """Add everything wrong with the group; `config` is the whole of the flags."""
        found.at_least(0, "save_every_steps", "save_every_minutes")
        found.at_least(0, "archive_every", "archive_every_steps", "keep_archived", "lock_minutes")
        # other ranks wait for the main rank, an hour at most
        found.need_of("lock_minutes", not self.lock_minutes > 50, "at most 50")
        archives = self.archive_every or self.archive_every_steps or self.archive_best
        found.need(
            bool(archives) or not found.changed("keep_archived"),
            f"--keep-archived {self.keep_archived} means nothing without --archive-every, "
            "--archive-every-steps or --archive-best",
        )


@dataclass
class LogConfig:
    """When to log, validate and make samples."""

    log_every_steps: int = 10
    """Steps that each line of metrics.jsonl averages over."""
    valid_every_steps: int = 0
    """Validate every so many steps."""
    valid_every_minutes: float = 0.0
    """Validate every so many minutes. With neither: at the end of each epoch. Always at the end."""
    valid_max_batches: int = 0
    """Use only the first so many batches of the validation split, the same every time; 0: all."""

    mfu: bool = True
    """Log the share of the device's peak that goes into the model (measured on a CPU)."""
    sample_every_epochs: int = 0
    """Make samples every so many epochs, with the averaged weights: held-out recordings, their
    reconstruction by the codec, continuations of them, and unprompted ones. 0: not."""
    sample_every_steps: int = 0
    """The same every so many steps."""
    sample_every_minutes: float = 0.0
    """The same every so many minutes. With any of these also at the end."""
    sample_count: int = 2
    """Recordings to continue, and unprompted samples."""
    sample_seconds: float = 5.0
    """Length of each sample, its prompt included."""
    sample_prompt_seconds: float = 2.0
    """How much of a recording is continued."""
    sample_temperature: float = 1.0
    """Temperature of the sampling."""
    sample_top_k: int = 0
    """Top-k sampling: draw among the k most probable codes; 0: all."""
    sample_device: Literal["same", "cpu"] = "same"
    """Where the codec decodes: cpu leaves a GPU's memory to the training."""

    @property
    def samples(self) -> bool:
        """Whether any are made."""
        return bool(
            self.sample_every_epochs or self.sample_every_steps or self.sample_every_minutes
        )

    def examine(self, found: Problems, config: TrainerConfig) -> None:
        """Add everything wrong with the group; `config` is the whole of the flags."""
        found.at_least(1, "log_every_steps")
        found.at_least(0, "valid_every_steps", "valid_every_minutes", "valid_max_batches")
        found.at_least(0, "sample_every_epochs", "sample_every_steps", "sample_every_minutes")
        found.at_least(0, "sample_top_k")
        found.at_least(1, "sample_count")
        found.excludes("valid_every_steps", "valid_every_minutes")
        found.above(0, "sample_temperature")
        found.need_of(
            "sample_prompt_seconds",
            0 < self.sample_prompt_seconds < self.sample_seconds < inf,
            f"above 0 and below --sample-seconds {self.sample_seconds}",
        )
        names = ("count", "seconds", "prompt_seconds", "temperature", "top_k", "device")
        changed = [flag(f"sample_{n}") for n in names if found.changed(f"sample_{n}")]
        found.need(
            self.samples or not changed,
            f"{', '.join(changed)}: no samples are made without --sample-every-epochs, "
            "--sample-every-steps or --sample-every-minutes",
        )


@dataclass
class TrainerConfig:
    """Flags of `rvqlm trainer` without those of the model."""

    exp_dir: str
    """Folder of the experiment: checkpoints, logs, flags."""
    manifest_dir: str
    """Token directory with the indexes of the splits."""
    tag: str = ""
    """Name of the training, where --exp-dir holds several: it works in EXP_DIR/TAG."""
    mix_dirs: tuple[str, ...] = ()
    """Further token directories of the same codec to train on, mixed by hours (--mix-weights).
    Validation stays with --manifest-dir."""
    model_name: str = "codec-lm"
    """Family to train (`rvqlm models` lists them); its flags are in the group `model`."""
    size: Literal["none", "tiny", "small", "base", "large"] = "none"
    """Width, depth, heads, optimizer, learning rate and batch that suit each other, where they are
    not given: tiny (128 x 2) for minutes of audio, small (192 x 6) for hours, base (512 x 12) for
    tens of hours, large (768 x 16) for a hundred. none: each flag has its own default."""
    num_quantizers: int = 0
    """Use only the first so many levels of the codes; 0: all."""
    # As long as the prompt of VALL-E (arXiv:2301.02111).
    condition_prompt_seconds: float = 3.0
    """With --conditions prompt: how much of another recording of the speaker the model is given
    at most."""
    text_times: Literal["auto", "yes", "no"] = "auto"
    """With --conditions text: tell the model where each symbol is said, and let it learn to say
    that for others, by what `rvqlm align` wrote. no: texts are laid out by average durations.
    auto: as the run that is resumed, else where the times of all data are there."""
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
    start_epoch: int = 0
    """Epoch, counted from 1, that training begins or goes on with: refused where that is another
    than the checkpoint's. Of --train-stage 2 the epoch after those of stage 1 is good as well.
    0: whichever it is."""
    init_from: str | None = None
    """Begin with the weights of another experiment or checkpoint, as far as names and shapes
    match; optimizer, schedule and data start anew."""
    code_vectors: bool = False
    """Let the embeddings of codes begin as the codec's own vectors, which it is asked for, instead
    of at random: with little data, codes that sound alike are then alike from the start. Give a
    small --embedding-lr, so that they stay so. Where the codec is not on this machine or has no
    such vectors, that is said, and they begin at random."""
    seed: int = 0
    """Initial weights, order of the data, dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, float32 elsewhere. fp16 with a loss
    scale, for GPUs without bf16."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """native: attention and products in bf16 on a CPU by kernels that are compiled on this machine,
    once; auto: these where there are AVX-512 BF16 and a C++ compiler; torch: its own."""
    tf32: bool = True
    """On NVIDIA GPUs, multiply what stays float32 with TF32: faster, ten bits of mantissa."""
    compile: bool = False
    """torch.compile of the blocks in training, warmed up before the first step."""
    # No GPU was at hand: what it brings is not known.
    cuda_graphs: bool = False
    """On a GPU, repeat forward and backward of a batch by one launch, as a graph that is captured
    for each shape of batches, 32 at most, and tried before it is used: for batches of few shapes
    that are too small to keep the GPU busy. Up to twice the memory of activations."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp keeps all weights on each rank; fsdp shards weights, gradients and
    moments over them, for models that don't fit otherwise."""
    num_threads: int | Literal["auto"] = "auto"
    """CPU threads; 0: torch's choice. auto: 1 or torch's choice, whichever is faster, as 1 is on
    cores that others use. Given --max-minutes alone, that is measured again and again; else once,
    before the first step, and kept with the run, since it may change the last bits of sums."""
    quiet: bool = False
    """Print nothing but problems: steps that were not taken, rollbacks, an interruption."""
    dry_run: bool = False
    """Print parameters, batches, steps and memory, then exit without writing anything."""
    data: TrainPlan = field(default_factory=TrainPlan)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    log: LogConfig = field(default_factory=LogConfig)


OF_A_START = ("tag", "resume", "start-epoch", "dry-run", "quiet")
"""Flags that are asked of one start and are not kept with the run."""
TAG = r"(?!(stage\d+|previous-.*|archive|bad_batches|ranks|samples|tensorboard)$)[\w-]*"
"""What a --tag may be: a folder beside those that a training has."""


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
    found = Problems(config)
    found.above(0, "condition_prompt_seconds")
    found.need(
        not found.changed("condition_prompt_seconds")
        or "prompt" in getattr(getattr(config, "model", None), "conditions", ()),
        f"--condition-prompt-seconds {config.condition_prompt_seconds} means nothing without "
        "--conditions prompt",
    )
    found.need(
        not found.changed("text_times")
        or "text" in getattr(getattr(config, "model", None), "conditions", ()),
        f"--text-times {config.text_times} means nothing without --conditions text",
    )
    found.at_least(0, "num_quantizers", "num_epochs", "max_steps", "max_minutes")
    if config.num_threads != "auto":
        found.at_least(0, "num_threads")
    found.need(
        bool(config.num_epochs or config.max_steps or config.max_minutes),
        "no budget: give --num-epochs, --max-steps or --max-minutes",
    )
    found.need(
        re.fullmatch(TAG, config.tag),
        f"--tag {config.tag}: letters, digits, - and _; no name that a training itself uses",
    )
    found.at_least(0, "start_epoch")
    found.need(
        config.init_from is None or config.resume in ("auto", "no"),
        f"--init-from begins a training and --resume {config.resume} continues one: give one",
    )
    found.need(
        config.manifest_dir not in config.mix_dirs,
        f"--mix-dirs has --manifest-dir {config.manifest_dir} too",
    )
    for other, given in {
        "--compile": config.compile,
        "--packing": config.data.packing,
        "--max-duration auto": config.data.max_duration == "auto",  # measured without
    }.items():
        found.need(
            not (config.cuda_graphs and given), f"--cuda-graphs and {other}: leave one of them out"
        )
    for group in (config.optim, config.loss, config.guard, config.save, config.log):
        of_group = Problems(group)
        group.examine(of_group, config)
        found += of_group
    try:
        config.data.check()
    except UserError as e:
        found.append(str(e))
    if found:
        raise UserError("; ".join(found))


def what_is_due(
    config: TrainerConfig,
    step: int,
    elapsed: float,
    epoch_ended: int | None,
    finished: bool,
    stopping: bool,
    since: dict[str, float],
) -> set[str]:
    """Of ``log``, ``valid``, ``sample``, ``save`` and ``archive`` what is to be done after a step.

    :param step: steps done.
    :param elapsed: seconds of training.
    :param epoch_ended: the epoch that ended in this step, if one did.
    :param stopping: a signal asked for the end.
    :param since: ``valid``, ``sample``, ``save``: value of `elapsed` when it was done last.
    """
    log, save, ended = config.log, config.save, epoch_ended is not None

    def by_steps(every: int) -> bool:
        return bool(every) and step % every == 0

    def by_minutes(every: float, name: str) -> bool:
        return bool(every) and elapsed - since[name] >= 60 * every

    def by_epochs(every: int) -> bool:
        return bool(every) and ended and (epoch_ended + 1) % every == 0

    valid = by_steps(log.valid_every_steps) or by_minutes(log.valid_every_minutes, "valid")
    if not log.valid_every_steps and not log.valid_every_minutes:
        valid = ended
    sample = (
        by_steps(log.sample_every_steps)
        or by_epochs(log.sample_every_epochs)
        or by_minutes(log.sample_every_minutes, "sample")
    )
    archive = by_steps(save.archive_every_steps) or by_epochs(save.archive_every)
    saved = by_steps(save.save_every_steps) or by_minutes(save.save_every_minutes, "save")
    due = {
        "log": ended or finished or by_steps(log.log_every_steps),
        "valid": valid or finished,
        "sample": sample or (finished and log.samples),
        "save": finished or stopping or archive or saved,
        "archive": archive,
    }
    return {name for name, now in due.items() if now}
