"""Audio from magnitudes: phases by tracking spectral peaks, refined by fast Griffin-Lim.

The start follows the phase vocoder with locked peaks (Laroche & Dolson 1999): every bin belongs to
the peak it climbs to, a peak continues the phase of the bin it lies on in the frame before, and its
frequency comes from a parabola through its neighbours. Griffin-Lim with momentum (Perraudin,
Balazs & Soendergaard 2013) then makes neighbouring spectra agree. Nothing is random: the same
magnitudes give the same audio.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOMENTUM = 0.99 / 1.99
"""0 would be plain Griffin-Lim; near 1/2 it converges to better phases."""

FADE = 4
"""Spectra on each side of a cut over which its sides are mixed."""


def initial_phases(magnitudes: np.ndarray, hop: int) -> np.ndarray:
    """Magnitudes (n, bins) -> phases (n, bins) in radians, float32, for windows of 2 (bins - 1)."""
    n, bins = magnitudes.shape
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
    now, before = np.zeros(bins), advance[0] if n else None
    for t in range(n):
        # half the step at the old frequency of the peak's bin, half at the new one
        now = now[climb[t]] + 0.5 * (before[climb[t]] + advance[t])
        before = advance[t]
        phases[t] = now
    # a window's phase refers to its first sample, a peak's to its middle
    return ((phases + math.pi * here) % (2 * math.pi)).astype(np.float32)


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
        n = len(magnitudes)
        phases = torch.from_numpy(initial_phases(magnitudes.numpy(), self.hop))
        spectra = torch.polar(magnitudes, phases)
        overlap = self._overlap_add((self.window**2).expand(n, -1)).clamp(min=1e-2)
        gain = 1 / overlap
        previous: Tensor | None = None
        for _ in range(self.iterations):
            audio = self._inverse(spectra, gain)
            rebuilt = torch.view_as_real(self._forward(audio))
            target = rebuilt if previous is None else rebuilt - MOMENTUM * previous
            previous = rebuilt
            power = target.square().sum(-1).clamp_(min=1e-16)
            spectra = torch.view_as_complex(target * (magnitudes * power.rsqrt_())[..., None])
        return self._inverse(spectra, gain).reshape(-1)

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


def next_cut(magnitudes: Tensor, size: int) -> int | None:
    """Where to cut magnitudes (n, bins) that begin at a cut next: the quietest spectrum within a
    fifth of `size` around it; None if there is too little for another piece."""
    reach = size // 5
    if len(magnitudes) <= size + reach + FADE:
        return None
    around = magnitudes[size - reach : size + reach]
    return size - reach + int(around.square().sum(1).argmin())


class Phases:
    """A stage of `rvqlm.codecs.streaming`: magnitudes (1, bins, n) -> audio (1, 1, n * hop), in
    memory that does not grow with the recording.

    Griffin-Lim sees some tens of seconds at a time. Cuts are made where it is quietest, because
    the phases on the two sides of a cut do not agree, and the sides are faded into each other.
    How the magnitudes are cut when they arrive changes nothing.

    Args:
        invent: (n, bins) -> (n * hop,), phases and all.
        hop: samples per spectrum.
        size: spectra in a piece, about.
    """

    def __init__(self, invent: Callable[[Tensor], Tensor], hop: int, size: int):
        self.invent, self.hop, self.size = invent, hop, size
        self.ramp = torch.linspace(0, 1, 2 * FADE * hop)
        self.held: Tensor | None = None  # from FADE spectra before the last cut on
        self.lead = 0  # so many of them are before it
        self.carry: Tensor | None = None  # what the piece before gives to this one's beginning

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            part = x[0].T.contiguous()  # kernels may round by layout
            self.held = part if self.held is None else torch.cat((self.held, part))
        if self.held is None:
            return None
        made = []
        while (cut := next_cut(self.held[self.lead :], self.size)) is not None:
            cut += self.lead
            audio = self._piece(self.held[: cut + FADE])
            self.carry = audio[-len(self.ramp) :] * (1 - self.ramp)
            made.append(audio[: -len(self.ramp)])
            self.held, self.lead = self.held[cut - FADE :], FADE
        if last:
            made.append(self._piece(self.held))
            self.held = None
        return torch.cat(made)[None, None] if made else None

    def _piece(self, magnitudes: Tensor) -> Tensor:
        audio = self.invent(magnitudes)
        if self.carry is not None:
            audio[: len(self.ramp)] *= self.ramp
            audio[: len(self.ramp)] += self.carry
        return audio
