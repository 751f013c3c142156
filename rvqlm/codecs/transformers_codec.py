"""Codecs through the audio-tokenizer classes of `transformers`: DAC, EnCodec, Mimi and others.

What all have in common: rates and shapes are read from the configuration, the number of codebooks
is selected, the last frame is completed, and how a class lays out its codes is hidden. Items of a
batch that differ in length are encoded apart, so that an item's codes do not depend on what it is
batched with beyond float rounding. Classes with an adapter of their own subclass it; which one
wraps a model, `rvqlm.codecs.pretrained.from_model` decides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec, fingerprint
from rvqlm.errors import UserError

# What changes codes or audio without being a weight. Only these configuration values enter the
# fingerprint: the full configuration grows fields with every release of transformers.
# fmt: off
_IDENTITY = (
    "model_type", "sampling_rate", "sample_rate", "audio_channels", "downsampling_ratios",
    "upsampling_ratios", "dilation_growth_rate", "use_causal_conv", "n_codebooks",
    "num_quantizers", "num_semantic_quantizers", "codebook_size", "codebook_dim", "pad_mode",
    "norm_type", "normalize", "trim_right_ratio", "hidden_act", "norm_eps", "sliding_window",
    "num_attention_heads", "num_key_value_heads", "rope_parameters",
)
# fmt: on

_ROTARY = ("inv_freq", "original_inv_freq")


class TransformersCodec(Codec):
    """Any audio tokenizer of transformers with (B, K, T) codes; files go in whole.

    This base class is the adapter for classes without one of their own: `probe` tries it on a
    short noise first, and a model whose interface is different is refused with what was found.
    """

    model_type = ""
    """Of the configurations that a subclass is the adapter for."""

    usual_codebooks: int | None = None
    """Levels in common use where the weights hold more; --num-codebooks asks for others."""

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        config = model.config
        available = int(_read(config, name, "num_quantizers", "n_codebooks", "num_codebooks"))
        usual = min(self.usual_codebooks or available, available)
        K = num_codebooks if num_codebooks is not None else usual
        if not 1 <= K <= available:
            raise UserError(
                f"--num-codebooks {K}: {name} has {available} codebooks; choose 1 to {available}"
            )
        identity = {k: getattr(config, k) for k in _IDENTITY if hasattr(config, k)}
        for k in ("chunk_length_s", "overlap"):
            if getattr(config, k, None) is not None:
                identity[k] = getattr(config, k)
        info = CodecInfo(
            name=name,
            fingerprint=fingerprint(identity, model.state_dict()),
            sampling_rate=int(_read(config, name, "sampling_rate", "sample_rate")),
            hop=self._hop(config, name),
            num_codebooks=K,
            codebook_size=int(_read(config, name, "codebook_size")),
            channels=int(getattr(config, "audio_channels", 1)),
            segment=self._segment(config, name),
        )
        super().__init__(info)
        self.available_codebooks = available
        for module in model.modules():  # weights, not what they are computed from each time
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        self.model = model.float().requires_grad_(False)
        self.eval()

    @classmethod
    def fits(cls, config) -> bool:
        """Whether this is the adapter for models with a configuration."""
        return config.model_type == cls.model_type

    def set_dtype(self, dtype: torch.dtype) -> TransformersCodec:
        self.dtype = dtype
        # rounded to 16 bits, rotary frequencies would place later frames elsewhere
        exact = [(m, n, getattr(m, n)) for m in self.modules() for n in _ROTARY if hasattr(m, n)]
        self.to(dtype)
        for module, name, frequencies in exact:
            setattr(module, name, frequencies)
        return self

    def to_model(self, audio: Tensor) -> Tensor:
        """Audio on the model's device and in its type."""
        return audio.to(self.device, self.dtype)

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        audio, frames = self.pad_to_hop(audio, lengths)
        return self.encode_alike(audio, frames, lambda x: self._encode(self.to_model(x))), frames

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        with self.inference():
            audio = self._decode(codes.transpose(1, 2))  # (B, C, about T * hop)
        # odd strides lose samples at the end, transposed convolutions may leave some over
        missing = codes.shape[1] * self.info.hop - audio.shape[2]
        return nn.functional.pad(audio, (0, missing)).float()

    def code_vectors(self) -> Tensor | None:
        K, V = self.info.num_codebooks, self.info.codebook_size
        vectors = []
        with self.inference():
            for level in range(K):  # all codes of a level, those of the others being 0
                codes = torch.zeros(V, K, 1, dtype=torch.int64, device=self.device)
                codes[:, level, 0] = torch.arange(V)
                latents = self._dequantize(codes)
                if latents is None:
                    return None
                vectors.append(latents[..., 0].float())
        books = torch.stack(vectors)
        return books - books.mean(1, keepdim=True)

    # ------------------------------------------------ what differs between model classes

    @staticmethod
    def _hop(config, name: str) -> int:
        return int(_read(config, name, "hop_length"))

    @staticmethod
    def _segment(config, name: str) -> tuple[int, int] | None:
        """`CodecInfo.segment`"""
        return None

    def _encode(self, audio: Tensor) -> Tensor:
        """(B, C, n * hop) -> (B, >= K, n)"""
        return self.model.encode(audio).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        """(B, <= K, T) -> (B, C, S)"""
        return self.model.decode(audio_codes=codes).audio_values

    def _dequantize(self, codes: Tensor) -> Tensor | None:
        """(B, K, T) -> (B, D, T), the sum of a vector for each code; None: not known to be one."""
        return None

    def probe(self) -> None:
        """Refuse with a `UserError` a model class that does not work the way this one assumes."""
        n, C, hop = 8, self.info.channels, self.info.hop
        noise = torch.randn(1, C, n * hop, generator=torch.Generator().manual_seed(0)) * 0.1
        try:
            codes, _ = self.encode(noise)
            with self.inference():
                shape = tuple(self._decode(codes.transpose(1, 2)).shape)
        except Exception as e:  # whatever a foreign class raises is the finding
            raise self._refusal(f"{type(e).__name__}: {e}") from None
        if len(shape) != 3 or shape[1] != C or abs(shape[2] - n * hop) >= hop:
            raise self._refusal(f"decoded audio is {shape}, expected (1, {C}, {n * hop})")

    def _refusal(self, found: str) -> UserError:
        kind = self.model.config.model_type
        return UserError(
            f"codec {self.info.name}: transformers' {kind!r} models have another interface "
            f"({found}) than classes with (B, K, T) codes; `rvqlm codecs` lists the types that work"
        )


def _read(config, name: str, *keys: str):
    """First of the configuration values `keys` that there is."""
    for key in keys:
        if getattr(config, key, None) is not None:
            return getattr(config, key)
    raise UserError(
        f"codec {name}: its {config.model_type!r} configuration has no {' or '.join(keys)}, "
        "which an audio tokenizer must state; `rvqlm codecs` lists the types that work"
    )


def quicken_padding(model: nn.Module) -> None:
    """Let the layers of EnCodec or Mimi pad in a copy where torch's reflection gathers element by
    element, and not at all where there is nothing to pad: the same bits, and a tenth of the time of
    the whole network on a CPU."""
    for module in model.modules():
        if hasattr(module, "_pad1d"):
            module._pad1d = _quick_padding(module._pad1d)


def _quick_padding(otherwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
