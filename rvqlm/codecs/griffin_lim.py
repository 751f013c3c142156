"""Audio from magnitudes: phases by tracking spectral peaks, refined by fast Griffin-Lim.

The start follows the phase vocoder with locked peaks (Laroche & Dolson 1999): every bin belongs to
the peak it climbs to, a peak continues the phase of the bin it lies on in the frame before, and its
frequency comes from a parabola through its neighbours. Griffin-Lim with momentum (Perraudin,
Balazs & Soendergaard 2013) then makes neighbouring spectra agree. Nothing is random: the same
magnitudes give the same audio.

The start goes from left to right, and an iteration sees `REACH` spectra to each side, so that audio
of any length is made in pieces that are those of the whole (`stages`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rvqlm.codecs.streaming import LIVE, Stage, Windows

MOMENTUM = 0.99 / 1.99
"""0 would be plain Griffin-Lim; near 1/2 it converges to better phases."""

REACH = 3
"""Spectra whose windows overlap with one's own, on each side."""


def initial_phases(magnitudes: np.ndarray, hop: int) -> np.ndarray:
    """Magnitudes (n, bins) -> phases (n, bins) in radians, float32, for windows of 2 (bins - 1)."""
    return _continued(magnitudes, hop, None)[0]


def _continued(
    magnitudes: np.ndarray, hop: int, state: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """`initial_phases` of a piece, and the state for the next: the last phases and frequencies."""
    n, bins = magnitudes.shape
    if not n:
        return np.empty((0, bins), np.float32), state
    logs = np.log(np.maximum(magnitudes, 1e-5))
    edge = np.full((n, 1), -1e9, dtype=logs.dtype)
    left = np.concatenate([edge, logs[:, :-1]], axis=1)
    right = np.concatenate([logs[:, 1:], edge], axis=1)
    here = np.arange(bins)
    # climb one bin at a time, then double the stride
    climb = here + (right > np.maximum(logs, left)) - ((left > logs) & (left >= right))
    for _ in range(6):
        climb = np.take_along_axis(climb, climb, axis=1)
    curve = np.minimum(left + right - 2 * logs, -1e-3)
    offset = np.clip(0.5 * (left - right) / curve, -0.5, 0.5)
    offset[:, [0, -1]] = 0
    frequency = np.take_along_axis(here + offset, climb, axis=1)
    advance = (2 * math.pi * hop / (2 * (bins - 1))) * frequency
    phases = np.empty((n, bins))
    now, before = (np.zeros(bins), advance[0]) if state is None else state
    for t in range(n):
        # half the step at the old frequency of the peak's bin, half at the new one
        now = now[climb[t]] + 0.5 * (before[climb[t]] + advance[t])
        before = advance[t]
        phases[t] = now
    # a window's phase refers to its first sample, a peak's to its middle
    return ((phases + math.pi * here) % (2 * math.pi)).astype(np.float32), (now, before)


class GriffinLim:
    """Magnitudes -> audio for Hann windows that overlap by three quarters.

    Args:
        window: (n_fft,) analysis window; hop is n_fft / 4.
        iterations: 0 leaves the initial phases; each one costs two FFTs per spectrum.
    """

    def __init__(self, window: Tensor, iterations: int = 32):
        self.window = window
        self.n_fft = len(window)
        self.hop = self.n_fft // 4
        self.iterations = iterations

    def __call__(self, magnitudes: Tensor) -> Tensor:
        """(n, bins) float32 on the CPU -> (n * hop,) float32; windows are centred as in
        `SpectralNet.stft`: on (i + 1/2) * hop."""
        phases = torch.from_numpy(initial_phases(magnitudes.numpy(), self.hop))
        spectra, gain = torch.polar(magnitudes, phases), self._gain(len(magnitudes))
        return self._inverse(self._refined(magnitudes, spectra, None, gain)[0], gain).reshape(-1)

    def stages(self, step: int) -> list[Stage]:
        """The same of magnitudes (1, bins, n) that arrive in pieces -> (1, 1, n * hop), ``step``
        spectra at a time, about.

        With `LIVE` each iteration is a stage of its own: little of its context is computed again
        for a piece, but all of them hold one.
        """

        def stage(run: Callable[[Tensor], Tensor], steps: int, hop: int = 1) -> Windows:
            reach = REACH * steps
            return Windows(run, reach, reach, step, per_out=hop, reflects=False)

        if step == LIVE:
            each = [stage(lambda x: self._packed(x, 1), 1) for _ in range(self.iterations)]
            return [_Start(self.hop), *each, stage(self._sound, 1, self.hop)]

        def whole(x: Tensor) -> Tensor:
            return self._sound(self._packed(x, self.iterations))

        return [_Start(self.hop), stage(whole, self.iterations + 1, self.hop)]

    def _refined(
        self,
        magnitudes: Tensor,
        spectra: Tensor,
        previous: Tensor | None,
        gain: Tensor,
        iterations: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Spectra after so many iterations, and what the last of them rebuilt (n, bins, 2)."""
        for _ in range(self.iterations if iterations is None else iterations):
            audio = self._inverse(spectra, gain)
            rebuilt = torch.view_as_real(self._forward(audio))
            target = rebuilt if previous is None else rebuilt - MOMENTUM * previous
            previous = rebuilt
            power = target.square().sum(-1).clamp_(min=1e-16)
            spectra = torch.view_as_complex(target * (magnitudes * power.rsqrt_())[..., None])
        return spectra, previous

    def _packed(self, x: Tensor, iterations: int) -> Tensor:
        """Some iterations of (1, 5 bins, n), see `_Start`."""
        magnitudes, spectra, previous = _unpacked(x)
        spectra, previous = self._refined(
            magnitudes, spectra, previous, self._gain(len(magnitudes)), iterations
        )
        return _pack(magnitudes, spectra, previous)

    def _sound(self, x: Tensor) -> Tensor:
        _, spectra, _ = _unpacked(x)
        return self._inverse(spectra, self._gain(len(spectra))).reshape(1, 1, -1)

    def _gain(self, n: int) -> Tensor:
        return 1 / self._overlap_add((self.window**2).expand(n, -1)).clamp(min=1e-2)

    def _forward(self, audio: Tensor) -> Tensor:
        margin = (self.n_fft - self.hop) // 2
        frames = F.pad(audio, (margin, margin)).unfold(0, self.n_fft, self.hop)
        return torch.fft.rfft(frames * self.window)

    def _inverse(self, spectra: Tensor, gain: Tensor) -> Tensor:
        frames = torch.fft.irfft(spectra, n=self.n_fft) * self.window
        return self._overlap_add(frames) * gain

    def _overlap_add(self, frames: Tensor) -> Tensor:
        n, hop = len(frames), self.hop
        parts = frames.reshape(n, 4, hop)
        out = frames.new_zeros(n + 3, hop)
        for k in range(4):
            out[k : k + n] += parts[:, k]
        margin = (self.n_fft - hop) // 2
        return out.reshape(-1)[margin : margin + n * hop]


class _Start:
    """A stage that gives magnitudes (1, bins, n) their phases: (1, 5 bins, n), which are
    magnitudes, spectra (real, imaginary), and what the iteration before rebuilt, which is
    nothing."""

    STATE = ("state",)

    def __init__(self, hop: int):
        self.hop, self.state = hop, None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        magnitudes = x[0].T.contiguous()  # kernels may round by layout
        phases, self.state = _continued(magnitudes.numpy(), self.hop, self.state)
        spectra = torch.polar(magnitudes, torch.from_numpy(phases))
        return _pack(magnitudes, spectra, torch.zeros(*spectra.shape, 2))


def _pack(magnitudes: Tensor, spectra: Tensor, previous: Tensor) -> Tensor:
    parts = (magnitudes, spectra.real, spectra.imag, *previous.unbind(-1))
    return torch.cat(parts, 1).T[None]


def _unpacked(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    magnitudes, *parts = (part.contiguous() for part in x[0].T.chunk(5, 1))
    return magnitudes, torch.complex(*parts[:2]), torch.stack(parts[2:], -1)
