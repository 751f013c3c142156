"""Mel filters and spectra against librosa, and the distance between spectra."""

import librosa
import numpy as np
import pytest

from rvqlm.metrics.mel import mel_distance, mel_filters, spectra

RATE = 16000


@pytest.mark.parametrize(
    "size, bands, lowest, highest", [(400, 40, 0.0, None), (512, 64, 125.0, 7500.0)]
)
@pytest.mark.parametrize("htk", [False, True])
def test_filters_are_those_of_librosa(size, bands, lowest, highest, htk):
    ours = mel_filters(RATE, size, bands, lowest, highest, htk)
    norm = None if htk else "slaney"
    theirs = librosa.filters.mel(
        sr=RATE, n_fft=size, n_mels=bands, fmin=lowest, fmax=highest, htk=htk, norm=norm
    )
    # HTK's triangles are straight in mels, librosa's in Hz
    np.testing.assert_allclose(ours, theirs, atol=0.06 if htk else 1e-7)


def test_spectra_are_those_of_librosa():
    audio = np.random.default_rng(0).standard_normal(5000)
    for window, size in ((400, 400), (400, 512), (321, 321)):
        theirs = librosa.stft(audio, n_fft=size, win_length=window, hop_length=160)
        np.testing.assert_allclose(spectra(audio, window, 160, size).T, np.abs(theirs), atol=1e-6)


def test_the_distance_of_a_factor_of_ten_is_one():
    audio = np.random.default_rng(0).standard_normal(RATE) * 0.1
    assert mel_distance(audio, audio, RATE) == 0
    assert mel_distance(audio, audio / 10, RATE) == pytest.approx(1, abs=0.02)  # bands at the floor
    assert mel_distance(audio, audio / 10, RATE) > mel_distance(audio, audio / 2, RATE) > 0.25


def test_the_longer_is_cut_to_the_shorter():
    audio = np.random.default_rng(0).standard_normal(RATE)
    assert mel_distance(audio, audio[:8000], RATE) == 0
    with pytest.raises(ValueError, match="empty"):
        mel_distance(audio, audio[:0], RATE)
