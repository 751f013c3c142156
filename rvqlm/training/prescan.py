"""What is found out before the first step: whether the largest batch of the data fits in memory,
the largest --max-duration that does, and what --dry-run prints.

On a CPU, where running out of memory cannot be caught, parts of a batch are measured (memory.py),
the whole is extrapolated, and only what is expected to fit is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import ceil, floor, inf

import numpy as np
import torch
from torch import Tensor

from rvqlm.batch import Batch
from rvqlm.errors import UserError
from rvqlm.training.memory import USABLE, Memory, activation_bytes, optimizer_bytes

CEILING = {"cpu": 150.0, "cuda": 600.0}
"""Seconds beyond which `largest_max_duration` doesn't look: the devices are busy long before, and
larger batches only make fewer steps."""
_START = 10.0
"""Seconds of the first batch that `largest_max_duration` tries."""


def prescan(memory: Memory, batch: Batch, *, max_duration: float, frame_rate: float) -> str:
    """A line that says what the largest batch needs and what there is.

    :param memory: of a model that is neither wrapped nor compiled, without gradients.
    :param batch: the largest of the data.
    :param max_duration, frame_rate: of the flags and of the codec, for the remedy.
    :raises UserError: it doesn't fit; says the largest ``--max-duration`` that does.
    """
    device = memory.device
    room = memory.room()
    if room is None:
        return f"memory check: {device.type} doesn't say how much is free; nothing was checked"
    need = memory.need(batch) if device.type == "cuda" else _carefully(memory, batch, room)
    B, T = batch.codes.shape[:2]
    if need <= room:
        return f"largest batch {B} x {T} frames: {_gb(need)} of {_gb(room)} usable on {device.type}"
    found = largest_max_duration(
        memory, batch_maker(batch, frame_rate), frame_rate=frame_rate, ceiling=0.95 * max_duration
    )
    kept = not getattr(memory.model.config, "activation_checkpointing", True)
    more = "--activation-checkpointing, " if kept else ""
    raise UserError(
        f"--max-duration {max_duration:g}: a batch of {B} x {T} frames needs "
        f"{'more than there is' if need == inf else f'about {_gb(need)}'} with gradients and "
        f"optimizer, {_gb(room)} are usable on {device.type} ({USABLE:.0%} of what is free): give "
        f"--max-duration {found:g} (with --accum {ceil(max_duration / found)} times as large for "
        f"equal steps), {more}or --no-memory-check to try all the same"
    )


def largest_max_duration(
    memory: Memory,
    make_batch: Callable[[float], Batch],
    *,
    frame_rate: float,
    ceiling: float | None = None,
) -> float:
    """The largest ``--max-duration`` (seconds) whose batches fit, in a handful of passes.

    Memory grows by a constant for each frame, so two small batches foretell a large one; what is
    returned was measured itself. Where a GPU runs out, half of that is tried, and the search
    continues between what fitted and what did not.

    :param make_batch: seconds -> the largest batch of that ``--max-duration``, of at least one
        item (`batch_maker`).
    :param ceiling: seconds; `CEILING` by default.
    :raises UserError: not even one item fits, or the device doesn't say what is free.
    """
    device = memory.device
    ceiling = floor((ceiling or CEILING.get(device.type, CEILING["cpu"])) * frame_rate)
    room = memory.room()
    if room is None:
        raise UserError(
            f"--max-duration auto: {device.type} doesn't say how much memory is free; give seconds"
        )
    needs: dict[int, float] = {}  # by frames of a batch, padding included

    def fits(budget: float) -> bool:
        batch = make_batch(budget / frame_rate)
        if _cells(batch) not in needs:
            needs[_cells(batch)] = memory.need(batch)
        return needs[_cells(batch)] <= room

    budget = min(_START * frame_rate, ceiling)
    while not fits(budget):
        smallest = make_batch(0.0)
        if _cells(smallest) in needs:
            raise _nothing_fits(smallest, needs[_cells(smallest)], room, device)
        budget /= 2
    good, too_many = budget, ceiling + 1.0
    fits(good / 2)  # the second point of the line
    for _ in range(6):
        ahead = min(_ahead(needs, room, memory.fixed), 8 * good, ceiling)
        if ahead >= too_many:
            ahead = (good + too_many) / 2
        if ahead < 1.02 * good:
            break
        if fits(ahead):
            good = ahead
        else:
            too_many = ahead
    seconds = good / frame_rate
    rounded = floor(seconds) if seconds >= 20 else floor(seconds * 10) / 10
    one = _cells(make_batch(0.0)) / frame_rate
    return rounded if rounded >= one else ceil(one * 10) / 10  # a plan wants room for each item


def _ahead(needs: dict[int, float], room: float, fixed: float) -> float:
    """Frames that should just fit, by the line through the two largest batches that did."""
    points = sorted((frames, need) for frames, need in needs.items() if need <= room)
    (frames, need), (frames_before, need_before) = points[-1], [(0, fixed), *points][-2]
    slope = max((need - need_before) / (frames - frames_before), 1e-9)
    return frames + 0.99 * (room - need) / slope


def _carefully(memory: Memory, batch: Batch, room: float) -> float:
    """Need of a batch that might not fit: an eighth, a quarter, a half, and the whole only if the
    curve through these stays below `room`; else the value of the curve."""
    points: dict[int, float] = {}
    for share in (0.125, 0.25, 0.5):
        piece = _part(batch, share)
        points[_cells(piece)] = memory.need(piece)
        if points[_cells(piece)] > room:
            break
    cells, needs = list(points), list(points.values())
    # a parabola, should attention hold matrices of frames by frames; a line through fewer points
    curve = np.polynomial.Polynomial.fit(cells, needs, len(cells) - 1) if len(cells) > 1 else None
    whole = float(curve(_cells(batch))) if curve is not None else needs[-1]
    whole = max(whole, *needs) if len(needs) > 1 else whole
    return whole if whole > room else memory.need(batch)


def batch_maker(batch: Batch, frame_rate: float) -> Callable[[float], Batch]:
    """Seconds -> as many items as long as the longest of `batch` as ``--max-duration`` of so many
    seconds lets through, one at least; conditions as those of its items, in turn."""
    longest = batch.lengths.argsort(descending=True)

    def make(seconds: float) -> Batch:
        items = max(1, floor(seconds * frame_rate / batch.codes.shape[1] + 1e-9))
        return items_of(batch, longest[torch.arange(items) % len(longest)])

    return make


def items_of(batch: Batch, index: Tensor) -> Batch:
    """Items of a batch by their (N,) numbers; one may come several times."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    chosen = {k: v[index] for k, v in values.items() if isinstance(v, Tensor)}
    conditions = {k: type(p)(*(t[index] for t in p)) for k, p in batch.conditions.items()}
    return replace(batch, **chosen, conditions=conditions)


