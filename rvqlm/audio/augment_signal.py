"""Tempo, pitch and speed of a signal that comes in blocks; memory does not grow with its length.

Time is stretched by a phase vocoder (Flanagan and Golden, 1966; in the form of Ellis, "A phase
vocoder in Matlab", 2002, which librosa has too): the result of `stretch` is that of
``librosa.effects.time_stretch`` on the whole signal, and with `resample` after it that of
``librosa.effects.pitch_shift``. librosa itself holds the spectra of a whole file, 5 GB for an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from rvqlm.audio import prepare

FRAMES_AT_ONCE = 64


def change(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    speed: float = 1.0,
    tempo: float = 1.0,
    semitones: float = 0.0,
    n_fft: int = 4096,
    hop_length: int = 512,
) -> Iterator[np.ndarray]:
    """A signal of `n` samples made ``round(n / (speed * tempo))`` long; blocks (C, m) float32.

    speed: so many times faster by resampling; the pitch goes with it.
    tempo: so many times faster at the same pitch.
    semitones: so much higher at the same tempo.
    n_fft, hop_length: samples of the vocoder's window and of its step.

    All changes together take one pass of the vocoder and one resampling.
    """
    pitch = 2.0 ** (semitones / 12)
    counted = _Counter(blocks)
    out: Iterator[np.ndarray] = iter(counted)
    if tempo != pitch:
        out = stretch(out, tempo / pitch, n_fft, hop_length)
    if speed * pitch != 1:
        frames = (block.T for block in out)
        made = prepare.resample(frames, sampling_rate * speed * pitch, sampling_rate)
        out = (block.T for block in made)
    return _of_length(out, lambda: round(counted.samples / (speed * tempo)))


class _Counter:
    """Iterates over blocks once and knows how many samples went by."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += block.shape[1]
            yield block


def _of_length(blocks: Iterator[np.ndarray], length: Callable[[], int]) -> Iterator[np.ndarray]:
    """Cut, or completed with zeros, to a length that is known once the last block was asked for."""
    done, held = 0, None
    for block in blocks:
        if held is not None:
            done += held.shape[1]
            yield held
        held = block.astype(np.float32, copy=False)
    if held is None:
        return
    left = length() - done
    yield held[:, : max(0, left)]
    if left > held.shape[1]:
        yield np.zeros((len(held), left - held.shape[1]), np.float32)


def stretch(
    blocks: Iterable[np.ndarray], rate: float, n_fft: int, hop_length: int
) -> Iterator[np.ndarray]:
    """A signal of n samples made ``round(n / rate)`` long, its pitch unchanged."""
    counted = _Counter(blocks)
    columns = _vocoder(_spectra(counted, n_fft, hop_length), rate, n_fft, hop_length)
    return _of_length(
        _overlap_add(columns, n_fft, hop_length), lambda: round(counted.samples / rate)
    )


def _window(n_fft: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)  # periodic Hann


def _spectra(blocks: Iterable[np.ndarray], n_fft: int, hop: int) -> Iterator[np.ndarray]:
    """Short-time spectra (C, n_fft // 2 + 1, F) complex128 of frames around every hop-th sample."""
    window, pending = _window(n_fft), None

    def frames(signal: np.ndarray, count: int) -> np.ndarray:
        parts = np.lib.stride_tricks.sliding_window_view(signal, n_fft, axis=1)
        parts = parts[:, : count * hop : hop]  # (C, F, n_fft)
        return np.fft.rfft(parts * window, axis=2).transpose(0, 2, 1)

    half = n_fft // 2
    for block in blocks:
        if pending is None:
            pending = np.zeros((len(block), half))
        pending = np.concatenate([pending, block], axis=1)
        while pending.shape[1] >= n_fft + (FRAMES_AT_ONCE - 1) * hop:
            yield frames(pending, FRAMES_AT_ONCE)
            pending = pending[:, FRAMES_AT_ONCE * hop :]
    if pending is not None:
        pending = np.concatenate([pending, np.zeros((len(pending), half))], axis=1)
        yield frames(pending, 1 + (pending.shape[1] - n_fft) // hop)


def _vocoder(
    spectra: Iterable[np.ndarray], rate: float, n_fft: int, hop: int
) -> Iterator[np.ndarray]:
    """Spectra at every rate-th frame: magnitudes interpolated between the two frames around it,
    phases advancing as from the one to the other."""
    advance = 2 * np.pi * hop * np.arange(n_fft // 2 + 1)[:, None] / n_fft
    phase = None
    step, first = 0, 0  # the next output frame; number of the first input frame that is held
    held = None

    def made(last: bool) -> np.ndarray | None:
        nonlocal phase, step
        total = first + held.shape[2] - (2 if last else 0)  # two frames of zeros follow the last
        limit = total if last else total - 1  # two neighbours are needed
        count = max(0, int(np.ceil(limit / rate)) - step)
        at = (step + np.arange(count)) * rate
        at = at[at < limit]
        if not len(at):
            return None
        index = at.astype(int) - first
        left, right = held[:, :, index], held[:, :, index + 1]
        part = at % 1.0
        magnitude = (1 - part) * np.abs(left) + part * np.abs(right)
        turn = np.angle(right) - np.angle(left) - advance
        turn += advance - 2 * np.pi * np.round(turn / (2 * np.pi))
        if phase is None:
            phase = np.angle(held[:, :, 0])
        phases = phase[:, :, None] + np.cumsum(turn, axis=2) - turn
        phase = (phases[:, :, -1] + turn[:, :, -1]) % (2 * np.pi)
        step += len(at)
        return magnitude * np.exp(1j * phases)

    for block in spectra:
        held = block if held is None else np.concatenate([held, block], axis=2)
        if (out := made(last=False)) is not None:
            yield out
        drop = min(max(0, int(step * rate) - first), held.shape[2] - 1)
        held, first = held[:, :, drop:], first + drop
    if held is not None:
        held = np.concatenate([held, np.zeros((*held.shape[:2], 2))], axis=2)
        if (out := made(last=True)) is not None:
            yield out


def _overlap_add(spectra: Iterable[np.ndarray], n_fft: int, hop: int) -> Iterator[np.ndarray]:
    """The signal of short-time spectra, from the middle of the first frame on."""
    window, tiny = _window(n_fft), np.finfo(np.float32).tiny
    signal, weight, skip = None, np.zeros(0), n_fft // 2

    def ready(count: int) -> np.ndarray:
        """The first `count` samples of the buffer, divided by the sum of the windows."""
        nonlocal skip
        out = signal[:, :count] / np.where(weight[:count] > tiny, weight[:count], 1.0)
        out = out[:, min(skip, count) :]
        skip -= min(skip, count)
        return out

    for block in spectra:
        frames = np.fft.irfft(block.transpose(0, 2, 1), n_fft, axis=2) * window  # (C, F, n_fft)
        count = frames.shape[1]
        signal = np.zeros((len(block), 0)) if signal is None else signal
        more = (count - 1) * hop + n_fft - signal.shape[1]
        signal = np.concatenate([signal, np.zeros((len(block), more))], axis=1)
        weight = np.concatenate([weight, np.zeros(more)])
        for i in range(count):
            signal[:, i * hop : i * hop + n_fft] += frames[:, i]
            weight[i * hop : i * hop + n_fft] += window**2
        yield ready(count * hop)
        signal, weight = signal[:, count * hop :], weight[count * hop :]
    if signal is not None:
        yield ready(signal.shape[1])
