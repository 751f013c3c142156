"""Cheap automatic checks of audio and codes: silence, loops, distance between spectra.

A model that collapses does so in two ways that no loss shows: it falls silent or it goes round in
circles. Two numbers between 0 and 1 say so for every sample; the same numbers of real recordings,
which are never quite 0, are the ones to compare with. numpy only, nothing here needs a codec.
"""

from __future__ import annotations

import numpy as np

SILENCE_DB = -50.0
_WINDOW_SECONDS = 0.02


def _mono(audio) -> np.ndarray:
    """(S,) float64 from a numpy array or tensor (S,) or (C, S); channels are averaged."""
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu().numpy()
    audio = np.asarray(audio, dtype=np.float64)
    if audio.ndim == 2:
        audio = audio.mean(axis=0)
    if audio.ndim != 1:
        raise ValueError(f"audio must be (samples,) or (channels, samples), got {audio.shape}")
    return audio


def silence_ratio(audio, sampling_rate: int, threshold_db: float = SILENCE_DB) -> float:
    """Share of the audio that is silent.

    The signal is cut into consecutive windows of 20 ms (the last may be shorter); a window is
    silent when its RMS lies below `threshold_db` relative to full scale. NaN samples count as
    silence, so that broken audio cannot pass.

    Args:
        audio: (S,) or (C, S) in [-1, 1], numpy or torch; channels are averaged first.
        sampling_rate: Hz.
        threshold_db: dBFS; speech sits around -25, a noisy codec's pauses between -80 and -55.

    Returns:
        Between 0 and 1; 1.0 for empty audio.

    >>> tone = 0.1 * np.sin(np.arange(16000) / 10)
    >>> silence_ratio(np.concatenate([tone, np.zeros(16000)]), 16000)
    0.5
    """
    silence = Silence(sampling_rate, threshold_db)
    silence.add(audio)
    return silence.ratio()


class Silence:
    """`silence_ratio` of audio that arrives in pieces."""

    def __init__(self, sampling_rate: int, threshold_db: float = SILENCE_DB):
        self.window = max(1, round(_WINDOW_SECONDS * sampling_rate))
        self.threshold = 10 ** (threshold_db / 10)
        self.rest = np.empty(0)  # of the last window
        self.samples = self.silent = 0

    def add(self, audio) -> None:
        audio = np.concatenate([self.rest, np.nan_to_num(_mono(audio), nan=0.0)])
        whole = len(audio) // self.window * self.window
        self.rest = audio[whole:]
        self.samples += whole
        self.silent += self._silent(audio[:whole])

    def ratio(self) -> float:
        samples = self.samples + self.rest.size
        return (self.silent + self._silent(self.rest)) / samples if samples else 1.0

    def _silent(self, audio: np.ndarray) -> int:
        if not audio.size:
            return 0
        starts = np.arange(0, audio.size, self.window)
        energy = np.add.reduceat(audio**2, starts)
        samples = np.diff(np.append(starts, audio.size))
        return int((samples * (energy < samples * self.threshold)).sum())


def repetition_ratio(codes, window: int = 8, levels: int = 1) -> float:
    """Share of frames that repeat something said before, to the letter.

    A run of `window` consecutive frames is a repeat when the same run (on the first `levels`
    levels) began at an earlier frame of the same sequence, overlapping or not: a code held for
    long, a loop of any period and a phrase said twice all count. The ratio is the share of frames
    that lie in at least one repeat. The coarse levels decide because the fine ones of a noisy codec
    differ even where a model is stuck.

    Args:
        codes: (T, K) integers, numpy or torch.
        window: frames a repeat must last; 8 frames are 160 ms at 50 frames per second.
        levels: how many of the coarsest levels must agree.

    Returns:
        Between 0 and 1; 0.0 for sequences of at most `window` frames. Digital silence is a held
        code and counts: read it together with `silence_ratio`.

    >>> repetition_ratio(np.arange(40)[:, None])
    0.0
    >>> repetition_ratio(np.tile(np.arange(10), 4)[:, None])  # all but the first round
    0.75
    """
    if hasattr(codes, "detach"):
        codes = codes.detach().cpu().numpy()
    codes = np.asarray(codes)
    if codes.ndim != 2:
        raise ValueError(f"codes must be (frames, levels), got {codes.shape}")
    if window < 1 or levels < 1:
        raise ValueError(f"window and levels must be at least 1, got {window} and {levels}")
    T = codes.shape[0]
    if window >= T:
        return 0.0
    coarse = np.ascontiguousarray(codes[:, :levels])  # (T, L)
    runs = np.lib.stride_tricks.sliding_window_view(coarse, window, axis=0)  # (T - w + 1, L, w)
    runs = runs.reshape(runs.shape[0], -1)
    _, first, group = np.unique(runs, axis=0, return_index=True, return_inverse=True)
    repeats = first[group.reshape(-1)] < np.arange(runs.shape[0])
    # a frame is covered when one of the `window` runs that contain it is a repeat
    edges = np.zeros(T + 1, dtype=np.int64)
    edges[: runs.shape[0]] += repeats
    edges[window : window + runs.shape[0]] -= repeats
    return float((np.cumsum(edges[:T]) > 0).mean())


def log_spectrum(audio, sampling_rate: int, floor_db: float = -100.0) -> np.ndarray:
    """(frames, bins) power spectrum in dB, Hann windows of 32 ms every 8 ms.

    Args:
        audio: (S,) or (C, S) in [-1, 1].
        sampling_rate: Hz.
        floor_db: values below are raised to it; 0 dB is a full-scale sine on a bin.
    """
    audio = _mono(audio)
    size = 2 * round(0.016 * sampling_rate)
    hop = max(1, size // 4)
    if audio.size < size:
        audio = np.pad(audio, (0, size - audio.size))
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]  # (F, size)
    taper = np.hanning(size + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2 / (taper.sum() / 2) ** 2
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), floor_db)


def log_spectral_distance(
    reference, estimate, sampling_rate: int, floor_db: float = -80.0
) -> float:
    """Root-mean-square difference of two spectra in dB, per frame, averaged over frames.

    ``mean_t sqrt(mean_f (20 log10 |R| - 20 log10 |E|)^2)`` over `log_spectrum`. Phase plays no
    part, time does: the signals must be aligned. The longer one is cut to the shorter.

    Args:
        reference: (S,) or (C, S) in [-1, 1].
        estimate: the same recording after a codec.
        sampling_rate: Hz, of both.
        floor_db: differences below this level are inaudible and ignored.

    Returns:
        dB, 0 for equal spectra; 10 dB is audibly rough.

    Source: Gray and Markel, "Distance measures for speech processing", 1976.
    """
    reference, estimate = _mono(reference), _mono(estimate)
    samples = min(reference.size, estimate.size)
    if not samples:
        raise ValueError("log_spectral_distance of empty audio")
    a = log_spectrum(reference[:samples], sampling_rate, floor_db)
    b = log_spectrum(estimate[:samples], sampling_rate, floor_db)
    return float(np.sqrt(((a - b) ** 2).mean(axis=1)).mean())
