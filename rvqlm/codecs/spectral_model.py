"""The network of the spectral codec: log-magnitude spectra -> latents -> log-magnitude spectra.

One frame (20 ms) is two neighbouring spectra side by side. Encoder and decoder are short stacks of
ConvNeXt blocks (Liu et al. 2022) over time with norms over channels only, so that a frame depends
on a fixed number of neighbours and on nothing else. Phase is not coded; see `spectral.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SpectralConfig:
    """Everything that shapes the codec; stored beside the weights."""

    sampling_rate: int = 16000
    n_fft: int = 640
    spectrum_hop: int = 160
    spectra_per_frame: int = 2
    width: int = 176
    expansion: int = 3
    kernel: int = 7
    encoder_layers: int = 3
    decoder_layers: int = 5
    latent_dim: int = 48
    num_codebooks: int = 8
    codebook_size: int = 1024
    floor: float = 3e-3
    """Smallest magnitude told apart from silence; a full-scale sine has n_fft / 4."""

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.spectrum_hop * self.spectra_per_frame

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def margin(self) -> int:
        """Samples that the outer windows of a frame stick out on each side."""
        return (self.n_fft - self.spectrum_hop) // 2

    @property
    def context_frames(self) -> int:
        """Frames on each side that a frame's codes depend on: convolutions, then windows."""
        return self.encoder_layers * (self.kernel // 2) + -(-self.margin // self.hop)

    @property
    def decode_context_frames(self) -> int:
        """Frames on each side that a frame's magnitudes depend on."""
        return self.decoder_layers * (self.kernel // 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, channel norm, two-layer perceptron, residual."""

    def __init__(self, width: int, expansion: int, kernel: int, scale: float):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * expansion)
        self.down = nn.Linear(width * expansion, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm(y)))) * self.scale


class ResidualQuantizer(nn.Module):
    """K codebooks of V entries in D dimensions: level k quantizes what levels 0..k-1 left over.

    Choosing an entry weighs its distance against its rarity (entropy-constrained quantization,
    Chou, Lookabaugh & Gray 1989): a rare entry must be worth its bits. Fine levels then stay quiet
    where there is only noise to refine, and the codes are easier to predict.

    >>> q = ResidualQuantizer(num_codebooks=2, codebook_size=4, dim=3)
    >>> codes = q.encode(torch.randn(5, 3), 2)
    >>> codes.shape, q.decode(codes).shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    codebooks: Tensor
    bias: Tensor
    """(K, V) added to the score of each entry: price of a bit times log of its frequency, <= 0."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int):
        super().__init__()
        self.register_buffer("codebooks", torch.randn(num_codebooks, codebook_size, dim))
        self.register_buffer("bias", torch.zeros(num_codebooks, codebook_size))
        self._prepared: tuple[list[Tensor], list[Tensor]] | None = None

    def _apply(self, fn, recurse: bool = True):
        self._prepared = None  # or it would stay behind where the codebooks go
        return super()._apply(fn, recurse)

    def prepare(self) -> None:
        """Lay the codebooks out for `encode`; call again after they change."""
        self._prepared = (
            [c.t().contiguous() for c in self.codebooks],
            [c.square().sum(1) * 0.5 - b for c, b in zip(self.codebooks, self.bias)],
        )

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """(N, D) -> codes (N, K) int64: the nearest (and not too rare) entry, level
        after level."""
        if self._prepared is None:
            self.prepare()
        assert self._prepared is not None
        residual, codes, cpu = latents, [], latents.device.type == "cpu"
        for k in range(num_codebooks):
            # argmin |r - e|^2 / 2 - bias = argmax r.e - |e|^2 / 2 + bias
            score = residual @ self._prepared[0][k] - self._prepared[1][k]
            # numpy finds the first maximum ten times faster than torch on a CPU
            index = torch.from_numpy(score.numpy().argmax(1)) if cpu else score.argmax(1)
            codes.append(index)
            residual = residual - self.codebooks[k][index]
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """(..., K) -> (..., D); K may be smaller than the number of codebooks."""
        latents = self.codebooks[0][codes[..., 0]]
        for k in range(1, codes.shape[-1]):
            latents = latents + self.codebooks[k][codes[..., k]]
        return latents


class SpectralNet(nn.Module):
    """Encoder, quantizer and decoder over normalised log magnitudes.

    >>> net = SpectralNet(SpectralConfig(width=16, encoder_layers=1, decoder_layers=1))
    >>> x = net.spectra(torch.zeros(1, 960))
    >>> x.shape, net.decode(net.encode(x)).shape
    (torch.Size([1, 3, 642]), torch.Size([1, 3, 642]))
    """

    SHIFT, SCALE = -1.5, 3.0  # log magnitudes of speech to about zero mean, unit variance

    def __init__(self, config: SpectralConfig):
        super().__init__()
        self.config = config
        c, W = config, config.width
        features = c.bins * c.spectra_per_frame

        def blocks(n: int) -> nn.Sequential:
            return nn.Sequential(
                *(ConvNeXtBlock(W, c.expansion, c.kernel, 1.0 / max(1, n)) for _ in range(n))
            )

        self.encoder_in = nn.Linear(features, W)
        self.encoder = blocks(c.encoder_layers)
        self.encoder_norm = nn.LayerNorm(W)
        self.encoder_out = nn.Linear(W, c.latent_dim)
        self.quantizer = ResidualQuantizer(c.num_codebooks, c.codebook_size, c.latent_dim)
        self.decoder_in = nn.Linear(c.latent_dim, W)
        self.decoder = blocks(c.decoder_layers)
        self.decoder_norm = nn.LayerNorm(W)
        self.decoder_out = nn.Linear(W, features)
        self.register_buffer("window", torch.hann_window(c.n_fft), persistent=False)

    def stft(self, audio: Tensor) -> Tensor:
        """Audio (B, T * hop) -> complex spectra (B, T * spectra_per_frame, bins).

        Spectra are centred at (i + 1/2) * spectrum_hop, so that the spectra of a frame lie
        symmetrically in it; outside the signal is silence.
        """
        c = self.config
        frames = F.pad(audio, (c.margin, c.margin)).unfold(1, c.n_fft, c.spectrum_hop)
        return torch.fft.rfft(frames * self.window)

    def log_magnitudes(self, spectra: Tensor) -> Tensor:
        """Complex (B, n, bins) -> natural log of magnitudes, not below the floor."""
        power = spectra.real.square() + spectra.imag.square()
        return power.clamp(min=self.config.floor**2).log() * 0.5

    def spectra(self, audio: Tensor) -> Tensor:
        """Audio (B, T * hop) -> normalised log magnitudes (B, T, spectra_per_frame * bins)."""
        logs = self.log_magnitudes(self.stft(audio))
        logs = (logs - self.SHIFT) / self.SCALE
        return logs.reshape(logs.shape[0], -1, self.config.bins * self.config.spectra_per_frame)

    def to_logs(self, features: Tensor) -> Tensor:
        """Normalised (B, T, spectra_per_frame * bins) -> natural logs (B, n, bins)."""
        logs = features * self.SCALE + self.SHIFT
        return logs.reshape(logs.shape[0], -1, self.config.bins)

    def encode(self, features: Tensor) -> Tensor:
        """Normalised log magnitudes (B, T, F) -> latents (B, T, D)."""
        return self.encoder_out(self.encoder_norm(self.encoder(self.encoder_in(features))))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, T, D) -> normalised log magnitudes (B, T, F)."""
        return self.decoder_out(self.decoder_norm(self.decoder(self.decoder_in(latents))))
