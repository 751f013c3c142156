"""The likeliest way to write a text by connectionist temporal classification: which decisions are
which of its symbols (Viterbi, 1967; Graves et al., 2006).

Each decision is a symbol or the blank; a symbol takes one or more decisions in a row, blanks lie
between any two and have to where the two are equal. As all ways through a text pass the same 2N + 1
states, blank, first symbol, blank, ..., the search keeps one number for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLANK = 0
BLOCK = 512
"""Decisions whose steps are remembered at a time: the memory of N symbols and S decisions is that
of 2 N (BLOCK + 8 S / BLOCK) bytes; where S is larger, all is computed twice."""


class Path(NamedTuple):
    """The likeliest alignment of one text."""

    first: np.ndarray
    """(N,) int64, the first decision of each symbol."""
    last: np.ndarray
    """(N,) its last one; those between two symbols are blanks."""
    log_prob: float
    """ln of the probability of all S decisions of the way."""


def decisions_needed(symbols: np.ndarray) -> int:
    """The fewest decisions that can write a text: equal neighbours have a blank between them.

    >>> decisions_needed(np.array([7, 3, 3]))
    4
    """
    return len(symbols) + int((symbols[1:] == symbols[:-1]).sum())


def ctc_viterbi(
    log_probs: np.ndarray, decisions: Sequence[int], texts: Sequence[np.ndarray]
) -> list[Path | None]:
    """The likeliest alignment of each text of a batch; of equally likely ones, the one in which
    symbols last longest.

    Parameters
    ----------
    log_probs: (B, S, V) log p of each decision, the blank first; anything past `decisions`.
    decisions: (B,) how many an item has.
    texts: B arrays (N,) of ids from 1 on; N may be 0.

    None stands for a text that needs more decisions than there are, or all of whose ways are
    impossible. An item has the same result in any batch.
    """
    texts = [np.asarray(text, np.int64) for text in texts]
    fits = np.array([decisions_needed(t) <= n for t, n in zip(texts, decisions)], bool)
    ends = np.where(fits, np.asarray(decisions, np.int64), 0)  # the others take no part
    last_state = np.array([2 * len(text) for text in texts], np.int64)
    search = _Search(log_probs, ends, texts, int(last_state.max(initial=0)) + 1)
    total = int(ends.max(initial=0))
    starts = range(0, total, BLOCK)
    best, at_start = search.before_all(), []
    steps = None  # (decisions of a block, B, states): from how many states before
    for begin in starts:
        at_start.append(best)
        best, steps = search.block(best, begin, min(begin + BLOCK, total))
    rows = np.arange(len(texts))
    by_blank = best[rows, last_state]
    by_symbol = np.where(last_state > 0, best[rows, np.maximum(last_state - 1, 0)], -np.inf)
    state = last_state - (by_symbol > by_blank)
    log_prob = np.maximum(by_blank, by_symbol)
    states = np.empty((len(texts), total), np.int64)
    for begin, before in zip(reversed(starts), reversed(at_start)):
        if begin != starts[-1]:
            _, steps = search.block(before, begin, begin + BLOCK)
        for t in range(len(steps) - 1, -1, -1):
            states[:, begin + t] = state
            state = state - steps[t][rows, state]
    found: list[Path | None] = []
    for row, text in enumerate(texts):
        if not fits[row] or not np.isfinite(log_prob[row]):
            found.append(None)
            continue
        taken, wanted = states[row, : ends[row]], 2 * np.arange(len(text)) + 1
        first, after = (np.searchsorted(taken, wanted, side) for side in ("left", "right"))
        found.append(Path(first, after - 1, float(log_prob[row])))
    return found


class _Search:
    """The likeliest ways to each state, decision by decision, of all items at once."""

    def __init__(self, log_probs: np.ndarray, ends: np.ndarray, texts: list, num_states: int):
        self.log_probs, self.ends = log_probs, ends
        self.symbols = np.full((len(texts), num_states), BLANK, np.int64)  # of each state
        for row, text in zip(self.symbols, texts):
            row[1 : 2 * len(text) : 2] = text
        self.can_skip = np.zeros(self.symbols.shape, bool)  # the blank between two symbols
        self.can_skip[:, 3::2] = self.symbols[:, 3::2] != self.symbols[:, 1:-2:2]

    def before_all(self) -> np.ndarray:
        """(B, states) float64 log p; the first decision stays or goes on to the first symbol."""
        best = np.full(self.symbols.shape, -np.inf)
        best[:, 0] = 0.0
        return best

    def block(self, best: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Decisions from `begin` to `end`: log p after them, and each one's steps (int8)."""
        steps = np.zeros((end - begin, *best.shape), np.int8)
        for t in range(begin, end):
            step, likeliest = steps[t - begin], best.copy()
            for size, allowed in ((1, True), (2, self.can_skip[:, 2:])):
                better = (best[:, :-size] > likeliest[:, size:]) & allowed
                step[:, size:][better] = size
                likeliest[:, size:][better] = best[:, :-size][better]
            likeliest += np.take_along_axis(self.log_probs[:, t], self.symbols, 1)
            over = self.ends <= t  # what has ended stays where it is
            likeliest[over], step[over] = best[over], 0
            best = likeliest
        return best, steps
