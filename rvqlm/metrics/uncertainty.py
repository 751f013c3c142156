"""How sure held-out figures are: what they would be with other recordings of the same kind.

A figure is a ratio of sums over recordings (nats over codes, level by level), and its standard
error that of a ratio estimator (Cochran, 1977, "Sampling Techniques", 3rd ed., section 6.3): the
scatter of what each recording has more, or less, than its codes at the mean. Recordings are taken
as independent, so those of few speakers make it look smaller than it is for other speakers. Where a
model is scored by random maskings, the scatter that these add is in it, too. Beside it, without any
assumption of a normal distribution, the bootstrap over recordings (`rvqlm.metrics.bootstrap`).
"""

from __future__ import annotations

from fractions import Fraction
from math import log
from typing import TypedDict

import numpy as np
import torch

from rvqlm.files import Count, Finite
from rvqlm.metrics.bootstrap import bootstrapped, interval, ratio

NORMAL = 1.96
"""Standard errors at each side of a figure that hold the true one in 95 % of cases, of many."""


class Uncertainty(TypedDict):
    """What `ByRecording.uncertainty` returns, and eval_SPLIT.json has."""

    recordings: Count
    nats: list[Finite | None]
    bits_per_second: Finite | None
    plus_minus: Finite | None
    interval: list[Finite] | None
    nats_intervals: list[list[Finite] | None]


class ByRecording:
    """Nats and counts of each recording.

    >>> found = ByRecording(num_codebooks=1)
    >>> nats, count = torch.tensor([[4.0], [6.0], [2.0]]), torch.tensor([[2.0], [2.0], [1.0]])
    >>> found.add(torch.tensor([7, 8, 8]), (nats, count))
    >>> found.uncertainty(Fraction(50))["recordings"]
    2
    """

    def __init__(self, num_codebooks: int):
        self.num_codebooks = num_codebooks
        self.sums: dict[int, np.ndarray] = {}
        """(2, K) float64 nats and counts by number of the recording."""

    def add(self, index: torch.Tensor, items: tuple[torch.Tensor, torch.Tensor]) -> None:
        """:param index: (B,) recording of each item.
        :param items: as in `rvqlm.models.base.LMOutput`.
        """
        values = torch.stack([x.double().cpu() for x in items], dim=1).numpy()  # (B, 2, K)
        for number, value in zip(index.tolist(), values):
            self.sums[number] = self.sums.get(number, 0.0) + value

    def uncertainty(self, frame_rate: Fraction) -> Uncertainty:
        """Standard errors of the mean nats of each level and of their sum as bits per second, and
        what to add to and take from the latter for a 95 % interval; the bootstrap's 95 % intervals
        of both. None of a level that fewer than two recordings scored, and of all levels then."""
        M, K = len(self.sums), self.num_codebooks
        found = {"recordings": M, "nats": [None] * K, "bits_per_second": None, "plus_minus": None}
        found |= {"interval": None, "nats_intervals": [None] * K}
        if M < 2:
            return found
        nats, counts = self._columns()
        totals, scored_by = counts.sum(0), (counts > 0).sum(0)
        known = scored_by > 1
        totals[~known] = 1
        off = (nats - counts * (nats.sum(0) / totals)) / totals
        off *= np.sqrt(scored_by / np.maximum(scored_by - 1, 1))
        errors = np.sqrt((off**2).sum(0))
        found["nats"] = [float(e) if k else None for e, k in zip(errors, known)]
        if known.all():
            bits = np.sqrt((off.sum(1) ** 2).sum()) / log(2) * float(frame_rate)
            within = deviations(int(scored_by.min()) - 1) * bits
            found |= {"bits_per_second": float(bits), "plus_minus": float(within)}
            found["interval"] = interval(self._bits(frame_rate))
        means = self._means()
        found["nats_intervals"] = [
            interval(means[:, k]) if n else None for k, n in enumerate(known)
        ]
        return found

    def difference(self, other: ByRecording, frame_rate: Fraction) -> dict | None:
        """Bits per second less those of another model of the same recordings, with the 95 %
        interval of the bootstrap, recording by recording; None for less than two."""
        if len(self.sums) < 2:
            return None
        if list(self.sums) != list(other.sums):
            raise ValueError("other recordings, or in another order")
        apart = self._bits(frame_rate) - other._bits(frame_rate)
        bits = self._bits(frame_rate, False) - other._bits(frame_rate, False)
        return {"bits_per_second": float(bits), "interval": interval(apart)}

    def _columns(self) -> np.ndarray:
        """(2, M, K) nats and counts of the recordings."""
        return np.stack(list(self.sums.values()), axis=1)

    def _means(self, drawn: bool = True) -> np.ndarray:
        """(draws, K) mean nats of recordings drawn again and again, or (K,) of them as they are."""
        columns = self._columns()
        return bootstrapped(ratio, *columns) if drawn else ratio(*columns.sum(1))

    def _bits(self, frame_rate: Fraction, drawn: bool = True) -> np.ndarray:
        return self._means(drawn).sum(-1) / log(2) * float(frame_rate)


def deviations(freedom: int) -> float:
    """`NORMAL` of so few that their scatter is uncertain too: the quantile of Student's t, by its
    expansion for many degrees of freedom.

    >>> round(deviations(9), 2), round(deviations(1000), 2)
    (2.26, 1.96)
    """
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
