"""The epoch plan: which frames of which cuts make up every batch of an epoch, on every rank.

`plan_epoch` is a function of the cut lengths, the flags, the seed, the epoch and the number of
ranks, and nothing else, so a run resumes anywhere by calling it again. It turns cuts into items
(whole cuts, tiling windows or random crops), shuffles them, sorts windows of ``--shuffle-window``
of them by length, and slices each window into batches whose padded size never exceeds the budget.
Batches of like size are dealt to the ranks step by step and the steps are shuffled. Every item
comes once; all ranks get equally many batches because as many batches as it takes are halved.

All randomness is counter-based (Philox keyed by seed and epoch); a million cuts take a fraction
of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import numpy as np

from rvqlm.data.curriculum import (
    Schedule,
    generator,
    parse_schedule,
    take_hours,
    to_frames,
    to_seconds,
    to_weights,
    value_at,
)
from rvqlm.errors import UserError


@dataclass(frozen=True)
class PlanConfig:
    """How cuts become batches; lengths in frames unless a name says duration (seconds)."""

    max_duration: float = 150.0
    """Seconds of audio in a batch, padding included: no batch exceeds it."""
    max_cuts: int = 0
    """At most so many items in a batch; 0: no limit."""
    filter_min_duration: float = 0.0
    """Leave out cuts shorter than this many seconds."""
    filter_max_duration: float = 0.0
    """Leave out cuts longer than this many seconds; 0: keep all."""
    window_frames: int = 0
    """Cut every recording into windows of so many frames, all of them used in each epoch;
    0: whole cuts."""
    hop_frames: int = 0
    """Frames from the start of one window to the next; 0: as many as the window has, so that
    every frame comes exactly once."""
    crop_frames: int = 0
    """Take one random crop of so many frames out of each longer cut, another in each epoch;
    0: whole cuts."""
    shuffle_window: int = 20000
    """Items that are sorted by length together. Larger: less padding, batches of more uniform
    length; smaller: more random company in a batch."""
    quadratic_frames: int = 0
    """Count T + T^2/q frames for an item of T frames, with q this number, where attention makes
    long items dearer; 0: count T."""
    length_multiple: int = 1
    """Pad every batch to a multiple of so many frames, for compiled models that like few shapes."""
    window_schedule: tuple[str, ...] = ()
    """--window-frames by epoch, such as 0:512 10:1024: short windows first, longer ones from epoch
    10 on."""
    crop_schedule: tuple[str, ...] = ()
    """--crop-frames by epoch."""
    max_seconds_schedule: tuple[str, ...] = ()
    """--filter-max-duration by epoch, such as 0:5 4:15."""
    epoch_hours: float = 0.0
    """Hours of an epoch, drawn without repetition until all data were used; 0: all data. With it
    schedules have steps finer than passes over the data."""
    mix_weights: tuple[str, ...] = ()
    """Shares of the hours of an epoch for --manifest-dir and each of --mix-dirs, by epoch, such as
    0:1,1 5:1,3; unset: as they are."""

    def check(self) -> None:
        """Raise `UserError` listing everything that is wrong with the flags."""
        problems = self._schedule_problems()
        if not 0 < self.max_duration < float("inf"):
            problems.append(f"--max-duration {self.max_duration} is not positive")
        names = (
            *("max_cuts", "filter_min_duration", "filter_max_duration", "window_frames"),
            *("hop_frames", "crop_frames", "quadratic_frames", "epoch_hours"),
        )
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                flag = name.replace("_", "-")
                problems.append(f"--{flag} {getattr(self, name)} is negative or not a number")
        if 0 < self.filter_max_duration < self.filter_min_duration:
            problems.append(
                f"--filter-min-duration {self.filter_min_duration} is above "
                f"--filter-max-duration {self.filter_max_duration}"
            )
        if self.hop_frames and not self.window_frames and not self.window_schedule:
            problems.append("--hop-frames needs --window-frames or --window-schedule")
        if self.hop_frames > self.window_frames > 0:
            problems.append(
                f"--hop-frames {self.hop_frames} above --window-frames {self.window_frames} "
                "would skip audio"
            )
        if self.crop_frames and self.window_frames:
            problems.append("--crop-frames and --window-frames exclude each other")
        if self.shuffle_window < 1:
            problems.append(f"--shuffle-window {self.shuffle_window} is not positive")
        if self.length_multiple < 1:
            problems.append(f"--length-multiple {self.length_multiple} is not positive")
        if problems:
            raise UserError("; ".join(problems))

    def schedules(self) -> dict[str, Schedule]:
        """The schedules by the name of the field that they set; `UserError` for a bad one."""
        return {
            name: parse_schedule(getattr(self, of), f"--{of.replace('_', '-')}", convert)
            for name, of, convert in _SCHEDULES
            if getattr(self, of)
        }

    def _schedule_problems(self) -> list[str]:
        problems = []
        try:
            schedules = self.schedules()
        except UserError as e:
            return [str(e)]
        for name, of, _ in _SCHEDULES:
            fixed, by_epoch = f"--{name.replace('_', '-')}", f"--{of.replace('_', '-')}"
            if name in schedules and getattr(self, name, 0):
                problems.append(f"{fixed} and {by_epoch} exclude each other")
        windows = [v for _, v in schedules.get("window_frames", [])]
        if windows and self.hop_frames > min(windows):
            problems.append(
                f"--hop-frames {self.hop_frames} above --window-schedule's {min(windows)} would "
                "skip audio"
            )
        if windows and (self.crop_frames or self.crop_schedule):
            problems.append("windows and crops exclude each other")
        if self.window_frames and self.crop_schedule:
            problems.append("windows and crops exclude each other")
        return problems

    def at(self, epoch: int) -> PlanConfig:
        """The flags that hold in an epoch, without schedules of lengths (the shares of
        ``mix_weights`` are read by `plan_epoch`)."""
        now = {
            name: value_at(schedule, epoch)
            for name, schedule in self.schedules().items()
            if name != "mix"
        }
        if not now:
            return self
        cleared = {of: () for name, of, _ in _SCHEDULES if name != "mix"}
        return replace(self, **now, **cleared)

    def change_epochs(self) -> list[int]:
        """Epochs in which a schedule begins another value, 0 included."""
        return sorted({0} | {e for s in self.schedules().values() for e, _ in s})

    def for_validation(self) -> PlanConfig:
        """The flags for held-out data: every frame once, long cuts in tiles where training takes
        crops or overlapping windows of them, with the largest values of schedules."""
        schedules = self.schedules()

        def largest(name: str, fixed):
            return max((v for _, v in schedules.get(name, [])), default=fixed)

        window = largest("window_frames", self.window_frames)
        window = window or largest("crop_frames", self.crop_frames)
        limits = [v for _, v in schedules.get("filter_max_duration", [])]
        longest = self.filter_max_duration if not limits else max(limits) if min(limits) else 0.0
        return replace(
            self,
            window_frames=window,
            hop_frames=0,
            crop_frames=0,
            filter_max_duration=longest,
            epoch_hours=0.0,
            **{of: () for _, of, _ in _SCHEDULES},
        )

    def budget(self, frame_rate: Fraction) -> int:
        """Frames in `max_duration`, rounded down."""
        return floor(_exact(self.max_duration) * frame_rate)


def _exact(seconds: float) -> Fraction:
    """The decimal that was typed, not the nearest binary float: 0.1 s at 10 Hz is one frame."""
    return Fraction(repr(float(seconds)))


_SCHEDULES = (
    ("window_frames", "window_schedule", to_frames),
    ("crop_frames", "crop_schedule", to_frames),
    ("filter_max_duration", "max_seconds_schedule", to_seconds),
    ("mix", "mix_weights", to_weights),
)
"""Field that a schedule sets, field that it is given by, and how its values are read."""

_CROPS, _ITEMS, _STEPS = 0, 1, 2  # streams of random numbers


class EpochPlan:
    """An epoch (or what is left of one), dealt to `world_size` ranks in `num_steps` steps.

    Items are rows of three columns in memory; a batch is a run of consecutive items. 12 bytes an
    item and 8 bytes a batch.
    """

    def __init__(
        self,
        items: tuple[np.ndarray, np.ndarray, np.ndarray],
        first: np.ndarray,
        count: np.ndarray,
        world_size: int,
        length_multiple: int,
    ):
        self.items, self.first, self.count = items, first, count
        self.world_size, self.length_multiple = world_size, length_multiple

    @property
    def num_steps(self) -> int:
        """Batches of each rank."""
        return len(self.first) // self.world_size

    @property
    def num_items(self) -> int:
        return int(self.count.sum(dtype=np.int64))

    def batch(self, rank: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the index, first frames and numbers of frames of a batch: three (B,) arrays,
        longest item first."""
        if not (0 <= rank < self.world_size and 0 <= step < self.num_steps):
            raise IndexError(f"rank {rank} of {self.world_size}, step {step} of {self.num_steps}")
        # turn the ranks from step to step, or the first would always have the longest items
        number = step * self.world_size + (rank + step) % self.world_size
        run = slice(self.first[number], self.first[number] + self.count[number])
        rows, starts, lengths = (column[run] for column in self.items)
        return rows, starts, lengths

    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """(M,) items and (M,) padded frames T of every batch, in the order of steps."""
        longest = self.items[2][self.first]  # items of a batch are sorted, longest first
        return self.count, _round_up(longest, self.length_multiple)

    @property
    def padding(self) -> float:
        """Share of all (B, T) grids that is padding."""
        count, longest = self.shapes()
        grid = int((count.astype(np.int64) * longest).sum())
        ends = self.first + self.count
        total = np.concatenate(([0], np.cumsum(self.items[2], dtype=np.int64)))
        return 1.0 - int((total[ends] - total[self.first]).sum()) / grid

    def rest(self, step: int, world_size: int) -> EpochPlan:
        """The batches from `step` on, in the same order, dealt to another number of ranks.

        This is how a run continues on other hardware in the middle of an epoch with every item
        still coming once: only the dealing changes (and a batch may be halved to make it even).
        """
        done = step * self.world_size
        first, count, items = self.first[done:], self.count[done:], self.items
        items, first, count = _split(items, first, count, -len(first) % world_size)
        return EpochPlan(items, first, count, world_size, self.length_multiple)


