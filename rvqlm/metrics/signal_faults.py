"""What is wrong with a signal whatever it says: clipping, clicks, a burst at the beginning; and
how far a reconstruction is from its original, sample by sample. numpy only."""

from __future__ import annotations

import numpy as np

FULL_SCALE = 0.999
"""From here on a sample is at the end of the scale: that of 16 bits is 0.99997."""
_RUN = 3  # samples in a row that are no peak any more
_JUMP, _ISOLATED = 0.02, 5.0
_BURST_SECONDS = 0.06


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019, arXiv:1811.02508).

    The estimate is split into the multiple of the reference nearest to it, and the rest; both are
    first freed of their means. The longer signal is cut to the shorter.

    :param reference, estimate: (S,), aligned to the sample.
    :returns: infinite for equal signals, -infinite where either is silent or they are orthogonal.

    >>> t = np.arange(8000) / 8000
    >>> tone, other = np.sin(2 * np.pi * 100 * t), np.sin(2 * np.pi * 200 * t)
    >>> round(si_sdr(tone, 3 * tone + 0.3 * other), 6)
    20.0
    """
    samples = min(len(reference), len(estimate))
    a, b = (np.asarray(x[:samples], np.float64) for x in (reference, estimate))
    if np.array_equal(a, b):
        return np.inf
    a, b = a - a.mean(), b - b.mean()
    power = a @ a
    target = (a @ b / power if power else 0.0) * a
    wanted, rest = target @ target, (b - target) @ (b - target)
    if not wanted:
        return -np.inf
    return float(10 * np.log10(wanted / rest)) if rest else np.inf


def clipping_ratio(audio: np.ndarray) -> float:
    """Share of samples in runs of at least 3 in a row at the end of the scale, (S,) in [-1, 1].

    >>> clipping_ratio(np.clip(np.array([0.5, 1.2, 1.3, 1.1, 0.2, 1.0, 0.1, 0.1]), -1, 1))
    0.375
    """
    if not len(audio):
        return 0.0
    at_end = np.abs(audio) >= FULL_SCALE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], at_end, [False]]).astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= _RUN].sum() / len(audio))


def clicks(audio: np.ndarray, sampling_rate: int) -> int:
    """Number of clicks: jumps from one sample to the next of at least 0.02 that are 5 times any
    other within 20 ms, but for those at most 1 ms away, which belong to it.

    The pulses of a voice follow each other in less than that, and the noise of a consonant lasts;
    what stands alone is a spike, a lost block, a seam. Those that a loud voice masks pass.

    :param audio: (S,) in [-1, 1].

    >>> t = np.arange(16000) / 16000
    >>> broken = 0.1 * np.sin(2 * np.pi * 120 * t)
    >>> clicks(broken, 16000), clicks(np.where(t < 0.5, broken, broken + 0.2), 16000)
    (0, 1)
    """
    from scipy.ndimage import maximum_filter1d

    near, far = max(1, round(0.001 * sampling_rate)), max(3, round(0.02 * sampling_rate))
    steps = np.pad(np.abs(np.diff(np.asarray(audio, np.float64))), far)
    if len(steps) == 2 * far:
        return 0
    side = far - near  # steps from `near` to `far` away, before and behind
    sides = maximum_filter1d(steps, side, mode="constant")
    offset = near + 1 + side // 2  # to the middle of either
    at = np.arange(far, len(steps) - far)
    around = np.maximum(sides[at - offset + (side + 1) % 2], sides[at + offset])
    found = np.flatnonzero((steps[at] >= _JUMP) & (steps[at] >= _ISOLATED * around))
    return int(len(found) and 1 + (np.diff(found) > near).sum())


def onset_burst(audio: np.ndarray, sampling_rate: int) -> float:
    """How much louder the first 60 ms are than the loud parts of the rest, in dB.

    RMS in windows of 10 ms: the loudest of the beginning over the 95th percentile of the others. A
    recording begins with less than that, far below 0 dB; what begins with a burst is above.

    :param audio: (S,) in [-1, 1].
    :returns: between -100 and 100; NaN for less than 0.2 s.
    """
    size = max(1, round(0.01 * sampling_rate))
    if len(audio) < 20 * size:
        return float("nan")
    windows = np.asarray(audio[: len(audio) // size * size], np.float64).reshape(-1, size)
    levels = np.sqrt((windows**2).mean(1))
    first = round(_BURST_SECONDS * sampling_rate / size)
    beginning, rest = levels[:first].max(), np.percentile(levels[first:], 95)
    return float(np.clip(20 * np.log10((beginning + 1e-9) / (rest + 1e-9)), -100, 100))
