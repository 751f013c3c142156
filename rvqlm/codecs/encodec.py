"""EnCodec (Defossez et al. 2022) in transformers: SEANet, which is convolutions around an LSTM.

The LSTM runs one way only, so a long file needs no overlap there: its state goes on from piece to
piece, and the convolutions before and behind it see windows with their finite context.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rvqlm.codecs.receptive_field import layers_of, reach
from rvqlm.codecs.streaming import (
    Pointwise,
    Recurrent,
    Stage,
    StagedDecoder,
    StagedEncoder,
    StreamDecoder,
    StreamEncoder,
    Windows,
)
from rvqlm.codecs.transformers_codec import TransformersCodec


def encodec_codec(model: nn.Module, name: str, num_codebooks: int | None = None):
    """The adapter for an EnCodec: `EncodecCodec`, or `EncodecSegmentCodec` for the 48 kHz kind."""
    from rvqlm.codecs.encodec_segments import EncodecSegmentCodec

    cut = model.config.normalize or model.config.chunk_length_s is not None
    return (EncodecSegmentCodec if cut else EncodecCodec)(model, name, num_codebooks)


class EncodecCodec(TransformersCodec):
    """EnCodec at 24 and 32 kHz; long files carry the LSTM's state."""

    usual_codebooks = 8

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        super().__init__(model, name, num_codebooks)
        for module in model.modules():
            if hasattr(module, "_pad1d"):
                module._pad1d = quick_padding(module._pad1d)
        # the class only takes bandwidths from its list: the smallest with enough levels
        levels = model.quantizer.get_num_quantizers_for_bandwidth
        self.bandwidth = min(
            b for b in model.config.target_bandwidths if levels(b) >= self.info.num_codebooks
        )

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, bandwidth=self.bandwidth).audio_codes[0]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None], [None]).audio_values

    def _quantize(self, latents: Tensor) -> Tensor:
        """(B, D, T) -> (B, K, T)"""
        codes = self.model.quantizer.encode(latents, self.bandwidth)  # (>= K, B, T)
        return codes[: self.info.num_codebooks].transpose(0, 1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        """(B, K, T) -> (B, D, T)"""
        return self.model.quantizer.decode(codes.transpose(0, 1))

    def stream_encoder(self, chunk_seconds: float = 5.0) -> StreamEncoder:
        head, lstm, tail = _parts(self.model.encoder.layers)
        step, hop = self.frames_in(chunk_seconds), self.info.hop
        return StagedEncoder(
            self,
            Pointwise(self.to_model),
            _windows(head, step, per_in=hop),
            Recurrent(lstm),
            _windows(tail, step),
            Pointwise(self._quantize),
        )

    def stream_decoder(
        self, chunk_seconds: float = 5.0, scales: Tensor | None = None
    ) -> StreamDecoder:
        head, lstm, tail = _parts(self.model.decoder.layers)
        step, hop = self.frames_in(chunk_seconds), self.info.hop
        return StagedDecoder(
            self,
            Pointwise(self._dequantize),
            _windows(head, step),
            Recurrent(lstm),
            _windows(tail, step, per_out=hop),
        )


def quick_padding(otherwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same as a layer's own padding, in a copy where torch's gathers element by element, and
    none where there is nothing to pad: a tenth of the time of the whole network on a CPU."""

    def pad(x: Tensor, paddings: tuple[int, int], mode: str = "zero", value: float = 0.0) -> Tensor:
        left, right = (int(n) for n in paddings)
        if left == right == 0:
            return x
        if mode != "reflect" or min(left, right) < 0 or x.shape[-1] <= max(left, right):
            return otherwise(x, paddings, mode, value)
        head, n = x[..., 1 : left + 1].flip(-1), x.shape[-1]
        tail = x[..., n - 1 - right : n - 1].flip(-1)
        return torch.cat((head, x, tail), -1)

    return pad


def _parts(layers: nn.ModuleList) -> tuple[nn.Sequential, nn.LSTM, nn.Sequential]:
    """What comes before the LSTM, the LSTM, and what comes behind it."""
    (at,) = [i for i, layer in enumerate(layers) if hasattr(layer, "lstm")]
    return nn.Sequential(*layers[:at]), layers[at].lstm, nn.Sequential(*layers[at + 1 :])


def _windows(network: nn.Sequential, step: int, per_in: int = 1, per_out: int = 1) -> Stage:
    before, after = reach(layers_of(network), per_in, per_out)
    return Windows(network, before, after, step, per_in, per_out)
