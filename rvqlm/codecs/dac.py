"""DAC (Kumar et al. 2023) in transformers: convolutions only, hence a finite context.

`model_from_native` makes transformers' model of a weight file of descript-audio-codec.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from rvqlm.codecs.cards import HUB, Card
from rvqlm.codecs.native_checkpoint import NativeCheckpoint, build, fold_weight_norm
from rvqlm.codecs.receptive_field import layers_of, reach
from rvqlm.codecs.transformers_codec import TransformersCodec
from rvqlm.errors import UserError

_UNIT = {"0": "snake1", "1": "conv1", "2": "snake2", "3": "conv2"}


def _card(khz: int, K: int, hop: int, rate: int, file: str, note: str = "") -> Card:
    name = f"descript/dac_{khz}khz"
    return Card(
        name, K, K, 1024, rate, hop, "MIT", HUB + name, native=file, note=note,
        native_source="https://github.com/descriptinc/descript-audio-codec/releases",
        look_ahead=(10, 11),
    )  # fmt: skip


class DacCodec(TransformersCodec):
    """DAC at any rate; chunks of long files are exact."""

    model_type = "dac"
    decode_reflects = False
    cards = (
        _card(
            44, 9, 512, 44100, "weights_44khz_8kbps_0.0.1.pth",
            "weights_44khz_16kbps_1.0.0.pth, with more levels, exists as a native file only",
        ),
        _card(24, 32, 320, 24000, "weights_24khz_8kbps_0.0.4.pth"),
        _card(16, 12, 320, 16000, "weights_16khz_8kbps_0.0.5.pth"),
    )  # fmt: skip

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        super().__init__(model, name, num_codebooks)
        for module in list(model.modules()):
            for place, child in module.named_children():
                if type(child).__name__ == "Snake1d":
                    setattr(module, place, Snake(child.alpha))
        hop = self.info.hop
        self.context_frames = max(reach(layers_of(model.encoder), hop, 1))
        self.decode_context_frames = max(reach(layers_of(model.decoder), 1, hop))

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.info.num_codebooks).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes).audio_values[:, None]

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes)[0]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha (Ziyin et al. 2020), with inference in mind: one new tensor where
    the class of transformers makes five, and the same bits. Memory traffic is what it costs: 4 to
    8 % of the time of an encoder on a CPU."""

    def __init__(self, alpha: nn.Parameter):
        super().__init__()
        self.alpha = alpha  # (1, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = (self.alpha * x).sin_().pow_(2)
            return y.mul_((self.alpha + 1e-9).reciprocal()).add_(x)


# --------------------------------------------------------- weights of descript-audio-codec


def model_from_native(checkpoint: NativeCheckpoint):
    """`DacModel` with the weights of descript-audio-codec's ``weights.pth``.

    Such a file is ``{"state_dict": ..., "metadata": {"kwargs": ...}}``, the arguments of its class
    and its weights (`audiotools.ml.BaseModel.save` with ``package=False``). The two classes have
    the same layers under other names; weight norm is folded, as transformers' DAC has none.

    Shapes come from the weights themselves, the sampling rate from the file's arguments or, in a
    bare state dict, from the file's name.
    """
    import transformers

    kwargs = package_kwargs(checkpoint)
    config = transformers.DacConfig(
        encoder_hidden_size=kwargs["encoder_dim"],
        downsampling_ratios=kwargs["encoder_rates"],
        decoder_hidden_size=kwargs["decoder_dim"],
        n_codebooks=kwargs["n_codebooks"],
        codebook_size=kwargs["codebook_size"],
        codebook_dim=kwargs["codebook_dim"],
        sampling_rate=kwargs["sample_rate"],
    )
    # derived by the class, but free in the package
    config.upsampling_ratios = kwargs["decoder_rates"]
    config.hidden_size = kwargs["latent_dim"]
    blocks = len(config.downsampling_ratios)
    state = {
        _transformers_name(name, blocks): tensor
        for name, tensor in fold_weight_norm(checkpoint.state).items()
    }
    return build(transformers.DacModel, config, state, checkpoint.path)


