"""Silence, repetition and spectral distance against signals whose values are known."""

import doctest

import numpy as np
import pytest
import torch

from rvqlm.metrics import audio_metrics
from rvqlm.metrics.audio_metrics import (
    log_spectral_distance,
    log_spectrum,
    repetition_ratio,
    silence_ratio,
)

RATE = 16000


def tone(seconds: float, amplitude: float = 0.3, hz: float = 440.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def naive_repetition(codes: np.ndarray, window: int, levels: int) -> float:
    """The definition, word for word."""
    runs = [tuple(codes[t : t + window, :levels].ravel()) for t in range(len(codes) - window + 1)]
    covered = set()
    for t, run in enumerate(runs):
        if run in runs[:t]:
            covered.update(range(t, t + window))
    return len(covered) / len(codes)


def test_docstring_examples():
    assert doctest.testmod(audio_metrics).failed == 0


def test_silence_counts_seconds_not_windows():
    audio = np.concatenate([tone(1.0), np.zeros(RATE // 4)])
    assert silence_ratio(audio, RATE) == pytest.approx(0.2, abs=1e-3)
    # a last window of a few samples weighs a few samples
    assert silence_ratio(np.concatenate([tone(1.0), np.zeros(3)]), RATE) < 1e-3


def test_silence_threshold_is_dbfs():
    quiet = tone(1.0, amplitude=np.sqrt(2) * 10 ** (-51 / 20))
    louder = tone(1.0, amplitude=np.sqrt(2) * 10 ** (-49 / 20))
    assert silence_ratio(quiet, RATE) == 1.0
    assert silence_ratio(louder, RATE) == 0.0
    assert silence_ratio(louder, RATE, threshold_db=-40) == 1.0


def test_silence_of_broken_and_empty_audio_is_total():
    assert silence_ratio(np.full(100, np.nan), RATE) == 1.0
    assert silence_ratio(np.zeros(0), RATE) == 1.0


def test_silence_takes_tensors_and_channels():
    stereo = torch.from_numpy(np.stack([tone(1.0), tone(1.0)])).float()
    assert silence_ratio(stereo, RATE) == 0.0
    with pytest.raises(ValueError, match="channels"):
        silence_ratio(np.zeros((1, 1, 5)), RATE)


@pytest.mark.parametrize("window, levels", [(1, 1), (3, 1), (4, 2)])
def test_repetition_equals_the_definition(window, levels):
    rng = np.random.default_rng(0)
    for vocabulary in (2, 4, 50):
        for length in (2, 5, 17, 60):
            codes = rng.integers(0, vocabulary, (length, 3))
            expected = naive_repetition(codes, window, levels)
            assert repetition_ratio(codes, window, levels) == pytest.approx(expected)


def test_repetition_of_a_stuck_model_and_of_a_free_one():
    rng = np.random.default_rng(1)
    free = rng.integers(0, 1024, (500, 8))
    assert repetition_ratio(free) == 0.0
    stuck = free.copy()
    stuck[250:, 0] = 7  # fine levels go on changing
    assert 0.45 < repetition_ratio(stuck) < 0.51
    assert repetition_ratio(stuck, levels=8) == 0.0
    assert repetition_ratio(torch.from_numpy(stuck)) == repetition_ratio(stuck)


def test_repetition_of_short_sequences_is_zero():
    assert repetition_ratio(np.zeros((8, 2), int)) == 0.0
    assert repetition_ratio(np.zeros((0, 2), int)) == 0.0
    with pytest.raises(ValueError, match="frames, levels"):
        repetition_ratio(np.zeros(10, int))


def test_spectrum_is_calibrated():
    spectrum = log_spectrum(tone(1.0, amplitude=1.0, hz=1000.0), RATE)  # 1 kHz is bin 32
    assert spectrum.shape[1] == 257
    assert spectrum[5].argmax() == 32
    assert spectrum[5, 32] == pytest.approx(0.0, abs=0.1)


def test_spectral_distance_of_a_gain_is_the_gain():
    rng = np.random.default_rng(2)
    noise = 0.1 * rng.standard_normal(RATE)
    assert log_spectral_distance(noise, noise, RATE) == 0.0
    # phase is ignored, a gain of 6 dB is 6 dB everywhere
    assert log_spectral_distance(noise, -0.5 * noise, RATE) == pytest.approx(6.02, abs=0.05)
    # cut to the shorter
    assert log_spectral_distance(noise, noise[:8000], RATE) == 0.0
