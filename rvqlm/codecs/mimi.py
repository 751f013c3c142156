"""Mimi (Defossez et al. 2024) in transformers: causal convolutions and transformers over latents.

The transformers attend to a sliding window (250 latents of 25 Hz in the published weights) through
all of their layers, too far back for an overlap. Long files carry their keys and values instead,
which the cache of transformers keeps to one window, and the convolutions before and behind them
see windows with their finite context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from rvqlm.codecs.cards import HUB, Card
from rvqlm.codecs.receptive_field import layers_of, reach
from rvqlm.codecs.streaming import LIVE, Decoder, Encoded, Pointwise, Windows, encode_staged
from rvqlm.codecs.transformers_codec import TransformersCodec, quicken_padding
from rvqlm.errors import UserError


class MimiCodec(TransformersCodec):
    """Mimi; long files carry the transformers' keys and values."""

    model_type = "mimi"
    usual_codebooks = 8
    cards = (
        Card(
            "kyutai/mimi", 8, 32, 2048, 24000, 1920, "CC-BY-4.0", HUB + "kyutai/mimi",
            note="causal; the first level is semantic", look_ahead=(0, 5),
        ),
    )  # fmt: skip

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        if not hasattr(model.encoder, "encoder_seanet"):  # its parts lay elsewhere before
            import transformers

            raise UserError(
                f"codec {name}: Mimi needs transformers 5.21 or newer, {transformers.__version__} "
                "is installed: pip install -U transformers (which needs Python 3.11)"
            )
        super().__init__(model, name, num_codebooks)
        quicken_padding(model)

    @staticmethod
    def _hop(config, name: str) -> int:
        return math.prod(config.upsampling_ratios) * int(config.latent_stride)

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, num_quantizers=self.info.num_codebooks).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes).audio_values

    def _apply(self, fn, recurse: bool = True):
        for module in self.modules():  # codebooks computed before a move would stay behind
            if getattr(module, "_embed", None) is not None:
                module._embed = None
        return super()._apply(fn, recurse)

    def _quantize(self, latents: Tensor) -> Tensor:
        """(B, D, T) -> (B, K, T)"""
        return self.model.quantizer.encode(latents, self.info.num_codebooks).transpose(0, 1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes)

    def encode_blocks(self, blocks: Iterable[Tensor], step: int) -> Iterator[Encoded]:
        net, stride = self.model.encoder, int(self.model.config.latent_stride)
        hop = self.info.hop // stride
        seanet = reach(layers_of(net.encoder_seanet), hop, 1)
        down = reach(layers_of(net.downsample), stride, 1)
        return encode_staged(
            self,
            blocks,
            Pointwise(self.to_model),
            Windows(net.encoder_seanet, *seanet, step * stride, per_in=hop),
            Attention(net.encoder_transformer),
            Windows(net.downsample, *down, step, per_in=stride),
            Pointwise(self._quantize),
        )

    def piecewise(self, step: int = LIVE, scales: Tensor | None = None) -> Decoder:
        net, stride = self.model.decoder, int(self.model.config.latent_stride)
        hop = self.info.hop // stride
        up = reach(layers_of(net.upsample), 1, stride)
        seanet = reach(layers_of(net.decoder_seanet), 1, hop)
        return Decoder(
            self,
            Pointwise(self._dequantize),
            Windows(net.upsample, *up, step, per_out=stride),
            Attention(net.decoder_transformer),
            Windows(net.decoder_seanet, *seanet, step * stride, per_out=hop),
        )


class Attention:
    """A stage that is a causal transformer with a sliding window: carries keys and values."""

    STATE = ("cache",)

    def __init__(self, transformer: nn.Module):
        self.transformer, self.cache = transformer, None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        made = self.transformer(x.transpose(1, 2), past_key_values=self.cache, use_cache=True)
        self.cache = made.past_key_values
        return made.last_hidden_state.transpose(1, 2)
