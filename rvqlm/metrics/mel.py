"""Mel spectrograms, as several networks that judge audio were trained on them, and the distance
between two recordings over several of them.

Filters are those of Slaney's Auditory Toolbox, each of unit area, or of HTK, each of unit height;
frames are centred, with zeros beyond both ends, as in librosa. numpy only.
"""

from __future__ import annotations

import functools

import numpy as np

SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Samples in a window and mel bands of each scale of `mel_distance`."""
_FLOOR = 1e-5
_LINEAR, _LOG_STEP = 200.0 / 3, np.log(6.4) / 27  # Hz in a mel below 1 kHz, log Hz in one above


def _to_mel(hz: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)
    above = 15 + np.log(np.maximum(hz, 1.0) / 1000.0) / _LOG_STEP
    return np.where(np.asarray(hz) < 1000.0, np.asarray(hz) / _LINEAR, above)


def _to_hz(mel: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700.0 * np.expm1(mel / 1127.0)
    return np.where(mel < 15, mel * _LINEAR, 1000.0 * np.exp(_LOG_STEP * (mel - 15)))


@functools.lru_cache(maxsize=32)
def mel_filters(
    sampling_rate: int,
    size: int,
    bands: int,
    lowest: float = 0.0,
    highest: float | None = None,
    htk: bool = False,
) -> np.ndarray:
    """(bands, size // 2 + 1) weights of the bins of a spectrum in each mel band.

    :param size: samples of the Fourier transform.
    :param lowest, highest: Hz; None: half the sampling rate.
    :param htk: HTK's scale, triangles in mels of height 1; else Slaney's, in Hz, of area 1.
    """
    highest = sampling_rate / 2 if highest is None else highest
    hz = np.arange(size // 2 + 1) * sampling_rate / size
    edges = np.linspace(*_to_mel(np.array([lowest, highest]), htk), bands + 2)
    bins = _to_mel(hz, htk) if htk else hz
    edges = edges if htk else _to_hz(edges, htk)
    widths = np.diff(edges)[:, None]
    from_edge = bins - edges[:, None]  # (bands + 2, bins)
    filters = np.minimum(from_edge[:-2] / widths[:-1], -from_edge[2:] / widths[1:])
    filters = np.maximum(filters, 0.0)
    if htk:
        filters[:, 0] = 0.0  # HTK leaves the constant part out
        return filters
    return filters * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def frames_of(audio: np.ndarray, size: int, hop: int, center: bool = True) -> np.ndarray:
    """(frames, size) of (S,) audio, a frame every `hop` samples.

    :param center: the first frame is centred on the first sample, with zeros beyond both ends.
    """
    if center:
        audio = np.pad(audio, size // 2)
    if len(audio) < size:
        audio = np.pad(audio, (0, size - len(audio)))
    return np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]


def spectra(
    audio: np.ndarray, window: int, hop: int, size: int | None = None, center: bool = True
) -> np.ndarray:
    """(frames, size // 2 + 1) magnitudes under Hann windows (periodic) of (S,) audio.

    :param size: samples of the Fourier transform, at least `window`, which stands in its middle
        where frames are centred and at its beginning else; None: `window`.
    """
    size = size or window
    taper = np.hanning(window + 1)[:-1]
    left = (size - window) // 2 if center else 0
    taper = np.pad(taper, (left, size - window - left))
    return np.abs(np.fft.rfft(frames_of(audio, size, hop, center) * taper, axis=1))


def mel_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Mean absolute difference of log10 mel spectra, averaged over `SCALES`.

    Windows of 32 to 2,048 samples with a hop of a quarter, magnitudes below 1e-5 raised to it: the
    log part of the distance that codecs are trained and compared with (Kumar et al., 2023,
    arXiv:2306.06546). The longer signal is cut to the shorter.

    :param reference, estimate: (S,) in [-1, 1], aligned.
    :returns: 0 for equal signals; 1 is a factor of ten in every band.
    """
    samples = min(len(reference), len(estimate))
    if not samples:
        raise ValueError("mel_distance of empty audio")
    found = []
    for window, bands in SCALES:
        filters = mel_filters(sampling_rate, window, bands)
        logs = (
            np.log10(np.maximum(spectra(x[:samples], window, window // 4) @ filters.T, _FLOOR))
            for x in (reference, estimate)
        )
        found.append(np.abs(np.subtract(*logs)).mean())
    return float(np.mean(found))