def package_kwargs(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    """Arguments of the package's `DAC` class for this file, read from the weights' shapes."""
    state, path = checkpoint.state, checkpoint.path

    def shape(name: str) -> tuple[int, ...]:
        for suffix in ("weight_v", "weight"):
            if f"{name}.{suffix}" in state:
                return tuple(state[f"{name}.{suffix}"].shape)
        raise UserError(f"codec {path}: no tensor {name}.weight_v; not a complete DAC checkpoint")

    # a block ends in a convolution of stride s with a kernel of 2 s samples
    encoder_rates = [
        shape(f"encoder.block.{i}.block.4")[2] // 2 for i in _blocks(state, "encoder.block", 4)
    ]
    decoder_rates = [
        shape(f"decoder.model.{i}.block.1")[2] // 2 for i in _blocks(state, "decoder.model", 1)
    ]
    levels = {int(m[1]) for n in state if (m := re.match(r"quantizer\.quantizers\.(\d+)\.", n))}
    books = {shape(f"quantizer.quantizers.{k}.codebook") for k in levels}
    if len(books) != 1:
        raise UserError(f"codec {path}: codebooks of unequal shapes {sorted(books)}")
    if math.prod(encoder_rates) != math.prod(decoder_rates):
        raise UserError(
            f"codec {path}: the encoder's strides {encoder_rates} and the decoder's "
            f"{decoder_rates} make frames of different lengths"
        )
    ((codebook_size, codebook_dim),) = books
    encoder_dim = shape("encoder.block.0")[0]
    decoder_dim, latent_dim, _ = shape("decoder.model.0")
    return {
        "encoder_dim": encoder_dim,
        "encoder_rates": encoder_rates,
        "latent_dim": latent_dim,
        "decoder_dim": decoder_dim,
        "decoder_rates": decoder_rates,
        "n_codebooks": len(levels),
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "sample_rate": _sampling_rate(checkpoint),
    }


def _sampling_rate(checkpoint: NativeCheckpoint) -> int:
    settings = checkpoint.settings if isinstance(checkpoint.settings, dict) else {}
    if settings.get("sample_rate"):
        return int(settings["sample_rate"])
    named = re.search(r"(?<!\d)(16|24|44)_?k(?:hz)?", checkpoint.path.name.lower())
    if named:
        return {"16": 16000, "24": 24000, "44": 44100}[named[1]]
    raise UserError(
        f"codec {checkpoint.path}: says nothing about its sampling rate; a file with only weights "
        "must have 16khz, 24khz or 44khz in its name"
    )


def _blocks(state: dict[str, Tensor], prefix: str, inner: int) -> list[int]:
    """Indices of the (de)sampling blocks, in order."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.block\.{inner}\.weight", n) for n in state)
    return sorted({int(m[1]) for m in found if m})


def _transformers_name(name: str, blocks: int) -> str:
    """The name in `DacModel` of a tensor of the package's `DAC`; unknown names stay as they are.

    >>> _transformers_name("encoder.block.2.block.1.block.3.bias", 4)
    'encoder.block.1.res_unit2.conv2.bias'
    >>> _transformers_name("decoder.model.5.alpha", 4)
    'decoder.snake1.alpha'
    """
    match = re.match(r"(encoder\.block|decoder\.model)\.(\d+)\.(.+)", name)
    if not match:
        return name  # the quantizer's names are the same
    side, i, rest = match[1].split(".")[0], int(match[2]), match[3]
    outer = {0: "conv1", blocks + 1: "snake1", blocks + 2: "conv2"}
    if i in outer:
        return f"{side}.{outer[i]}.{rest}"
    # encoder blocks: three residual units, snake, convolution; decoder blocks the other way round
    first_unit, own = (0, {3: "snake1", 4: "conv1"})
    if side == "decoder":
        first_unit, own = (2, {0: "snake1", 1: "conv_t1"})
    inner = re.match(r"block\.(\d+)\.(?:block\.(\d)\.)?(\w+)$", rest)
    if not inner:
        return name
    j, part, leaf = int(inner[1]), inner[2], inner[3]
    if part is None and j in own:
        return f"{side}.block.{i - 1}.{own[j]}.{leaf}"
    if part in _UNIT and 0 <= j - first_unit < 3:
        return f"{side}.block.{i - 1}.res_unit{j - first_unit + 1}.{_UNIT[part]}.{leaf}"
    return name