def plan_epoch(
    frames: np.ndarray,
    config: PlanConfig,
    frame_rate: Fraction,
    seed: int,
    epoch: int,
    world_size: int,
    shuffle: bool = True,
    describe: Callable[[int], str] = lambda row: f"in row {row}",
    parts: np.ndarray | None = None,
) -> EpochPlan:
    """Plan an epoch over cuts of `frames` (N,) frames.

    Without `shuffle` (validation) items are sorted by length all together and steps keep that
    order, but for batches that are not full, which come last. `describe`
    names the cut of a row for messages. `parts` are the first rows of the data sets that were put
    together, for ``mix_weights``.

    Raises `UserError` when no cut is left, when an item alone exceeds the budget, or when there
    are fewer frames than ranks.
    """
    config.check()
    if world_size < 1 or epoch < 0:
        raise ValueError(f"world_size {world_size}, epoch {epoch}")
    frames = np.asarray(frames)
    rows = _rows(frames, config, frame_rate, seed, epoch, parts)
    config = config.at(epoch)
    rows, starts, lengths = _items(frames, rows, config, seed, epoch)
    cost, limit = _cost(config, frame_rate)
    if len(lengths) and cost(int(lengths.max())) > limit:
        _refuse(rows, starts, lengths, config, frame_rate, describe)

    if shuffle:
        order = np.arange(len(rows), dtype=np.uint32)
        generator(seed, epoch, _ITEMS).shuffle(order)
        windows = max(1, round(len(order) / config.shuffle_window))
    else:
        order, windows = np.arange(len(rows), dtype=np.uint32), 1
    first, count = _slice(order, lengths, cost, limit, config, windows)
    # one column at a time: this is where memory peaks
    lengths = lengths[order]
    rows = rows[order]
    starts = starts if starts.strides == (0,) else starts[order]
    items = rows, starts, lengths
    items, first, count = _split(items, first, count, -len(first) % world_size)

    # Neighbours share a step, so sort: by share of the budget in eighths (nearly all batches are
    # full; the rest go together), then by length.
    longest = items[2][first].astype(np.int64)
    grid = cost(longest) * count
    deal = np.lexsort((-longest, -(grid * 8 // limit)))
    if shuffle:
        steps = deal.reshape(-1, world_size)
        deal = steps[generator(seed, epoch, _STEPS).permutation(len(steps))].reshape(-1)
    return EpochPlan(items, first[deal], count[deal], world_size, config.length_multiple)


def _round_up(values, multiple: int):
    return -(-np.asarray(values).astype(np.int64) // multiple) * multiple


def _cost(config: PlanConfig, frame_rate: Fraction):
    """Cost of an item by its frames and the limit for n * cost, both in whole numbers."""
    limit, q, multiple = config.budget(frame_rate), config.quadratic_frames, config.length_multiple
    if q:
        return lambda t: _round_up(t, multiple) * (_round_up(t, multiple) + q), limit * q
    return lambda t: _round_up(t, multiple), limit


def _eligible(frames: np.ndarray, config: PlanConfig, frame_rate: Fraction) -> np.ndarray:
    """Rows (uint32) of the cuts between the duration filters."""
    low = max(1, ceil(_exact(config.filter_min_duration) * frame_rate))
    high = 1 << 32
    if config.filter_max_duration:
        high = floor(_exact(config.filter_max_duration) * frame_rate)
    rows = np.arange(len(frames), dtype=np.uint32)
    rows = rows[(frames >= low) & (frames <= high)]
    if not len(rows):
        raise UserError(
            f"none of {len(frames)} cuts is between --filter-min-duration "
            f"{config.filter_min_duration} and --filter-max-duration {config.filter_max_duration} s"
        )
    return rows


def _rows(
    frames: np.ndarray,
    config: PlanConfig,
    frame_rate: Fraction,
    seed: int,
    epoch: int,
    parts: np.ndarray | None,
) -> np.ndarray:
    """Rows of the cuts of an epoch: all eligible ones, or those of its hours."""
    now = config.at(epoch)
    eligible = _eligible(frames, now, frame_rate)
    if not config.epoch_hours and not config.mix_weights:
        return eligible
    bounds = np.append([0] if parts is None else parts, len(frames))
    inside = [
        eligible[slice(*np.searchsorted(eligible, (low, high)))] for low, high in pairwise(bounds)
    ]
    totals = [int(frames[rows].sum(dtype=np.int64)) for rows in inside]
    size = float(_exact(config.epoch_hours) * 3600 * frame_rate) or float(sum(totals))
    schedule = config.schedules().get("mix", [(0, tuple(t / sum(totals) for t in totals))])
    for _, shares in schedule:
        if len(shares) != len(inside):
            raise UserError(
                f"--mix-weights has {len(shares)} weights and there are {len(inside)} data sets: "
                "give one for --manifest-dir and one for each of --mix-dirs"
            )
    # passes begin anew where other cuts become eligible
    filters = [e for e, _ in config.schedules().get("filter_max_duration", [(0, 0.0)])]
    since = max(e for e in filters if e <= epoch)
    chosen = []
    for part, (rows, total) in enumerate(zip(inside, totals)):
        before = _hours_before(schedule, part, since, epoch) * size
        share = value_at(schedule, epoch)[part]
        if share and not total:
            raise UserError(
                f"--mix-weights: no cut of data set {part + 1} passes the duration filters"
            )
        if share:
            stream = part + len(bounds) * filters.index(since)
            end = before + share * size
            chosen.append(take_hours(rows, frames[rows], before, end, seed, stream))
    rows = np.concatenate(chosen)
    if not len(rows):
        raise UserError(f"--epoch-hours {config.epoch_hours:g}: less than the first cut")
    return rows


def _hours_before(schedule: Schedule, part: int, since: int, epoch: int) -> float:
    """Epochs' worth of a data set that epochs [since, epoch) took: the sum of its shares."""
    edges = [*[first for first, _ in schedule], 1 << 60]
    return sum(
        shares[part] * max(0, min(epoch, after) - max(since, first))
        for (first, shares), after in zip(schedule, edges[1:])
    )


def _items(
    frames: np.ndarray, rows: np.ndarray, config: PlanConfig, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, starts and lengths (uint32) of everything that the epoch contains."""
    lengths = frames[rows].astype(np.uint32)
    if window := config.window_frames:
        hop = config.hop_frames or window
        # the last window is the first that reaches the end of its cut
        number = 1 + -(-np.maximum(lengths.astype(np.int64) - window, 0) // hop)
        which = np.repeat(np.arange(len(rows)), number)
        begin = np.cumsum(number) - number
        starts = ((np.arange(len(which)) - begin[which]) * hop).astype(np.uint32)
        return rows[which], starts, np.minimum(lengths[which] - starts, window).astype(np.uint32)
    if crop := config.crop_frames:
        spare = np.maximum(lengths.astype(np.int64) - crop, 0)
        starts = generator(seed, epoch, _CROPS).integers(0, spare, endpoint=True)
        return rows, starts.astype(np.uint32), np.minimum(lengths, crop).astype(np.uint32)
    return rows, np.broadcast_to(np.uint32(0), len(rows)), lengths  # zeros without memory


def _refuse(rows, starts, lengths, config: PlanConfig, frame_rate: Fraction, describe) -> None:
    worst = int(lengths.argmax())
    long = int(lengths[worst])
    dearer = " with padding and --quadratic-frames" if config.quadratic_frames else ""
    raise UserError(
        f"cut {describe(int(rows[worst]))} has {long} frames ({float(long / frame_rate):.2f} s), "
        f"more{dearer} than --max-duration {config.max_duration:g} ({config.budget(frame_rate)} "
        "frames) allows in a batch: raise --max-duration, cut long recordings with "
        "--window-frames or --crop-frames, or leave them out with --filter-max-duration"
    )


def _slice(order, lengths, cost, limit: int, config: PlanConfig, windows: int):
    """Sort `order` in place, longest first within each window, and slice it into batches.

    Returns (M,) first positions in `order` and (M,) counts. A batch is as many items as the
    longest, which is its first, allows.
    """
    first: list[int] = []
    bounds = [len(order) * w // windows for w in range(windows + 1)]
    narrow = lengths.max() < 1 << 16
    for begin, end in pairwise(bounds):
        window = order[begin:end]
        length = lengths[window]
        # 16-bit keys sort in linear time; a stable sort is the same on every machine
        keys = length.max() - length
        by_length = np.argsort(keys.astype(np.uint16) if narrow else keys, kind="stable")
        window[:] = window[by_length]
        fit = limit // cost(length[by_length])
        if config.max_cuts:
            fit = np.minimum(fit, config.max_cuts)
        following, at, size = fit.tolist(), 0, end - begin
        while at < size:
            first.append(begin + at)
            at += following[at]
    positions = np.array(first, np.uint32)
    return positions, np.diff(positions, append=np.uint32(len(order))).astype(np.uint32)


def _split(items, first: np.ndarray, count: np.ndarray, more: int):
    """Halve batches until there are `more` of them; halves stay neighbours.

    Batches of most items go first. Where every batch has one item, the longest is halved in time
    (its two parts are two items from then on): every frame still comes once.
    """
    while more:
        chosen = np.argsort(-count.astype(np.int64), kind="stable")[:more]
        chosen = np.sort(chosen[count[chosen] > 1])
        if not len(chosen):
            items, first, count = _split_in_time(items, first, count)
            more -= 1
            continue
        half = count[chosen] // 2
        tail_first, tail_count = first[chosen] + half, count[chosen] - half
        count = count.copy()
        count[chosen] = half
        first = np.insert(first, chosen + 1, tail_first)
        count = np.insert(count, chosen + 1, tail_count)
        more -= len(chosen)
    return items, first, count


def _split_in_time(items, first: np.ndarray, count: np.ndarray):
    rows, starts, lengths = items
    batch = int(lengths[first].argmax())
    item = first[batch]
    head = (lengths[item] + 1) // 2
    if lengths[item] < 2:
        raise UserError("fewer frames than ranks: use fewer ranks, or more data")
    rows = np.append(rows, rows[item])
    starts = np.append(starts, starts[item] + head)
    lengths = np.append(lengths, lengths[item] - head)
    lengths[item] = head
    first = np.insert(first, batch + 1, np.uint32(len(rows) - 1))
    count = np.insert(count, batch + 1, np.uint32(1))
    return (rows, starts, lengths), first, count
