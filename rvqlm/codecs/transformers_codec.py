"""Codecs through the audio-tokenizer classes of `transformers`: DAC, EnCodec, Mimi and others.

A thin adapter per class: it reads rates and shapes from the configuration, selects the number of
codebooks, completes the last frame and hides how each class lays out its codes. Encoding is always
float32, and items of a batch that differ in length are encoded apart, so that an item's codes do
not depend on what it is batched with beyond float rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

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

# Levels in common use where the weights hold many more; --num-codebooks asks for others.
_USUAL_CODEBOOKS = {"encodec": 8, "mimi": 8}


class TransformersCodec(Codec):
    """Any audio tokenizer of transformers with (B, K, T) codes.

    Built by `from_model`, which picks the adapter for the model's type. This base class is the
    adapter for classes without one of their own: it is tried on a short noise first, and a model
    whose interface is different is refused with what was found.
    """

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        config = model.config
        available = self._available(config, name)
        usual = _USUAL_CODEBOOKS.get(config.model_type, available)
        K = num_codebooks if num_codebooks is not None else min(usual, available)
        if not 1 <= K <= available:
            raise UserError(
                f"--num-codebooks {K}: {name} has {available} codebooks; choose 1 to {available}"
            )
        identity = {k: getattr(config, k) for k in _IDENTITY if hasattr(config, k)}
        info = CodecInfo(
            name=name,
            fingerprint=fingerprint(identity, model.state_dict()),
            sampling_rate=int(_read(config, name, "sampling_rate", "sample_rate")),
            hop=self._hop(config, name),
            num_codebooks=K,
            codebook_size=int(_read(config, name, "codebook_size")),
            channels=int(getattr(config, "audio_channels", 1)),
        )
        super().__init__(info)
        self.available_codebooks = available
        self.model = _fold_weight_norm(model).float().requires_grad_(False)
        self.eval()

    @staticmethod
    def from_model(
        model: nn.Module, name: str, num_codebooks: int | None = None
    ) -> TransformersCodec:
        """Wrap a loaded model; raises `UserError` naming what keeps a model from being usable."""
        adapter = _ADAPTERS.get(model.config.model_type, TransformersCodec)
        codec = adapter(model, name, num_codebooks)
        if adapter is TransformersCodec:
            codec._probe()
        return codec

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        audio, frames = self.pad_to_hop(audio, lengths)
        T, hop, K = audio.shape[2] // self.info.hop, self.info.hop, self.info.num_codebooks
        codes = torch.zeros(len(audio), T, K, dtype=torch.int64, device=audio.device)
        with _exact(audio.device):
            # zeros behind an item's end are not what the convolutions pad with: equal lengths only
            for n in frames.unique().tolist():
                rows = (frames == n).nonzero()[:, 0].to(audio.device)
                part = self._encode(audio[rows, :, : n * hop].float())  # (b, K', n)
                if part.shape[2] != n:
                    raise RuntimeError(
                        f"{self.info.name}: {part.shape[2]} frames from {n * hop} samples, not {n}"
                    )
                codes[rows, :n] = part[:, :K].transpose(1, 2)
        return codes, frames

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        with _exact(codes.device):
            audio = self._decode(codes.transpose(1, 2))  # (B, C, about T * hop)
        # odd strides lose samples at the end, transposed convolutions may leave some over
        missing = codes.shape[1] * self.info.hop - audio.shape[2]
        return nn.functional.pad(audio, (0, missing)).float()

    # ------------------------------------------------ what differs between model classes

    @staticmethod
    def _available(config, name: str) -> int:
        """Codebooks in the weights."""
        return int(_read(config, name, "num_quantizers", "n_codebooks", "num_codebooks"))

    @staticmethod
    def _hop(config, name: str) -> int:
        return int(_read(config, name, "hop_length"))

    def _encode(self, audio: Tensor) -> Tensor:
        """(B, C, n * hop) float32 -> (B, >= K, n)"""
        return self.model.encode(audio).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        """(B, <= K, T) -> (B, C, S)"""
        return self.model.decode(audio_codes=codes).audio_values

    def _probe(self) -> None:
        """Refuse a model class that does not work the way this adapter assumes."""
        n, C, hop = 8, self.info.channels, self.info.hop
        noise = torch.randn(1, C, n * hop, generator=torch.Generator().manual_seed(0)) * 0.1
        try:
            codes, _ = self.encode(noise)
            with _exact(codes.device):
                shape = tuple(self._decode(codes.transpose(1, 2)).shape)
        except Exception as e:  # whatever a foreign class raises is the finding
            raise self._refusal(f"{type(e).__name__}: {e}") from None
        if len(shape) != 3 or shape[1] != C or abs(shape[2] - n * hop) >= hop:
            raise self._refusal(f"decoded audio is {shape}, expected (1, {C}, {n * hop})")

    def _refusal(self, found: str) -> UserError:
        kind = self.model.config.model_type
        return UserError(
            f"codec {self.info.name}: transformers' {kind!r} models have another interface "
            f"({found}); supported are {', '.join(_ADAPTERS)} and classes with (B, K, T) codes"
        )


class DacCodec(TransformersCodec):
    """DAC: convolutions only, hence a finite context and exact chunks."""

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        super().__init__(model, name, num_codebooks)
        hop = self.info.hop
        self.context_frames = math.ceil(max(_encoder_reach(model.encoder, hop)) / hop)
        self.decode_context_frames = max(_decoder_reach(model.decoder, hop))

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.info.num_codebooks).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes).audio_values[:, None]


class EncodecCodec(TransformersCodec):
    """EnCodec at 24 and 32 kHz. The LSTM sees everything: files are encoded whole."""

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        config = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"codec {name}: EnCodec checkpoints that normalise loudness per chunk (48 kHz "
                "stereo) are not supported yet: a scale per chunk would have to be stored beside "
                "the codes; use facebook/encodec_24khz, facebook/encodec_32khz or a DAC"
            )
        super().__init__(model, name, num_codebooks)
        # the class only takes bandwidths from its list: the smallest with enough levels
        levels = model.quantizer.get_num_quantizers_for_bandwidth
        self.bandwidth = min(
            b for b in config.target_bandwidths if levels(b) >= self.info.num_codebooks
        )

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, bandwidth=self.bandwidth).audio_codes[0]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None], [None]).audio_values


class MimiCodec(TransformersCodec):
    """Mimi: causal, with transformers over the latents; files are encoded whole."""

    @staticmethod
    def _hop(config, name: str) -> int:
        return math.prod(config.upsampling_ratios) * int(config.latent_stride)

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, num_quantizers=self.info.num_codebooks).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes).audio_values


_ADAPTERS = {"dac": DacCodec, "encodec": EncodecCodec, "mimi": MimiCodec}


def _read(config, name: str, *keys: str):
    """First of the configuration values `keys` that there is."""
    for key in keys:
        if getattr(config, key, None) is not None:
            return getattr(config, key)
    raise UserError(
        f"codec {name}: its {config.model_type!r} configuration has no {' or '.join(keys)}; "
        f"supported are {', '.join(_ADAPTERS)} and audio tokenizers described in the same terms"
    )


def _fold_weight_norm(model: nn.Module) -> nn.Module:
    """Replace weight-norm parametrizations by the weights that they compute each time."""
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return model


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast and no TF32: bf16 changes 7-20 % of the codes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        yield


def _encoder_reach(encoder: nn.Module, hop: int) -> tuple[int, int]:
    """Samples before and after a frame's own `hop` samples that its latent depends on."""
    convs = [m for m in encoder.modules() if isinstance(m, nn.Conv1d)]
    lo = hi = 0  # the frame at index 0, traced back to the input
    for conv in reversed(convs):
        (k,), (s,), (p,), (d,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        lo, hi = lo * s - p, hi * s - p + (k - 1) * d
    return -lo, hi - (hop - 1)


def _decoder_reach(decoder: nn.Module, hop: int) -> tuple[int, int]:
    """Frames before and after a frame that its `hop` samples of audio depend on."""
    convs = [m for m in decoder.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    lo, hi = 0, hop - 1
    for conv in reversed(convs):
        (k,), (s,), (p,), (d,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        if isinstance(conv, nn.ConvTranspose1d):  # output n hears inputs i with 0 <= n+p-i*s < k
            lo, hi = -((k - 1 - lo - p) // s), (hi + p) // s
        else:
            lo, hi = lo - p, hi - p + (k - 1) * d
    return -lo, hi