def _part(batch: Batch, share: float) -> Batch:
    """The first of its items, or where these are few, the first of its frames."""
    B, T = batch.codes.shape[:2]
    if B >= 8:
        return items_of(batch, torch.arange(ceil(B * share)))
    frames = ceil(T * share)
    lengths = batch.lengths.clamp(max=frames)
    conditions = dict(batch.conditions)
    if source := conditions.get("source"):  # as long as the item
        kept = source.lengths.clamp(max=frames)
        conditions["source"] = type(source)(source.values[:, :frames], kept)
    prompts = batch.prompt_lengths
    prompts = None if prompts is None else torch.minimum(prompts, lengths)
    return replace(
        batch, codes=batch.codes[:, :frames], lengths=lengths, conditions=conditions,
        prompt_lengths=prompts,
    )  # fmt: skip


def _cells(batch: Batch) -> int:
    return batch.codes.shape[0] * batch.codes.shape[1]


def _nothing_fits(batch: Batch, need: float, room: float, device: torch.device) -> UserError:
    return UserError(
        f"one item of {batch.codes.shape[1]} frames needs "
        f"{'more memory than there is' if need == inf else f'about {_gb(need)}'}, {_gb(room)} are "
        f"usable on {device.type} ({USABLE:.0%} of what is free): cut the data with "
        "--window-frames or --filter-max-duration, or take a smaller model"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def describe_plan(trainer, batches_per_epoch: int) -> list[str]:
    """Lines of ``--dry-run`` for a `Trainer` that hasn't started."""
    model, config = trainer.model, trainer.config
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.nbytes for p in model.parameters())
    average = weights if trainer.ema is not None else 0
    moments = optimizer_bytes(model, config.optim) - average
    batch = next(iter(trainer.train.epoch_batches()))
    activations = activation_bytes(model, batch, trainer.device, trainer.dtype)
    total = 2 * weights + moments + average + activations
    steps = -(-batches_per_epoch // config.optim.accum)
    limits = []
    if config.num_epochs:
        limits.append(f"{config.num_epochs} epochs (about {config.num_epochs * steps} steps)")
    if config.max_steps:
        limits.append(f"{config.max_steps} steps ({config.max_steps / steps:.2f} epochs)")
    if config.max_minutes:
        limits.append(f"{config.max_minutes:g} minutes")
    mb = 2**20
    return [
        f"model       {model.name}, {parameters:,} parameters",
        f"device      {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}, "
        f"{trainer.world.size} ranks",
        f"epoch       {batches_per_epoch} batches a rank, {steps} steps",
        f"batch       {tuple(batch.codes.shape)} at most, {batch.num_frames} frames, "
        f"{config.optim.accum} in a step",
        f"budget      {', or '.join(limits)}",
        f"memory      about {total / mb:,.0f} MB: weights and gradients {2 * weights / mb:,.0f}, "
        f"optimizer {moments / mb:,.0f}, average {average / mb:,.0f}, "
        f"activations {activations / mb:,.0f}",
    ]
