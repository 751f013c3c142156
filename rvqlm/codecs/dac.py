"""DAC (Kumar et al. 2023) in transformers: convolutions only, hence a finite context."""

from __future__ import annotations

from torch import Tensor, nn

from rvqlm.codecs.receptive_field import layers_of, reach
from rvqlm.codecs.transformers_codec import TransformersCodec


class DacCodec(TransformersCodec):
    """DAC at any rate; chunks of long files are exact."""

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        super().__init__(model, name, num_codebooks)
        hop = self.info.hop
        self.context_frames = max(reach(layers_of(model.encoder), hop, 1))
        self.decode_context_frames = max(reach(layers_of(model.decoder), 1, hop))

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.info.num_codebooks).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes).audio_values[:, None]
