"""How long each symbol of a text is spoken on average, and how much silence is around it: estimated
from the lengths of recordings and their first codebook, without any alignment.

- frames of a recording = silence + sum of the durations of its symbols: non-negative least squares
  over the recordings gives the durations
- lead and tail are those with which symbols, laid out by these durations, say most about the codes
  of level 0 at their time (mutual information), on a coarse grid

It is a prior: models place texts by it on the time axis (`rvqlm.modules.time_axis`) and learn
the rest by themselves. A trained aligner would be more exact, and slower to have.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from rvqlm.condition_info import room_of
from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import Ragged

FITTED, ALIGNED = 20000, 600
"""Recordings for the durations and for the silence, at most."""
GRID = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Lead and tail that are tried, as shares of the silence that least squares finds."""
SHORTEST = 0.3
"""Least duration in frames: a symbol that lasts no time at all could not be placed."""


def estimate(
    dataset: TokenDataset, column: Ragged, size: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Frames of each symbol 0 ... size - 1, and of the silence before and after a text.

    :param dataset: the split to estimate from.
    :param column: symbols (S, 1) of its rows; rows without any are left out.
    """
    rows = np.flatnonzero(np.asarray(column.lengths) > 0)
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(rows)[:FITTED])
    counts = np.stack([np.bincount(column.read(row)[:, 0], minlength=size) for row in rows])
    frames = np.asarray(dataset.frames)[rows].astype(np.float64)
    mean = frames.sum() / counts.sum()
    # rare symbols are drawn towards the average by as much as ten recordings would say
    weights = np.concatenate([counts, np.ones((len(rows), 1))], 1)
    prior = np.concatenate([10**0.5 * np.eye(size), np.zeros((size, 1))], 1)
    goal = np.concatenate([frames, np.full(size, 10**0.5 * mean)])
    fitted, _ = nnls(np.concatenate([weights, prior]), goal)
    durations, silence = np.maximum(fitted[:-1], SHORTEST), fitted[-1]
    some = rows[np.linspace(0, len(rows) - 1, min(ALIGNED, len(rows))).astype(np.int64)]
    examples = [(column.read(row)[:, 0], dataset.read(row)[:, 0]) for row in np.unique(some)]
    codes = dataset.info.codebook_size
    best = max(
        ((lead * silence, tail * silence) for lead in GRID for tail in GRID),
        key=lambda margins: _information(examples, durations, margins, size, codes),
    )
    return tuple(round(float(d), 3) for d in durations), tuple(round(float(m), 2) for m in best)


def _information(examples, durations: np.ndarray, margins, size: int, codes: int) -> float:
    """Nats that the symbol at a frame says about its code; with silence as one more symbol, so that
    every frame counts whatever the margins are."""
    joint = np.zeros((size + 1, codes))
    for symbols, row in examples:
        lead, room = room_of(len(row), margins)
        edges = np.cumsum(durations[symbols])
        edges = lead + np.concatenate([[0.0], edges * (room / edges[-1])])
        at = np.searchsorted(edges, np.arange(len(row)) + 0.5) - 1
        inside = (at >= 0) & (at < len(symbols))
        said = np.where(inside, symbols[at.clip(0, len(symbols) - 1)], size)
        np.add.at(joint, (said, row), 1.0)
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())
