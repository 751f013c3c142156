"""What a training is about to do, in the words that it begins with and that --dry-run prints."""

from __future__ import annotations

from rvqlm.cli import counted, span
from rvqlm.training.config import TrainerConfig
from rvqlm.training.schedule import DEFAULT_WARMUP_RATIO, schedule_flags


def budget_words(config: TrainerConfig, steps: int) -> str:
    """The limits of a run whose epochs have so many optimizer steps."""
    limits = []
    if config.num_epochs:
        total = counted(config.num_epochs * steps, "step")
        limits.append(f"{counted(config.num_epochs, 'epoch')} (about {total})")
    if config.max_steps:
        epochs = config.max_steps / steps
        limits.append(f"{counted(config.max_steps, 'step')} ({epochs:.2f} epochs)")
    if config.max_minutes:
        limits.append(span(60 * config.max_minutes))
    return ", or ".join(limits)


def schedule_words(config: TrainerConfig) -> str:
    """Optimizer, learning rate and how it goes."""
    o = config.optim
    if o.warmup_steps is not None:
        warmup = counted(o.warmup_steps, "step")
    else:
        ratio = DEFAULT_WARMUP_RATIO if o.warmup_ratio is None else o.warmup_ratio
        warmup = f"{100 * ratio:g} % of the budget"
    least = ""
    if "eta_min_ratio" in schedule_flags(o.schedule):
        to = " to" if o.schedule in ("cosine", "linear") else ", not below"
        least = f"{to} {o.eta_min_ratio * o.base_lr:g}"
    tables = f" ({o.embedding_lr:g} of embeddings)" if o.embedding_lr is not None else ""
    return (
        f"{o.optimizer}, learning rate {o.base_lr:g}{tables} after a warm-up over {warmup}, then "
        f"{o.schedule}{least}"
    )


def items_words(loader) -> str:
    """How many items, or windows of which length, the epoch of a `TokenLoader` has."""
    plan, rate = loader.config.at(loader.epoch), float(loader.dataset.info.frame_rate)

    def frames(number: int) -> str:
        return f"{number:,} frames ({number / rate:.1f} s)"

    if not plan.window_frames:
        return counted(loader.epoch_items, "item")
    words = f"{counted(loader.epoch_items, 'window')} of {frames(plan.window_frames)}"
    hop = plan.hop_frames or plan.window_frames
    return words if hop == plan.window_frames else f"{words}, one every {frames(hop)}"


def epoch_words(loader, config: TrainerConfig) -> str:
    """Items, micro-batches and optimizer steps of the epoch of a training's `TokenLoader`."""
    steps = -(-loader.epoch_steps // config.optim.accum)
    items = items_words(loader)
    batches = batches_words(loader.epoch_steps) + " a rank" * (loader.world_size > 1)
    return f"{items}, {batches}, {counted(steps, 'optimizer step')} an epoch"


def batches_words(number: int) -> str:
    return f"{number:,} batch{'' if number == 1 else 'es'}"


def length_words(data) -> str:
    """Cuts and length of a `TokenDataset`."""
    return f"{counted(len(data), 'cut')}, {span(3600 * data.hours)}"
