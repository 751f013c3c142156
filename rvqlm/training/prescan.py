"""Whether the largest batch of the data fits in memory, before a night is spent on finding out.

On a GPU a forward and backward pass is made and its peak read; running out is caught. On a CPU
nothing can be caught, the kernel kills: parts of the batch are measured, the whole is extrapolated,
and only what is expected to fit is tried. There the process grows by about 2.2 bytes (1.7 to 2.5
measured, float32 and bf16, three families) for each byte that the forward pass keeps, since the
heap's free blocks don't match; `HEAP` counts 2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import ceil, floor, inf

import numpy as np
import torch
from torch import Tensor, nn

from rvqlm.batch import Batch
from rvqlm.errors import UserError
from rvqlm.training.estimate import activation_bytes
from rvqlm.training.memory import free_memory

HEAP = 2.5
"""Bytes that a process on a CPU grows by for each that the forward pass keeps."""
USABLE = 0.9
"""Share of the free memory that is planned with. The rest is for other lengths of batches
(fragments), the libraries' workspaces, and validation."""
CEILING = {"cpu": 150.0, "cuda": 600.0}
"""Seconds beyond which `largest_max_duration` doesn't look: the devices are busy long before, and
larger batches only make fewer steps."""
_START = 10.0
"""Seconds of the first batch that `largest_max_duration` tries."""


class Memory:
    """What batches need of a device, and what there is.

    :param optimizer_bytes: of states that the first step has yet to make.
    :param processes: that share the memory of the host: ranks on this machine.
    :param free: bytes of host memory that can be taken.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        optimizer_bytes: int,
        processes: int = 1,
        free: Callable[[], int | None] = free_memory,
    ):
        self.model, self.device, self.dtype = model, device, dtype
        self.optimizer_bytes, self.processes, self.free = optimizer_bytes, processes, free

    def room(self) -> int | None:
        """Bytes to plan with; None where the device doesn't tell."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return int(USABLE * torch.cuda.mem_get_info(self.device)[0])
        free = self.free() if self.device.type == "cpu" else None
        return None if free is None else int(USABLE * free / self.processes)

    def need(self, batch: Batch) -> float:
        """Bytes of a step with `batch` beyond what is taken now, infinite if a GPU ran out.

        Leaves weights, mode and random state as they are, and no gradients.
        """
        training = self.model.training
        cuda = self.device.type == "cuda"
        try:
            with torch.random.fork_rng([self.device] if cuda else []):
                if cuda:
                    return self._peak(batch) + self.optimizer_bytes
                kept = activation_bytes(self.model, batch, self.device, self.dtype)
                return self.fixed + HEAP * kept
        finally:
            self.model.train(training)

    @property
    def fixed(self) -> float:
        """Bytes that any batch needs: gradients and the optimizer's states."""
        gradients = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return gradients + self.optimizer_bytes

    def _peak(self, batch: Batch) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            self._pass(batch)
            peak = torch.cuda.max_memory_allocated(self.device) - before
        except torch.OutOfMemoryError:
            peak = inf
        # after the handler: the exception holds the tensors of the frames that it came through
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return peak

    def _pass(self, batch: Batch) -> None:
        self.model.train()
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            out = self.model(batch.to(self.device))
        out.loss.backward()


def prescan(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    optimizer_bytes: int,
    *,
    max_duration: float,
    frame_rate: float,
    processes: int = 1,
    memory: Memory | None = None,
) -> str:
    """A line that says what the largest batch needs and what there is.

    :param model: neither wrapped nor compiled, without gradients.
    :param batch: the largest of the data.
    :param max_duration, frame_rate: of the flags and of the codec, for the remedy.
    :raises UserError: it doesn't fit; says the largest ``--max-duration`` that does.
    """
    memory = memory or Memory(model, device, dtype, optimizer_bytes, processes)
    room = memory.room()
    if room is None:
        return f"memory check: {device.type} doesn't say how much is free; nothing was checked"
    need = memory.need(batch) if device.type == "cuda" else _carefully(memory, batch, room)
    B, T = batch.codes.shape[:2]
    if need <= room:
        return f"largest batch {B} x {T} frames: {_gb(need)} of {_gb(room)} usable on {device.type}"
    found = largest_max_duration(
        batch_maker(batch, frame_rate), model, device, dtype, optimizer_bytes,
        frame_rate=frame_rate, ceiling=0.95 * max_duration, memory=memory,
    )  # fmt: skip
    more = "" if getattr(model.config, "activation_checkpointing", True) else (
        "--activation-checkpointing, "
    )  # fmt: skip
    raise UserError(
        f"--max-duration {max_duration:g}: a batch of {B} x {T} frames needs "
        f"{'more than there is' if need == inf else f'about {_gb(need)}'} with gradients and "
        f"optimizer, {_gb(room)} are usable on {device.type} ({USABLE:.0%} of what is free): give "
        f"--max-duration {found:g} (with --accum {ceil(max_duration / found)} times as large for "
        f"equal steps), {more}or --no-memory-check to try all the same"
    )


def largest_max_duration(
    make_batch: Callable[[float], Batch],
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    optimizer_bytes: int,
    *,
    frame_rate: float,
    ceiling: float | None = None,
    processes: int = 1,
    memory: Memory | None = None,
) -> float:
    """The largest ``--max-duration`` (seconds) whose batches fit, in a handful of passes.

    Memory grows by a constant for each frame, so two small batches foretell a large one; what is
    returned was measured itself. Where a GPU runs out, half of that is tried, and the search goes
    on between what fitted and what did not.

    :param make_batch: seconds -> the largest batch of that ``--max-duration``, of at least one
        item (`batch_maker`).
    :param ceiling: seconds; `CEILING` by default.
    :raises UserError: not even one item fits, or the device doesn't say what is free.
    """
    memory = memory or Memory(model, device, dtype, optimizer_bytes, processes)
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
        return _rows(batch, longest[torch.arange(items) % len(longest)])

    return make


def _rows(batch: Batch, index: Tensor) -> Batch:
    """Items of a batch; one may come several times."""
    chosen = {f.name: getattr(batch, f.name) for f in fields(batch)}
    chosen = {k: v[index] for k, v in chosen.items() if isinstance(v, Tensor)}
    heard = {k: type(p)(*(t[index] for t in p)) for k, p in batch.conditions.items()}
    return replace(batch, **chosen, conditions=heard)


def _part(batch: Batch, share: float) -> Batch:
    """The first of its items, or where these are few, the first of its frames."""
    B, T = batch.codes.shape[:2]
    if B >= 8:
        return _rows(batch, torch.arange(ceil(B * share)))
    frames = ceil(T * share)
    lengths = batch.lengths.clamp(max=frames)
    heard = dict(batch.conditions)
    if source := heard.get("source"):  # as long as the item
        kept = source.lengths.clamp(max=frames)
        heard["source"] = type(source)(source.values[:, :frames], kept)
    prompts = batch.prompt_lengths
    prompts = None if prompts is None else torch.minimum(prompts, lengths)
    return replace(
        batch, codes=batch.codes[:, :frames], lengths=lengths, conditions=heard,
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
