"""Integrated loudness after ITU-R BS.1770-4, measured block by block.

The filters are those of `pyloudnorm.Meter` and the result is its ``integrated_loudness`` of the
whole signal, but the filters carry their state from block to block and only the energy of every
100 ms is kept (80 bytes per second of audio), so that an hour needs no more memory than a minute.
"""

from __future__ import annotations

import functools
import math
from array import array

import numpy as np

WINDOW, OVERLAP = 0.4, 0.75  # seconds and share of the gating blocks, as in BS.1770-4
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, left and right surround


class Meter:
    """Loudness and peak of a signal that arrives in pieces.

    >>> meter = Meter(16000)
    >>> t = np.arange(32000) / 16000
    >>> for block in np.split(0.5 * np.sin(2 * np.pi * 1000 * t), 4):
    ...     meter.add(block[None])
    >>> round(meter.loudness(), 2), round(meter.peak, 2)
    (-9.1, 0.5)
    """

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.peak = 0.0
        """largest absolute sample so far"""
        self._finished: list[np.ndarray] = []  # energies of the gating blocks of earlier stretches
        self._begin()

    def _begin(self) -> None:
        self._state: np.ndarray | None = None  # of the filters, for every channel
        self._samples = 0
        self._energy = array("d")  # of every complete piece between two edges
        self._open = 0.0  # of the piece that is not complete

    def _edge(self, number: int) -> int:
        # the expression of pyloudnorm: at rates that are no multiple of 10 Hz pieces are unequal
        return int(WINDOW * (number * (1.0 - OVERLAP)) * self.sampling_rate)

    def add(self, block: np.ndarray) -> None:
        """The next (C, n) samples, floats with full scale 1. Up to five channels are left, right,
        centre, left and right surround; more than five are equals."""
        from scipy.signal import sosfilt

        block = np.asarray(block, dtype=np.float64)
        if block.shape[1] == 0:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        sections = _k_weighting(self.sampling_rate)
        if self._state is None:
            self._state = np.zeros((len(sections), len(block), 2))
        weighted, self._state = sosfilt(sections, block, axis=1, zi=self._state)
        weights = WEIGHTS[: len(block)] if len(block) <= len(WEIGHTS) else np.ones(len(block))
        energy = np.asarray(weights) @ np.square(weighted)  # (n,)
        first, last = self._samples, self._samples + len(energy)
        edges, number = [0], len(self._energy) + 1
        while self._edge(number) < last:
            edges.append(self._edge(number) - first)
            number += 1
        sums = np.add.reduceat(energy, edges)
        for total in sums[:-1]:
            self._energy.append(self._open + total)
            self._open = 0.0
        self._open += float(sums[-1])
        self._samples = last
        if self._edge(number) == last:
            self._energy.append(self._open)
            self._open = 0.0

    def restart(self) -> None:
        """What follows does not continue what came before: no gating block lies across."""
        self._finished.append(self._blocks())
        self._begin()

    def _blocks(self) -> np.ndarray:
        """Mean square of each gating block since the last restart."""
        rate, per_block = self.sampling_rate, round(1 / (1 - OVERLAP))
        if self._samples < WINDOW * rate:
            return np.zeros(0)
        step = WINDOW * (1 - OVERLAP)
        count = int(np.round((self._samples / rate - WINDOW) / step) + 1)
        # a last block may end up to half a step after the last sample: that is pyloudnorm's way
        energy = np.zeros(count + per_block - 1)
        known = np.array([*self._energy, self._open])[: len(energy)]
        energy[: len(known)] = known
        return sum(energy[i : i + count] for i in range(per_block)) / (WINDOW * rate)

    def loudness(self) -> float:
        """Integrated loudness in LUFS of all that was added; -inf for silence (every 400 ms below
        -70 LUFS) and for less than 400 ms."""
        power = np.concatenate([*self._finished, self._blocks()])
        power = power[_lufs(power) >= ABSOLUTE_GATE]
        if not len(power):
            return -math.inf
        gate = _lufs(power.mean()) + RELATIVE_GATE
        level = _lufs(power)
        power = power[(level > gate) & (level > ABSOLUTE_GATE)]
        return float(_lufs(power.mean())) if len(power) else -math.inf


def gain_to(loudness: float, peak: float, target: float, peak_dbfs: float) -> tuple[float, bool]:
    """(gain in dB, whether the peak held it back) that brings a signal to a loudness.

    loudness, target: LUFS. peak: largest absolute sample. peak_dbfs: no sample may become larger;
    the gain is reduced for that, nothing is limited or clipped. Where there is nothing to
    measure (-inf) the gain is 0.
    """
    if not math.isfinite(loudness):
        return 0.0, False
    gain = target - loudness
    room = peak_dbfs - 20 * math.log10(peak)
    return min(gain, room), room < gain


@functools.lru_cache(maxsize=16)
def _k_weighting(sampling_rate: int) -> np.ndarray:
    """The filters of `pyloudnorm.Meter` as second-order sections."""
    import pyloudnorm

    stages = pyloudnorm.Meter(sampling_rate)._filters.values()
    return np.array([[*(f.passband_gain * f.b), *f.a] for f in stages])


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10.0 * np.log10(power)
