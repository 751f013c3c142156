"""What is found out before the first step: whether the largest batch of the data fits in memory
(`prescan`), the largest --max-duration that does, what --dry-run prints; and how much memory there
is: a GPU's own, or the host's within the limits of the container (`free_memory`).

On a GPU a forward and backward pass is made and its peak read; running out is caught. On a CPU
nothing can be caught, the kernel kills, so only the forward pass is made, of what is expected to
fit, and what it keeps for the backward pass is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from math import ceil, floor, inf
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rvqlm.batch import Batch
from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.training.announce import budget_words, epoch_words, schedule_words

HEAP = 2.5
"""Bytes that a process on a CPU grows by for each that the forward pass keeps, since the heap's
free blocks don't match; 1.7 to 2.5 were measured (float32 and bf16, three families)."""
USABLE = 0.9
"""Share of the free memory that is planned with. The rest is for other lengths of batches
(fragments), the libraries' workspaces, and validation."""
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number of about 2^63 for no limit."""
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
        f"{_needed(need)} with gradients and "
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
            raise UserError(
                f"one item of {smallest.codes.shape[1]} frames needs "
                f"{_needed(needs[_cells(smallest)])}, {_gb(room)} are usable on {device.type} "
                f"({USABLE:.0%} of what is free): cut the data with --window-frames or "
                "--filter-max-duration, or take a smaller model"
            )
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
    """Items of a batch by their (N,) numbers, one several times maybe, or by a (B,) mask."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    chosen = {k: v[index] for k, v in values.items() if isinstance(v, Tensor)}
    conditions = {k: p.map(lambda t: t[index]) for k, p in batch.conditions.items()}
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


def _needed(size: float) -> str:
    return "more memory than there is" if size == inf else f"about {_gb(size)}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def describe_plan(trainer) -> list[str]:
    """Lines of ``--dry-run`` for a `Trainer` that hasn't started."""
    model, config = trainer.model, trainer.config
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.nbytes for p in model.parameters())
    average = weights if trainer.ema is not None else 0
    moments = optimizer_bytes(model, config.optim) - average
    batch = next(iter(trainer.train.epoch_batches()))
    activations = activation_bytes(model, batch, trainer.device, trainer.dtype)
    total = 2 * weights + moments + average + activations
    steps = -(-trainer.train.epoch_steps // config.optim.accum)
    mb = 2**20
    return [
        f"model       {model.name}, {parameters:,} parameters",
        f"device      {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}, "
        f"{counted(trainer.world.size, 'rank')}",
        f"epoch       {epoch_words(trainer.train, config)}",
        f"batch       {tuple(batch.codes.shape)} at most, {batch.num_frames:,} frames, "
        f"{config.optim.accum} in a step",
        f"budget      {budget_words(config, steps)}",
        f"schedule    {schedule_words(config)}",
        f"memory      about {total / mb:,.0f} MB: weights and gradients {2 * weights / mb:,.0f}, "
        f"optimizer {moments / mb:,.0f}, average {average / mb:,.0f}, "
        f"activations {activations / mb:,.0f}",
    ]


class Memory:
    """What batches need of a device, and what there is.

    :param optimizer_bytes: of states that the first step has yet to make.
    :param gradients: whether the gradients of all parameters lie there during a forward pass, as
        those of the micro-batches before (``--accum``) and the buckets of ddp do.
    :param processes: that share the memory of the host: ranks on this machine.
    :param free: bytes of host memory that can be taken; `free_memory` by default.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        optimizer_bytes: int,
        processes: int = 1,
        gradients: bool = False,
        free: Callable[[], int | None] | None = None,
    ):
        self.model, self.device, self.dtype = model, device, dtype
        self.optimizer_bytes, self.processes = optimizer_bytes, processes
        self.gradients = gradients
        self.free = free or free_memory

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
        self.model.train()
        try:
            if self.gradients:
                for p in self.model.parameters():
                    p.grad = torch.zeros_like(p) if p.requires_grad else None
            with torch.autocast("cuda", self.dtype, enabled=self.dtype != torch.float32):
                out = self.model(batch.to(self.device))
            out.loss.backward()
            peak = torch.cuda.max_memory_allocated(self.device) - before
        except torch.OutOfMemoryError:
            peak = inf
        # after the handler: the exception holds the tensors of the frames that it came through,
        out = None  # and this one the graph
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return peak


def activation_bytes(model, batch: Batch, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that the forward pass of `batch` keeps for the backward pass, measured by one."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = model(batch.to(device))
    del out
    return sum(kept.values())


def optimizer_bytes(model, config) -> int:
    """Bytes of the moments that the first step will make, and of the averages.

    :param config: `OptimConfig`.
    """
    numbers = sum(p.numel() for p in model.parameters())
    hidden = sum(p.numel() for p in model.muon_parameters()) if config.optimizer == "muon" else 0
    averages = numbers if config.ema_decay else 0
    return 4 * (2 * numbers - hidden + averages)


def free_memory(
    meminfo: str | Path = "/proc/meminfo",
    cgroup: str | Path = "/proc/self/cgroup",
    root: str | Path = "/sys/fs/cgroup",
) -> int | None:
    """Bytes that can be taken without swapping or being killed; None where nothing tells.

    The least of what the kernel calls available and what each control group above this process has
    left, versions 1 and 2, file cache that can be dropped counted as free. Batch systems and
    containers set such limits, and the kernel kills whoever exceeds them.
    """
    left = [_group_left(folder, names) for folder, names in _groups(Path(cgroup), Path(root))]
    left.append(_available(Path(meminfo)))
    known = [max(0, n) for n in left if n is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    with suppress(OSError):
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return None


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _groups(cgroup: Path, root: Path):
    """(folder, names of its files) of the groups of this process, and all above them."""
    if not cgroup.exists():
        return
    for line in cgroup.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        # in a container the path may be the host's and not exist; the top is then its own group
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                yield group, names


def _group_left(folder: Path, names: tuple[str, str, str]) -> int | None:
    limit, usage, cache = names
    try:
        most = int((folder / limit).read_text())  # "max": ValueError
        used = int((folder / usage).read_text())
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        stat = (folder / "memory.stat").read_text()
        if found := re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE):
            used -= int(found[1])
    return None if most >= _NO_LIMIT else most - used
