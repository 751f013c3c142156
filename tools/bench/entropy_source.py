"""A source of codes whose entropy is known exactly: the yardstick for every loss of ours.

Each frame is one of ``V ** K`` states of a Markov chain; the levels of a frame are the digits of
the state, so they depend on each other as the coarse and fine levels of a codec do. The chain is
small enough to compute, by summing over all states:

- the entropy rate, which a model with an exact factorisation reaches;
- what the `delay` pattern can reach with independent heads per step, and
- what `parallel` can reach, which takes the levels of a frame as independent given the past.

A trained model that reports less than its bound has a leak; one that stays far above has a bug or
needs more training. Cover & Thomas, Elements of Information Theory, chapter 4.
"""

from __future__ import annotations

import itertools

import numpy as np


class MarkovSource:
    """Stationary first-order Markov chain over frames of K codes below V.

    Transitions are sparse random rows (Dirichlet), so that both the past and the coarser levels
    say much about a code.
    """

    def __init__(self, num_codebooks: int = 2, codebook_size: int = 4, seed: int = 0):
        K, V = num_codebooks, codebook_size
        self.num_codebooks, self.codebook_size = K, V
        rng = np.random.default_rng(seed)
        states = V**K
        self.transition = rng.dirichlet(np.full(states, 0.15), size=states)  # (from, to)
        self.transition = 0.98 * self.transition + 0.02 / states  # every state can be reached
        values, vectors = np.linalg.eig(self.transition.T)
        stationary = np.real(vectors[:, np.argmax(np.real(values))])
        self.stationary = stationary / stationary.sum()
        self.digits = np.array(list(itertools.product(range(V), repeat=K)))  # (states, K)

    def sample(self, num_sequences: int, num_frames: int, seed: int) -> np.ndarray:
        """(num_sequences, num_frames, K) int64, started from the stationary distribution."""
        rng = np.random.default_rng(seed)
        cumulative = self.transition.cumsum(1)
        cumulative[:, -1] = 1.0
        state = rng.choice(len(self.stationary), size=num_sequences, p=self.stationary)
        path = np.empty((num_sequences, num_frames), dtype=np.int64)
        for t in range(num_frames):
            path[:, t] = state
            draws = rng.random(num_sequences)[:, None]
            state = (cumulative[state] <= draws).sum(1)
        return self.digits[path]

    def entropy(self, num_frames: int) -> float:
        """Nats per frame of sequences of that length: (H(first) + (T - 1) H(next | frame)) / T."""
        first = _entropy(self.stationary)
        rate = self.stationary @ _entropy(self.transition)
        return float(first + (num_frames - 1) * rate) / num_frames

    def parallel_bound(self, num_frames: int) -> np.ndarray:
        """(K,) nats per frame, the least a parallel model can reach: H(level | frame before)."""
        bound = []
        for k in range(self.num_codebooks):
            member = self.digits[:, k, None] == np.arange(self.codebook_size)  # (states, V)
            first = _entropy(self.stationary @ member)
            later = self.stationary @ _entropy(self.transition @ member)
            bound.append((first + (num_frames - 1) * later) / num_frames)
        return np.array(bound)

    def delay_bound(self, num_frames: int) -> np.ndarray:
        """(2,) nats per frame, the least that a delay model of two levels can reach.

        Level 0 of frame t (a) is predicted while level 1 of frame t - 1 (b) is, so from frame
        t - 2 whole and level 0 of t - 1: H(a_t | x_{t-2}, a_{t-1}). Level 1 of frame t is
        predicted one step later, from frame t - 1 whole and level 0 of t: H(b_t | x_{t-1}, a_t).
        What lies further back says nothing more, because the chain is Markov.
        """
        if self.num_codebooks != 2:
            raise ValueError("the delay bound is worked out for two codebooks")
        T, V, p = num_frames, self.codebook_size, self.transition
        one = self.stationary.reshape(V, V)  # (a, b)
        pair = (self.stationary[:, None] * p).reshape(V * V, V, V)  # (x_{t-1}, a_t, b_t)
        to_first = p.reshape(V, V, V, V).sum(3)  # P(a_t | a_{t-1}, b_{t-1})
        second = np.einsum("ab,abc->ac", one, to_first)  # (a_0, a_1)
        later = np.einsum("xab,abc->xac", pair, to_first)  # (x_{t-2}, a_{t-1}, a_t)
        level0 = _entropy(one.sum(1)) + _conditional(second) + (T - 2) * _conditional(later)
        level1 = _conditional(one) + (T - 1) * _conditional(pair)
        return np.array([level0, level1]) / T


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats along the last axis."""
    p = np.asarray(p)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def _conditional(joint: np.ndarray) -> float:
    """H(last axis | all others) in nats."""
    return float(_entropy(joint.ravel()) - _entropy(joint.sum(-1).ravel()))
