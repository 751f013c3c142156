"""Audio from magnitudes: phases by tracking spectral peaks, refined by fast Griffin-Lim.

The start follows the phase vocoder with locked peaks (Laroche & Dolson 1999): every bin belongs to
the peak it climbs to, a peak continues the phase of the bin it lies on in the frame before, and its
frequency comes from a parabola through its neighbours. Griffin-Lim with momentum (Perraudin,
Balazs & Soendergaard 2013) then makes neighbouring spectra agree. Nothing is random: the same
magnitudes give the same audio.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
        momentum: 0 is plain Griffin-Lim; near 1 converges to better phases.
    """

    def __init__(self, window: Tensor, iterations: int = 32, momentum: float = 0.99):
        self.window = window
        self.n_fft = len(window)
        self.hop = self.n_fft // 4
        self.iterations = iterations
        self.momentum = momentum / (1 + momentum)

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
            target = rebuilt if previous is None else rebuilt - self.momentum * previous
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
