"""Clipping, clicks, bursts and distortion, planted in signals where they were not."""

import doctest

import numpy as np
import pytest

from rvqlm.metrics import signal_faults
from rvqlm.metrics.signal_faults import clicks, clipping_ratio, onset_burst, si_sdr

RATE = 16000


def voice(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Pulses of a voice at 110 Hz through two resonances, rising and falling, with a hiss."""
    from scipy.signal import lfilter

    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    pulses = (np.diff((110 * t) % 1, prepend=0) < 0) + 0.01 * rng.standard_normal(len(t))
    for hz, width in ((600, 80), (1400, 120)):
        radius = np.exp(-np.pi * width / RATE)
        pulses = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / RATE), radius**2], pulses)
    swell = np.minimum(1, np.minimum(t, seconds - t) / 0.2)
    return 0.3 * swell * pulses / np.abs(pulses).max()


def test_docstring_examples():
    assert doctest.testmod(signal_faults).failed == 0


def test_si_sdr_of_added_noise_is_its_level():
    audio, noise = voice(), np.random.default_rng(1).standard_normal(2 * RATE)
    for level in (-30, -10, 10):
        scale = np.sqrt((audio @ audio) / (noise @ noise)) * 10 ** (level / 20)
        assert si_sdr(audio, -2 * (audio + scale * noise)) == pytest.approx(-level, abs=0.3)
    assert si_sdr(audio, audio) == np.inf
    assert si_sdr(audio, 0 * audio) == si_sdr(0 * audio, audio) == -np.inf


def test_clipping_is_runs_at_the_end_of_the_scale():
    audio = voice()
    assert clipping_ratio(audio) == 0
    assert 0.05 < clipping_ratio(np.clip(20 * audio, -1, 1)) < 0.9
    assert clipping_ratio(audio[:0]) == 0
    # a peak that reaches it is no clipping
    assert clipping_ratio(audio / np.abs(audio).max()) == 0


def test_clicks_are_counted_and_voices_are_none():
    audio = voice()
    assert clicks(audio, RATE) == 0
    assert clicks(0.1 * np.random.default_rng(0).standard_normal(RATE), RATE) == 0
    broken = audio.copy()
    broken[[8000, 16000, 24000]] += 0.9
    assert clicks(broken, RATE) == 3
    seam = np.concatenate([audio[:12000], -0.7 + 0 * audio[:1600], audio[12000:]])
    assert clicks(seam, RATE) == 2
    assert clicks(audio[:1], RATE) == 0


def naive_clicks(audio: np.ndarray) -> int:
    """By the definition."""
    steps, found = np.abs(np.diff(audio)), []
    for at in np.flatnonzero(steps >= 0.02):
        near = range(max(0, at - 320), min(len(steps), at + 321))
        if steps[at] >= 5 * max((steps[i] for i in near if abs(i - at) > 16), default=0):
            found.append(at)
    return int(len(found) and 1 + (np.diff(found) > 16).sum())


def test_clicks_by_their_definition():
    rng = np.random.default_rng(0)
    for number in range(8):
        audio = np.cumsum(rng.standard_normal(3000) * (rng.random(3000) < 0.004)) * 0.1
        assert clicks(audio, RATE) == naive_clicks(audio) > 0, number
        audio += 0.01 * rng.standard_normal(3000)
        assert clicks(audio, RATE) == naive_clicks(audio), number


def test_a_burst_at_the_beginning_is_seen():
    audio = voice()
    assert onset_burst(audio, RATE) < -6
    burst = audio.copy()
    burst[:400] += 0.5 * np.random.default_rng(0).standard_normal(400)
    assert onset_burst(burst, RATE) > 6
    assert np.isnan(onset_burst(audio[:1600], RATE))
    assert onset_burst(0 * audio, RATE) == 0
