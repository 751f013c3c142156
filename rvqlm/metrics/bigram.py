"""Connectionist temporal classification with a bigram of the symbols: the likeliest way through all
decisions when a text is also weighed by how often its symbols follow each other.

A symbol as usual as the average one costs nothing: if each cost its ln p, the fewest would be best.

Counts are discounted absolutely and filled up from the single symbols (Ney, Essen & Kneser, 1994,
"On structuring probabilistic dependences in stochastic language modelling"), these from the uniform
distribution by adding one. A text begins and ends with symbol 0, which none contains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rvqlm.metrics.viterbi import BLANK

DISCOUNT = 0.75
"""Of each count of two symbols."""


def bigram_log_probs(texts: Iterable[np.ndarray], num_symbols: int) -> np.ndarray:
    """(V, V) float64: row u, column v is ln p that v follows u; 0 stands for begin and end.

    :param texts: arrays (N,) of ids from 1 to V - 1.

    >>> bigram_log_probs([np.array([1, 2])] * 9, 3).argmax(1).tolist()
    [1, 2, 0]
    """
    counts = np.zeros((num_symbols, num_symbols))
    for text in texts:
        ids = np.concatenate(([0], text, [0])).astype(np.int64)
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    single = counts.sum(0) + 1
    single /= single.sum()
    of, kinds = counts.sum(1, keepdims=True), (counts > 0).sum(1, keepdims=True)
    left = np.divide(DISCOUNT * kinds, of, out=np.ones_like(of), where=of > 0)  # for other pairs
    return np.log((counts - DISCOUNT).clip(0) / of.clip(1) + left * single)


@dataclass
class Bigram:
    """A language model to decode with."""

    log_probs: np.ndarray
    """(V, V) of `bigram_log_probs`."""
    weight: float
    """Its ln p times this is added to that of the decisions; with 0 the way is the greedy one."""
    bonus: float = 0.0
    """Nats that each symbol gets back, before the weight."""

    @classmethod
    def of(cls, texts: Sequence[np.ndarray], num_symbols: int, weight: float) -> Bigram:
        """Counted from texts, at least one; the bonus is what their symbols and ends cost on
        average."""
        log_probs = bigram_log_probs(texts, num_symbols)
        costs = [-log_probs[np.append(0, text), np.append(text, 0)] for text in texts]
        return cls(log_probs, weight, float(np.concatenate(costs).mean()))

    def transcribe(self, log_probs: np.ndarray, decisions: Iterable[int]) -> list[list[int]]:
        """The text of the likeliest way, exactly, in O(S V^2): ids of each item, without 0.

        :param log_probs: (B, S, V) ln p of each decision, the blank first; anything past
            ``decisions`` (B,).
        """
        return [self._one(item[:n]) for item, n in zip(log_probs, decisions)]

    def _one(self, log_probs: np.ndarray) -> list[int]:
        S, V = log_probs.shape
        follows = np.ascontiguousarray(self.weight * self.log_probs.T)  # [v, u]: v after u
        follows[1:] += self.weight * self.bonus
        again = follows.diagonal()
        # of the likeliest ways whose last symbol is u, 0 for none: the last decision was u, or not
        on = np.full(V, -np.inf)
        off = np.where(np.arange(V) == 0, 0.0, -np.inf)
        was_on = np.empty((S, V), bool)  # before a blank that leaves the last symbol as it is
        source = np.empty((S, V), np.int32)  # last symbol before v began, -1: v goes on
        moves = np.empty((V, V))
        for t, now in enumerate(log_probs.astype(np.float64)):
            was_on[t] = on > off
            either = np.maximum(on, off)
            np.add(follows, either, out=moves)
            np.fill_diagonal(moves, off + again)  # equal symbols have a blank between them
            source[t] = moves.argmax(1)
            best = moves[np.arange(V), source[t]]
            source[t][on >= best] = -1
            on, off = np.maximum(on, best) + now, either + now[BLANK]
            on[BLANK] = -np.inf
        end = np.maximum(on, off) + follows[0]
        last = int(end.argmax())
        is_on, text = on[last] > off[last], []
        for t in range(S - 1, -1, -1):
            if is_on and source[t, last] >= 0:
                text.append(last)
                last, before = int(source[t, last]), last
                is_on = last != before and was_on[t, last]
            elif not is_on:
                is_on = was_on[t, last]
        return text[::-1]
