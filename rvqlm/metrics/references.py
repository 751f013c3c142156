"""What needs no training to code a recording: the code of the frame before, level by level.

Counts of the training tokens are discounted absolutely and filled up from the single codes (Ney,
Essen & Kneser, 1994, "On structuring probabilistic dependences in stochastic language modelling"),
these from the uniform distribution by adding one. A model that has learned anything of time needs
fewer nats; one that is a frame late does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rvqlm.codec_info import CodecInfo
from rvqlm.metrics.bigram import DISCOUNT

MOST_BYTES = 1 << 30
"""Of the table of pairs, K V V numbers."""


def pairs_fit(info: CodecInfo) -> bool:
    """Whether the table of pairs is one that can be held."""
    return 4 * info.num_codebooks * info.codebook_size**2 <= MOST_BYTES


class PreviousFrame:
    """ln p of each code given the one before it on its level.

    >>> info = CodecInfo("demo", "", 16000, 320, num_codebooks=1, codebook_size=4)
    >>> of = PreviousFrame([np.array([[0], [1]] * 50)], info)
    >>> of.nats(np.array([[0], [1], [1]]))[:, 0].round(1).tolist()  # 1 follows 0, never 1
    [0.7, 0.0, 4.9]
    """

    def __init__(self, train: Iterable[np.ndarray], info: CodecInfo):
        """:param train: codes (T, K) of each recording; memory does not grow with their number."""
        K, V = info.num_codebooks, info.codebook_size
        self.single, pairs = np.ones((K, V)), np.zeros(K * V * V, np.uint32)
        levels = np.arange(K)
        for codes in train:
            codes = codes.astype(np.int64)
            np.add.at(self.single, (levels, codes), 1)
            np.add.at(pairs, ((levels * V + codes[:-1]) * V + codes[1:]).ravel(), 1)
        self.single /= self.single.sum(1, keepdims=True)
        self.pairs = pairs.reshape(K, V, V)
        self.of = np.stack([level.sum(1, dtype=np.int64) for level in self.pairs])
        self.kinds = np.count_nonzero(self.pairs, axis=2)

    def nats(self, codes: np.ndarray) -> np.ndarray:
        """(T, K) codes of a recording -> (T, K) nats; the first frame's of single codes."""
        codes = codes.astype(np.int64)
        levels = np.arange(codes.shape[1])
        p = self.single[levels, codes]
        before, now = codes[:-1], codes[1:]
        of = self.of[levels, before]
        known = np.maximum(self.pairs[levels, before, now] - DISCOUNT, 0)
        left = DISCOUNT * self.kinds[levels, before]
        p[1:] = np.where(of > 0, (known + left * p[1:]) / np.maximum(of, 1), p[1:])
        return -np.log(p)
