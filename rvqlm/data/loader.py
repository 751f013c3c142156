"""`TokenLoader`: the epoch plan read from shards into padded batches, one thread ahead.

Reading is a copy out of the page cache, so one prefetch thread keeps up with any trainer and no
worker processes are needed. `state_dict` describes the batches that were handed out, whatever the
thread has read ahead since; loading it continues with the very next batch, for any `prefetch`.

Items with codes that no codebook has (a shard changed since it was written) are left out of their
batch and named on stderr, the same ones in every run.

The state of an epoch is the list of ``[world size, steps done]`` that it was consumed with. On
another number of ranks the batches that are left are dealt anew, in the same order, so every item
of the epoch still comes exactly once.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rvqlm.batch import PAD, Batch, Padded, mask_of
from rvqlm.data.channel import Channel
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.plan import EpochPlan, PlanConfig, check_epochs, plan_epoch, rows_of
from rvqlm.errors import UserError

MOST_NAMED = 20
"""Damaged items that are named; there may be millions."""


class TokenLoader:
    """Infinite iterator of `Batch` over the epochs of a dataset.

    Parameters
    ----------
    dataset: what `TokenDataset.open` returned.
    config: the plan's flags.
    seed: of shuffling and crops.
    rank, world_size: this process's share; ranks get equally many batches in every epoch.
    prefetch: batches read ahead; memory grows by as many batches and nothing else changes.
    pin: page-locked batches, for copies to a GPU that do not wait. torch's host allocator
        recycles these buffers, and only after a copy out of them has finished.
    conditions: what to read beside the codes (`Batch.conditions`); of the same dataset.

    Codes are int16, int32 where codebooks have more than 32767 entries.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        config: PlanConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 4,
        pin: bool = False,
        conditions: ConditionSet | None = None,
    ):
        if not 0 <= rank < world_size or prefetch < 1:
            raise ValueError(f"rank {rank} of {world_size}, prefetch {prefetch}")
        config.check()
        if conditions is not None:
            conditions.check_plan(config)
        self.conditions = conditions
        self._damaged = _Damaged(dataset)
        self.dataset, self.config, self.seed = dataset, config, seed
        self.rank, self.world_size, self.prefetch, self.pin = rank, world_size, prefetch, pin
        if len(config.change_epochs()) > 1:
            rate, parts = dataset.info.frame_rate, dataset.parts
            check_epochs(dataset.frames, config, rate, lambda row: repr(dataset.id_of(row)), parts)
        # a partial and no method: the thread must not hold the loader
        self._plan_of = partial(plan_of, dataset, config, seed)
        self._epoch = 0
        self._history = [[world_size, 0]]  # of this epoch, its last part not at its end
        self._plan: EpochPlan | None = None
        self._channel: Channel | None = None
        self._finalizer: weakref.finalize | None = None

    # ------------------------------------------------------------------------------- position

    @property
    def epoch(self) -> int:
        """Epoch of the last batch handed out; before that, of the first to come."""
        return self._epoch

    @property
    def step(self) -> int:
        """Batches of this epoch handed out so far, on each rank: `epoch_steps` at its end."""
        return sum(steps for _, steps in self._history)

    @property
    def epoch_steps(self) -> int:
        """Batches of the current epoch on each rank, those handed out included."""
        return sum(s for _, s in self._history[:-1]) + self._current_plan().num_steps

    @property
    def epoch_items(self) -> int:
        """Items (cuts, windows or crops) of what is left of the current epoch, of all ranks."""
        return int(self._current_plan().count.sum())

    def _current_plan(self) -> EpochPlan:
        if self._plan is None:
            (world, done), *later = self._history
            plan = self._plan_of(self._epoch, world)
            for next_world, steps in later:
                plan = plan.rest(done, next_world)
                world, done = next_world, steps
            self._plan = plan
        return self._plan

    def state_dict(self) -> dict:
        """Where the loader stands after the batches handed out; plain numbers and strings."""
        return {
            "epoch": self._epoch,
            "history": [list(part) for part in self._history],
            "seed": self.seed,
            "fingerprint": self.dataset.fingerprint,
            "plan": asdict(self.config),
            "conditions": self.conditions.state() if self.conditions else {},
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume after the last batch that `state` counts.

        Raises `UserError` when data, seed, plan flags or conditions differ: they fix what comes.
        """
        conditions = self.conditions.state() if self.conditions else {}
        mine = {"seed": self.seed, **asdict(self.config), **conditions}
        # flags that are younger than the state: their defaults are what it was made with
        plan = asdict(PlanConfig()) | state["plan"]
        theirs = {"seed": state["seed"], **plan, **state.get("conditions", {})}
        times = [found.pop("text_times", "") for found in (theirs, mine)]
        changed = [
            f"--{name.replace('_', '-')} was {theirs.get(name)}, is {mine.get(name)}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]
        if times[0] != times[1]:
            was, now = ("yes" if mark else "no" for mark in times)
            changed.append(
                f"--text-times was {was}, is {now}"
                if was != now
                else "rvqlm align was run again: the times of the texts in "
                f"{self.dataset.directory} are others ({times[1]}, were {times[0]})"
            )
        if state["fingerprint"] != self.dataset.fingerprint:
            changed.insert(
                0,
                f"the data in {self.dataset.directory} changed (fingerprint was "
                f"{state['fingerprint']}, is {self.dataset.fingerprint})",
            )
        if changed:
            raise UserError(
                f"cannot resume in the middle of this data: {'; '.join(changed)}; restore these, "
                "or start over in another --exp-dir"
            )
        self.close()
        self._epoch, self._plan = int(state["epoch"]), None
        history = [[int(world), int(steps)] for world, steps in state["history"]]
        if history[-1][0] != self.world_size:
            if history[-1][1] == 0:
                history.pop()
            history.append([self.world_size, 0])
        self._history = history
        self._normalise()

    def _normalise(self) -> None:
        """At the end of an epoch, stand at the beginning of the next."""
        if self._history[-1][1] >= self._current_plan().num_steps:
            self._epoch += 1
            self._history, self._plan = [[self.world_size, 0]], None

    # ------------------------------------------------------------------------------ iteration

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._channel is None:
            self._start()
        batch, plan = self._channel.get()
        if plan is None:
            self.close()
            raise batch
        if batch.epoch != self._epoch:
            self._epoch, self._plan = batch.epoch, plan
            self._history = [[self.world_size, 0]]
        self._history[-1][1] += 1
        return batch

    def epoch_batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in fixed order: for validation.

        Does not move the loader. With ``--crop-frames`` the crops are those of `epoch`.
        """
        plan = self._plan_of(epoch, self.world_size, shuffle=False)
        channel = Channel(self.prefetch)
        thread = self._run(channel, _one_epoch(plan, epoch))
        try:
            for _ in range(plan.num_steps):
                batch, of = channel.get()
                if of is None:
                    raise batch
                yield batch
        finally:
            _stop(channel, thread)

    def worst_batch(self, in_rows: bool = False) -> Batch:
        """The batch with the largest grid of items and padded frames, of this epoch and of those to
        come in which a schedule changes something.

        :param in_rows: leave items in their rows, where several share one; else each row becomes an
            item.
        """
        later = [e for e in self.config.change_epochs() if e > self._epoch]
        epochs = [self._epoch, *later]
        plans = [self._plan_of(e, self.world_size) for e in later]
        plans.insert(0, self._current_plan())
        grids = [np.prod(plan.shapes(), axis=0, dtype=np.int64) for plan in plans]
        which = int(np.argmax([grid.max() for grid in grids]))
        plan, number = plans[which], int(grids[which].argmax())
        step = number // plan.world_size
        rank = (number - step) % plan.world_size  # as EpochPlan.batch turns them
        found = read_batch(
            self.dataset, plan, rank, step, epochs[which], conditions=self.conditions
        )
        found.codes.clamp_(PAD, self.dataset.info.codebook_size - 1)  # damaged ones
        for kind, padded in found.conditions.items():
            last = torch.tensor(self.conditions.infos[kind].sizes, dtype=padded.values.dtype) - 1
            torch.minimum(padded.values, last, out=padded.values)
        return found if in_rows or found.rows is None else _like_rows(found)

    def shapes(self) -> set[tuple[int, int]]:
        """(B, T) of the batches of this epoch, on all ranks."""
        count, longest = self._current_plan().shapes()
        return set(zip(count.tolist(), longest.tolist()))

    def close(self) -> None:
        """Stop the thread; the next batch starts it again at the right place."""
        if self._finalizer is not None:
            self._finalizer()
        self._channel = self._finalizer = None

    def _start(self) -> None:
        # The thread must not hold the loader, or a dropped loader would never be collected.
        self._normalise()
        plan_of, world = self._plan_of, self.world_size
        epoch, plan = self._epoch, self._current_plan()
        first, before = self._history[-1][1], sum(s for _, s in self._history[:-1])

        def positions() -> Iterator[tuple[EpochPlan, int, int, int]]:
            for step in range(first, plan.num_steps):
                yield plan, epoch, step, before + step
            for later in range(epoch + 1, 1 << 55):
                yield from _one_epoch(plan_of(later, world), later)

        self._channel = Channel(self.prefetch)
        thread = self._run(self._channel, positions())
        self._finalizer = weakref.finalize(self, _stop, self._channel, thread)

    def _run(self, channel: Channel, positions: Iterator) -> threading.Thread:
        thread = threading.Thread(
            target=_produce,
            args=(
                *(channel, positions, self.dataset, self.rank, self.pin, self.conditions),
                self._damaged,
            ),
            name="rvqlm-prefetch",
            daemon=True,
        )
        thread.start()
        return thread


def plan_of(
    dataset: TokenDataset,
    config: PlanConfig,
    seed: int,
    epoch: int,
    world_size: int,
    shuffle: bool = True,
) -> EpochPlan:
    """`plan_epoch` over the cuts of a data set."""
    return plan_epoch(
        dataset.frames,
        config,
        dataset.info.frame_rate,
        seed,
        epoch,
        world_size,
        shuffle=shuffle,
        describe=lambda row: repr(dataset.id_of(row)),
        parts=dataset.parts,
    )


def read_batch(
    dataset: TokenDataset,
    plan: EpochPlan,
    rank: int,
    step: int,
    epoch: int = 0,
    number: int | None = None,
    pin: bool = False,
    conditions: ConditionSet | None = None,
    damaged: Callable[[int], None] | None = None,
) -> Batch:
    """The batch of `rank` at `step` of a plan, read from the shards.

    :param number: its `Batch.step`, `step` unless given.
    :param damaged: called with each row that is left out, since its codes or conditions are none;
        there may be no other. None: all are there as they are.
    """
    items = plan.batch(rank, step)
    rows, starts, lengths = items
    multiple = plan.length_multiple
    longest = -(-int(lengths.max()) // multiple) * multiple
    dtype = torch.int32 if dataset.dtype.name in ("uint16", "uint32") else torch.int16
    shape = (len(rows), longest, dataset.info.num_codebooks)
    codes = torch.empty(shape, dtype=dtype, pin_memory=pin)
    out = codes.numpy()
    good, unsigned = np.ones(len(rows), bool), f"<u{dataset.dtype.itemsize}"
    for n, (row, start, length) in enumerate(zip(*(column.tolist() for column in items))):
        view = dataset.view(row, start, length)
        good[n] = view.view(unsigned).max(initial=0) < dataset.info.codebook_size
        out[n, :length] = view
        out[n, length:] = PAD
    at_end = starts.astype(np.int64) + lengths == dataset.frames[rows]
    batch = Batch(
        codes=codes,
        lengths=torch.from_numpy(lengths.astype(np.int64)),
        ends=torch.from_numpy(at_end & dataset.ends(rows)),
        index=torch.from_numpy(rows.astype(np.int64)),
        epoch=epoch,
        step=step if number is None else number,
        begins=torch.from_numpy(starts == 0),
        conditions=conditions.read(items, epoch) if conditions else {},
    )
    if plan.packing:
        places = torch.from_numpy(rows_of(lengths, plan.packing))
        batch.rows, batch.row_frames = torch.stack([places, batch.lengths], 1), plan.packing
    for kind, padded in batch.conditions.items():
        sizes = torch.tensor(conditions.infos[kind].sizes, dtype=padded.values.dtype)
        good &= (padded.values < sizes).flatten(1).all(1).numpy()
    if damaged is not None and not good.all():
        for row in rows[~good].tolist():
            damaged(row)
        kept = torch.from_numpy(good)
        batch = batch.map(lambda t: t[kept])
    return batch.map(lambda t: t.pin_memory()) if pin else batch


def _like_rows(batch: Batch) -> Batch:
    """A padded batch of an item a row, as long as the rows and with the conditions of all items of
    each: it takes as much memory."""
    number, frames = batch.cells // batch.row_frames, batch.row_frames
    codes = batch.codes[batch.codes[..., 0] != PAD]
    codes = codes[torch.arange(number * frames) % len(codes)].unflatten(0, (number, frames))
    fields = {k: v[:number] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    fields |= {"codes": codes, "lengths": torch.full((number,), frames), "rows": None}
    row = batch.rows[:, 0]
    conditions = {kind: _of_rows(given, row) for kind, given in batch.conditions.items()}
    return replace(batch, **fields, conditions=conditions, row_frames=0)


def _of_rows(given: Padded, row: Tensor) -> Padded:
    """Steps of items, those of a row in one. ``row`` (B,)"""
    exists = mask_of(given.lengths, given.values.shape[1])
    of_rows = [exists & (row == number)[:, None] for number in row.unique()]
    times = None if given.times is None else [given.times[of] for of in of_rows]
    return Padded.of([given.values[of] for of in of_rows], given.values.shape[2], times)


class _Damaged:
    """Names each damaged item once, on stderr."""

    def __init__(self, dataset: TokenDataset):
        self.dataset, self.seen = dataset, set()

    def __call__(self, row: int) -> None:
        if row in self.seen:
            return
        self.seen.add(row)
        if len(self.seen) <= MOST_NAMED:
            what = f"cut {self.dataset.id_of(row)!r} (row {row} of {self.dataset.split})"
            also = "; no more are named" if len(self.seen) == MOST_NAMED else ""
            print(
                f"{self.dataset.directory}: {what} has codes or conditions out of range and is "
                f"left out; rvqlm validate finds the damage{also}",
                file=sys.stderr,
                flush=True,
            )


def _one_epoch(plan: EpochPlan, epoch: int) -> Iterator[tuple[EpochPlan, int, int, int]]:
    for step in range(plan.num_steps):
        yield plan, epoch, step, step


def _produce(
    channel: Channel, positions: Iterator, dataset, rank: int, pin: bool, conditions, damaged
) -> None:
    try:
        for plan, epoch, step, number in positions:
            for n in range(plan.num_steps):  # where no item is left, the next batch comes twice
                other = (step + n) % plan.num_steps
                batch = read_batch(
                    dataset, plan, rank, other, epoch, number, pin, conditions, damaged
                )
                if len(batch.codes):
                    break
            else:
                raise UserError(f"{dataset.directory}: all items of an epoch are damaged")
            if not channel.put((batch, plan)):
                return
    except BaseException as e:  # every error belongs to whoever takes the batches
        channel.put((e, None))


def _stop(channel: Channel, thread: threading.Thread) -> None:
    """Close and wait: a thread that frees a batch while the interpreter shuts down ends the process
    with SIGABRT (the memory of a tensor made of an array is given back under the GIL)."""
    channel.close()
    if thread is not threading.current_thread():
        thread.join()
