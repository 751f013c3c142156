"""Loudness: block by block against pyloudnorm on the whole."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
from loudness_of import measure

from rvqlm.audio.loudness import Meter, gain_to


def signal(rng, channels, samples):
    """Noise whose level wanders over 80 dB, so that both gates have work."""
    steps = np.repeat(10 ** rng.uniform(-4, 0, samples // 3000 + 1), 3000)[:samples]
    return rng.uniform(-1, 1, (channels, samples)) * steps


@pytest.mark.parametrize(
    "rate, channels", [(8000, 1), (11025, 2), (16000, 5), (22050, 1), (44100, 2), (96000, 1)]
)
def test_equals_pyloudnorm(rate, channels):
    rng = np.random.default_rng(rate + channels)
    for samples in (math.ceil(0.4 * rate), rate // 2 + 1, rng.integers(rate, 5 * rate)):
        audio = signal(rng, channels, samples)
        expected = pyloudnorm.Meter(rate).integrated_loudness(audio.T)
        cuts = np.sort(rng.integers(0, samples, 30))
        assert measure(np.split(audio, cuts, axis=1), rate) == pytest.approx(expected, abs=1e-6)
        assert measure([audio], rate) == pytest.approx(expected, abs=1e-6)


def test_single_samples_and_partial_last_blocks():
    """The number of gating blocks is rounded, so the last may lie partly after the end."""
    rng = np.random.default_rng(0)
    for samples in range(4400, 5600, 97):
        audio = signal(rng, 1, samples)
        expected = pyloudnorm.Meter(8000).integrated_loudness(audio.T)
        assert measure(np.split(audio, samples, axis=1), 8000) == pytest.approx(expected, abs=1e-6)


def test_known_value():
    """BS.1770: a 0 dBFS sine of 997 Hz in one channel is -3.01 LKFS."""
    t = np.arange(48000 * 3) / 48000
    assert measure([np.sin(2 * np.pi * 997 * t)[None]], 48000) == pytest.approx(-3.01, abs=0.05)


def test_nothing_to_measure():
    assert measure([], 16000) == -math.inf
    assert measure([np.zeros((1, 16000))], 16000) == -math.inf
    assert measure([np.ones((1, 6399)) * 0.5], 16000) == -math.inf
    assert measure([np.zeros((2, 0)), np.ones((2, 100))], 16000) == -math.inf


def test_more_than_five_channels_are_equals():
    rng = np.random.default_rng(1)
    one = rng.uniform(-0.1, 0.1, (1, 16000))
    eight = measure([np.repeat(one, 8, axis=0)], 16000)
    assert eight == pytest.approx(measure([one], 16000) + 10 * math.log10(8))


def test_stretches_are_pooled_without_blocks_across():
    rng = np.random.default_rng(2)
    loud, soft = signal(rng, 1, 20000), 0.3 * signal(rng, 1, 30000)
    meter = Meter(16000)
    for part in (loud, np.ones((1, 100)), soft):  # one is shorter than a gating block
        meter.add(part)
        meter.restart()
    power = []
    for part in (loud, soft):
        whole = pyloudnorm.Meter(16000)
        whole.integrated_loudness(part.T)
        power += [10 ** ((level + 0.691) / 10) for level in whole.blockwise_loudness]
    power = np.array([p for p in power if -0.691 + 10 * math.log10(p) >= -70])
    power = power[power > power.mean() / 10]
    assert meter.loudness() == pytest.approx(-0.691 + 10 * math.log10(power.mean()), abs=1e-6)
    assert meter.peak == 1.0


def test_gain_respects_the_peak():
    assert gain_to(-30.0, 0.1, -23.0, -1.0) == (7.0, False)
    gain, held = gain_to(-30.0, 0.5, -23.0, -1.0)
    assert held and 0.5 * 10 ** (gain / 20) == pytest.approx(10 ** (-1 / 20))
    assert gain_to(-10.0, 1.0, -23.0, -1.0) == (-13.0, False)
    assert gain_to(-math.inf, 0.0, -23.0, -1.0) == (0.0, False)
    gain, held = gain_to(-20.0, 1.5, -20.0, -1.0)  # a peak above the limit is brought below it
    assert held and gain < 0
