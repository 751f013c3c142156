"""The epoch plan: which frames of which cuts make up every batch of an epoch, on every rank.

`plan_epoch` is a function of the cut lengths, the flags, the seed, the epoch and the number of
ranks, and nothing else, so a run resumes anywhere by calling it again. It takes the cuts of the
epoch (`rvqlm.data.selection`), turns them into items (whole cuts, tiling windows or random crops),
shuffles them, sorts windows of ``--shuffle-window`` of them by length, and slices each window into
batches whose padded size never exceeds the budget. Batches of like size are dealt to the ranks step
by step and the steps are shuffled. Every item comes once; all ranks get equally many batches
because as many batches as it takes are halved.

All randomness is counter-based (Philox keyed by seed and epoch); a million cuts take a fraction
of a second.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rvqlm.data.plan_config import PlanConfig
from rvqlm.data.selection import Pool, draw, generator, pools
from rvqlm.errors import UserError

_CROPS, _ITEMS, _STEPS = 0, 1, 2  # streams of random numbers


class Items(NamedTuple):
    """What an epoch or a batch is made of: each item is frames [start, start + length) of a cut."""

    rows: np.ndarray
    """(n,) rows of the index: which cut."""
    starts: np.ndarray
    """(n,) first frames within the cuts."""
    lengths: np.ndarray
    """(n,) numbers of frames."""

    @classmethod
    def whole(cls, rows: np.ndarray, frames: np.ndarray) -> Items:
        """Whole cuts, of an index of `frames` (N,)."""
        zeros = np.broadcast_to(np.uint32(0), len(rows))  # without memory
        return cls(rows, zeros, np.asarray(frames)[rows].astype(np.uint32))

    def take(self, which: np.ndarray | slice) -> Items:
        """Some of the items, in another order maybe."""
        return Items(*(column[which] for column in self))


class EpochPlan:
    """An epoch (or what is left of one), dealt to `world_size` ranks in `num_steps` steps.

    A batch is a run of consecutive items: 12 bytes an item and 8 bytes a batch in memory.
    """

    def __init__(
        self,
        items: Items,
        first: np.ndarray,
        count: np.ndarray,
        world_size: int,
        length_multiple: int,
        packing: int = 0,
    ):
        self.items, self.first, self.count = items, first, count
        self.world_size, self.length_multiple = world_size, length_multiple
        self.packing = packing
        """Frames of a row that holds several items; 0: each has its own."""

    @property
    def num_steps(self) -> int:
        """Batches of each rank."""
        return len(self.first) // self.world_size

    def batch(self, rank: int, step: int) -> Items:
        """The items of a batch, longest first."""
        if not (0 <= rank < self.world_size and 0 <= step < self.num_steps):
            raise IndexError(f"rank {rank} of {self.world_size}, step {step} of {self.num_steps}")
        # turn the ranks from step to step, or the first would always have the longest items
        number = step * self.world_size + (rank + step) % self.world_size
        return self.items.take(slice(self.first[number], self.first[number] + self.count[number]))

    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """(M,) items and (M,) padded frames T of every batch, in the order of steps."""
        if self.packing:
            ends = self.first + self.count
            rows = [
                int(rows_of(self.items.lengths[a:b], self.packing)[-1]) + 1
                for a, b in zip(self.first.tolist(), ends.tolist())
            ]
            return np.array(rows, np.int64), np.full(len(rows), self.packing, np.int64)
        longest = self.items.lengths[self.first]  # items of a batch are sorted, longest first
        return self.count, _round_up(longest, self.length_multiple)

    @property
    def padding(self) -> float:
        """Padding ratio: share of all (B, T) grids that is padding."""
        count, longest = self.shapes()
        grid = int((count.astype(np.int64) * longest).sum())
        ends = self.first + self.count
        total = np.concatenate(([0], np.cumsum(self.items.lengths, dtype=np.int64)))
        return 1.0 - int((total[ends] - total[self.first]).sum()) / grid

    def rest(self, step: int, world_size: int) -> EpochPlan:
        """The batches from `step` on, in the same order, dealt to another number of ranks.

        This is how a run continues on other hardware in the middle of an epoch with every item
        still coming once: only the dealing changes (and a batch may be halved to make it even).
        """
        done = step * self.world_size
        first, count, items = self.first[done:], self.count[done:], self.items
        items, first, count = _split(items, first, count, -len(first) % world_size)
        return EpochPlan(items, first, count, world_size, self.length_multiple, self.packing)


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

    Raises `UserError` when no cut is left, when an item alone exceeds the budget (one that this
    epoch's hours leave out, too), or when there are fewer frames than ranks.
    """
    config.check()
    if world_size < 1 or epoch < 0:
        raise ValueError(f"world_size {world_size}, epoch {epoch}")
    frames = np.asarray(frames)
    chosen = pools(frames, config, frame_rate, epoch, parts)
    config = config.at(epoch)
    _check_longest(frames, chosen, config, frame_rate, describe)
    items = _items(frames, draw(frames, chosen, seed), config, seed, epoch)
    cost, limit = _cost(config, frame_rate)
    order, windows = np.arange(len(items.rows), dtype=np.uint32), 1
    if shuffle:
        generator(seed, epoch, _ITEMS).shuffle(order)
        windows = max(1, round(len(order) / config.shuffle_window))
    pack = _pack if config.packing else _slice
    first, count = pack(order, items.lengths, cost, limit, config, windows)
    for column in items:  # one at a time: this is where memory peaks
        if column.strides != (0,):  # the zeros of whole cuts
            column[:] = column[order]
    items, first, count = _split(items, first, count, -len(first) % world_size)

    # Neighbours share a step, so sort: by share of the budget in eighths (nearly all batches are
    # full; the rest go together), then by length.
    longest = items.lengths[first].astype(np.int64)
    grid = cost(longest) * count
    deal = np.lexsort((-longest, -(grid * 8 // limit)))
    if config.packing:  # rows are all alike
        deal = np.arange(len(first))
    if shuffle:
        steps = deal.reshape(-1, world_size)
        deal = steps[generator(seed, epoch, _STEPS).permutation(len(steps))].reshape(-1)
    shape = config.length_multiple, config.packing
    return EpochPlan(items, first[deal], count[deal], world_size, *shape)


def check_epochs(
    frames: np.ndarray,
    config: PlanConfig,
    frame_rate: Fraction,
    describe: Callable[[int], str] = lambda row: f"in row {row}",
    parts: np.ndarray | None = None,
) -> None:
    """Raise `UserError` where `plan_epoch` would in any epoch, before a week has gone by. Costs a
    look at the lengths for every change of a schedule."""
    for epoch in config.change_epochs():
        chosen = pools(frames, config, frame_rate, epoch, parts)
        _check_longest(frames, chosen, config.at(epoch), frame_rate, describe)


def _round_up(values, multiple: int):
    return -(-np.asarray(values).astype(np.int64) // multiple) * multiple


def _cost(config: PlanConfig, frame_rate: Fraction):
    """Cost of an item by its frames and the limit for n * cost, both in whole numbers."""
    limit, q, multiple = config.budget(frame_rate), config.quadratic_frames, config.length_multiple
    if q:
        return lambda t: _round_up(t, multiple) * (_round_up(t, multiple) + q), limit * q
    return lambda t: _round_up(t, multiple), limit


def _items(
    frames: np.ndarray, rows: np.ndarray, config: PlanConfig, seed: int, epoch: int
) -> Items:
    """Everything that the epoch contains; uint32."""
    if not (config.window_frames or config.crop_frames):
        return Items.whole(rows, frames)
    lengths = frames[rows].astype(np.uint32)
    if window := config.window_frames:
        hop = config.hop_frames or window
        # the last window is the first that reaches the end of its cut
        number = 1 + -(-np.maximum(lengths.astype(np.int64) - window, 0) // hop)
        which = np.repeat(np.arange(len(rows)), number)
        begin = np.cumsum(number) - number
        starts = ((np.arange(len(which)) - begin[which]) * hop).astype(np.uint32)
        lengths = np.minimum(lengths[which] - starts, window).astype(np.uint32)
        return Items(rows[which], starts, lengths)
    crop = config.crop_frames
    spare = np.maximum(lengths.astype(np.int64) - crop, 0)
    starts = generator(seed, epoch, _CROPS).integers(0, spare, endpoint=True)
    return Items(rows, starts.astype(np.uint32), np.minimum(lengths, crop).astype(np.uint32))


def _check_longest(
    frames: np.ndarray,
    chosen: Sequence[Pool],
    config: PlanConfig,
    frame_rate: Fraction,
    describe: Callable[[int], str],
) -> None:
    """Refuse cuts that no batch can hold before any of them is drawn."""
    tops = [int(frames[pool.rows].max()) for pool in chosen]
    part = config.window_frames or config.crop_frames or max(tops)
    long = min(part, max(tops))
    cost, limit = _cost(config, frame_rate)
    if config.packing > limit:
        raise UserError(
            f"--packing {config.packing}: a row is more than --max-duration "
            f"{config.max_duration:g} ({limit} frames)"
        )
    if cost(long) <= limit and (not config.packing or long <= config.packing):
        return
    rows = chosen[np.argmax(tops)].rows
    row = int(rows[np.argmax(frames[rows] >= long)])
    if config.packing:
        raise UserError(
            f"cut {describe(row)} has {long} frames, more than a row of --packing "
            f"{config.packing}: raise it, or give --window-frames, --crop-frames or "
            "--filter-max-duration"
        )
    dearer = " with padding and --quadratic-frames" if config.quadratic_frames else ""
    raise UserError(
        f"cut {describe(row)} has {long} frames ({float(long / frame_rate):.2f} s), "
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


def _pack(order, lengths, cost, limit: int, config: PlanConfig, windows: int):
    """As `_slice`, of rows that are filled: items, longest first, each go to the fullest row that
    has room. Rows are told apart again by `rows_of`, which opens another where an item does not
    fit: so a row stands before those that were opened later."""
    first, size, each = [], config.packing, limit // config.packing
    bounds = [len(order) * w // windows for w in range(windows + 1)]
    for begin, end in pairwise(bounds):
        window = order[begin:end]
        window[:] = window[np.argsort(-lengths[window].astype(np.int64), kind="stable")]
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # of each row what is left, and its number; sorted
        for place, length in enumerate(lengths[window].tolist()):
            at = bisect_left(room, (length, -1))
            if at == len(room):
                rows.append([place])
                left, number = size - length, len(rows) - 1
            else:
                left, number = room.pop(at)
                rows[number].append(place)
                left -= length
            if left:
                insort(room, (left, number))
        window[:] = window[[place for row in rows for place in row]]
        starts = np.cumsum([begin, *(len(row) for row in rows)])[:-1]
        first += starts[::each].tolist()
    positions = np.array(first, np.uint32)
    return positions, np.diff(positions, append=np.uint32(len(order))).astype(np.uint32)


def rows_of(lengths: np.ndarray, size: int) -> np.ndarray:
    """(n,) row of each item of a batch, where rows of `size` frames are filled one by one.

    >>> rows_of(np.array([5, 3, 6, 2, 2]), 8).tolist()
    [0, 0, 1, 1, 2]
    """
    rows, row, used = [], 0, 0
    for length in lengths.tolist():
        if used + length > size:
            row, used = row + 1, 0
        rows.append(row)
        used += length
    return np.array(rows, np.int64)


def _split(items: Items, first: np.ndarray, count: np.ndarray, more: int):
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


def _split_in_time(items: Items, first: np.ndarray, count: np.ndarray):
    """Halve the longest item, which is a batch of its own; its second half is the last item."""
    batch = int(items.lengths[first].argmax())
    item = first[batch]
    head = (items.lengths[item] + 1) // 2
    if items.lengths[item] < 2:
        raise UserError("fewer frames than ranks: use fewer ranks, or more data")
    items = items.take(np.append(np.arange(len(items.rows)), item))
    items.starts[-1] += head
    items.lengths[-1] -= head
    items.lengths[item] = head
    first = np.insert(first, batch + 1, np.uint32(len(items.rows) - 1))
    count = np.insert(count, batch + 1, np.uint32(1))
    return items, first, count
