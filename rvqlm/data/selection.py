"""Which cuts an epoch takes: all that pass the duration filters, or so many hours of them.

Epochs of so many hours are slices of an endless line of passes over the cuts, each pass in an order
of its own: within a pass no cut comes twice, however the epochs fall. Every data set has its own
line, and where it stands in an epoch follows from the weights of the epochs before, so nothing has
to be remembered and no earlier epoch has to be planned. Where a schedule changes which cuts are
eligible, the passes begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import numpy as np

from rvqlm.data.plan_config import PlanConfig, exact
from rvqlm.errors import UserError
from rvqlm.flags import Schedule, value_at


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Random numbers of their own for each (seed, epoch, stream < 256): Philox, counter-based."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed % (1 << 64), epoch << 8 | stream], np.uint64))
    )


@dataclass(frozen=True)
class Pool:
    """The cuts of one data set that an epoch draws from.

    rows: (n,) uint32, eligible; never empty.
    begin, end: the frames of the endless line that the epoch takes; None: every cut once.
    stream: of the random numbers of its passes.
    """

    rows: np.ndarray
    begin: float | None = None
    end: float | None = None
    stream: int = 0


def pools(
    frames: np.ndarray,
    config: PlanConfig,
    frame_rate: Fraction,
    epoch: int,
    parts: np.ndarray | None = None,
) -> list[Pool]:
    """What an epoch draws from, data sets without a share in it left out.

    :param frames: (N,) lengths of all cuts.
    :param parts: (D,) the first row of each data set; None: there is one.
    :raises UserError: where no cut is eligible, where weights and data sets are not equally many,
        and where an epoch could be shorter than one cut.
    """
    eligible = _eligible(frames, config.at(epoch), frame_rate)
    bounds = np.append([0] if parts is None else parts, len(frames))
    mix = config.schedules().get("mix")
    for _, shares in mix or []:
        if len(shares) != len(bounds) - 1:
            raise UserError(
                f"--mix-weights has {len(shares)} weights and there are {len(bounds) - 1} data "
                "sets: give one for --manifest-dir and one for each of --mix-dirs"
            )
    if not config.epoch_hours and not mix:
        return [Pool(eligible)]
    inside = [
        eligible[slice(*np.searchsorted(eligible, (low, high)))] for low, high in pairwise(bounds)
    ]
    totals = [int(frames[rows].sum(dtype=np.int64)) for rows in inside]
    size = float(exact(config.epoch_hours) * 3600 * frame_rate) or float(sum(totals))
    mix = mix or [(0, tuple(total / sum(totals) for total in totals))]
    # passes begin anew where other cuts become eligible
    filters = [e for e, _ in config.schedules().get("filter_max_duration", [(0, 0.0)])]
    since = max(e for e in filters if e <= epoch)
    found, enough = [], False
    for part, (rows, share) in enumerate(zip(inside, value_at(mix, epoch))):
        if not share:
            continue
        if not len(rows):
            raise UserError(
                f"--mix-weights gives data set {part + 1} a share in epoch {epoch} and none of its "
                "cuts passes the duration filters: widen them, or make its weight 0"
            )
        # Epoch e must end exactly where e + 1 begins, or a cut there would be lost or come twice:
        # both are the same sum, rounded in the same way.
        begin, end = (_epochs_before(mix, part, since, e) * size for e in (epoch, epoch + 1))
        found.append(Pool(rows, begin, end, part + len(bounds) * filters.index(since)))
        enough |= share * size >= int(frames[rows].max())
    if not enough:
        raise UserError(
            f"--epoch-hours {config.epoch_hours:g} is shorter than the longest cut, so an epoch "
            "could be empty: raise it, or leave long cuts out with --filter-max-duration"
        )
    return found


def draw(frames: np.ndarray, chosen: Sequence[Pool], seed: int) -> np.ndarray:
    """Rows (uint32) of the cuts of an epoch; a row comes again where its data set ends a pass and
    begins another within the epoch."""
    if len(chosen) == 1 and chosen[0].begin is None:
        return chosen[0].rows
    return np.concatenate([take(pool, frames[pool.rows], seed) for pool in chosen])


def take(pool: Pool, frames: np.ndarray, seed: int) -> np.ndarray:
    """The rows whose cuts begin in frames [begin, end) of the endless line of passes over a pool.

    :param frames: (n,) lengths of its rows.
    :return: rows, in the order of the line.
    """
    total = int(frames.sum(dtype=np.int64))
    found = [pool.rows[:0]]
    for number in range(int(pool.begin // total), int(-(-pool.end // total))):
        order = np.arange(len(pool.rows), dtype=np.uint32)
        # streams from 64 on: those below are the plan's
        generator(seed, number, 64 + pool.stream % 192).shuffle(order)
        lengths = frames[order].astype(np.int64)
        at = number * total + np.cumsum(lengths) - lengths
        low, high = np.searchsorted(at, (pool.begin, pool.end))
        found.append(pool.rows[order[low:high]])
    return np.concatenate(found)


def _eligible(frames: np.ndarray, config: PlanConfig, frame_rate: Fraction) -> np.ndarray:
    """Rows (uint32) of the cuts between the duration filters."""
    low = max(1, ceil(exact(config.filter_min_duration) * frame_rate))
    high = 1 << 32
    if config.filter_max_duration:
        high = floor(exact(config.filter_max_duration) * frame_rate)
    rows = np.arange(len(frames), dtype=np.uint32)
    rows = rows[(frames >= low) & (frames <= high)]
    if not len(rows):
        raise UserError(
            f"none of {len(frames)} cuts is between --filter-min-duration "
            f"{config.filter_min_duration} and --filter-max-duration {config.filter_max_duration} s"
        )
    return rows


def _epochs_before(mix: Schedule, part: int, since: int, epoch: int) -> float:
    """Epochs' worth of a data set that epochs [since, epoch) took: the sum of its shares."""
    edges = [*[first for first, _ in mix], 1 << 60]
    return sum(
        shares[part] * max(0, min(epoch, after) - max(since, first))
        for (first, shares), after in zip(mix, edges[1:])
    )
