"""EnCodec (Defossez et al. 2022) in transformers: SEANet, which is convolutions around an LSTM.

The LSTM runs one way only, so a long file needs no overlap there: its state is carried from piece
to piece, and the convolutions before and behind it see windows with their finite context.
`model_from_native` makes transformers' model of a weight file of encodec or audiocraft.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from rvqlm.codecs.cards import HUB, Card
from rvqlm.codecs.native_checkpoint import NativeCheckpoint, build
from rvqlm.codecs.receptive_field import layers_of, reach
from rvqlm.codecs.streaming import (
    LIVE,
    Decoder,
    Encoded,
    Pointwise,
    Recurrent,
    Windows,
    encode_staged,
)
from rvqlm.codecs.transformers_codec import TransformersCodec, quicken_padding
from rvqlm.errors import UserError
from rvqlm.files import parse_yaml

# What shapes don't tell, by (channels, samples per frame): the models that `encodec` publishes
# (encodec/model.py) and MusicGen's, for a state dict that has lost its settings.
_PUBLISHED: dict[tuple[int, int], dict[str, Any]] = {
    (1, 320): {"sampling_rate": 24000, "use_causal_conv": True},
    (2, 320): {
        "sampling_rate": 48000, "use_causal_conv": False, "normalize": True,
        "chunk_length_s": 1.0, "overlap": 0.01,
    },
    (1, 640): {"sampling_rate": 32000, "use_causal_conv": False},
}  # fmt: skip


def _card(khz: int, K: int, available: int, file: str, **more: Any) -> Card:
    name = f"facebook/encodec_{khz}khz"
    more = {
        "codebook_size": 1024, "hop": 320, "licence": "see its card",
        "licence_note": "the code is MIT; the project does not say whether its weights are too",
        "native_source": "https://dl.fbaipublicfiles.com/encodec/v0", **more,
    }  # fmt: skip
    return Card(
        name, K, available, sampling_rate=khz * 1000, source=HUB + name, native=file, **more
    )


class EncodecCodec(TransformersCodec):
    """EnCodec at 24 and 32 kHz; long files carry the LSTM's state."""

    model_type = "encodec"
    usual_codebooks = 8
    cards = (
        _card(
            24, 8, 32, "encodec_24khz-d7cc33bc.th", note="causal; 2 to 32 levels, 0.75 kbps each",
            look_ahead=(0, 7),
        ),
        _card(
            32, 4, 4, "compression_state_dict.bin", codebook_size=2048, hop=640, note="MusicGen's",
            licence="CC-BY-NC-4.0", licence_note="as all weights of MusicGen",
            native_source=HUB + "facebook/musicgen-small", look_ahead=(4, 5),
        ),
        _card(
            48, 16, 16, "encodec_48khz-7e698e3e.th", channels=2, segment=(150, 47520),
            note="stereo; segments of one second, each with a scale stored beside the codes",
            look_ahead=(149, 150),
        ),
    )  # fmt: skip

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        super().__init__(model, name, num_codebooks)
        quicken_padding(model)
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

    def encode_blocks(self, blocks: Iterable[Tensor], step: int) -> Iterator[Encoded]:
        head, lstm, tail = _parts(self.model.encoder.layers)
        hop = self.info.hop
        return encode_staged(
            self,
            blocks,
            Pointwise(self.to_model),
            _windows(head, step, per_in=hop),
            Recurrent(lstm),
            _windows(tail, step),
            Pointwise(self._quantize),
        )

    def piecewise(self, step: int = LIVE, scales: Tensor | None = None) -> Decoder:
        head, lstm, tail = _parts(self.model.decoder.layers)
        hop = self.info.hop
        return Decoder(
            self,
            Pointwise(self._dequantize),
            _windows(head, step),
            Recurrent(lstm),
            _windows(tail, step, per_out=hop),
        )


def _parts(layers: nn.ModuleList) -> tuple[nn.Sequential, nn.LSTM, nn.Sequential]:
    """What comes before the LSTM, the LSTM, and what comes behind it."""
    (at,) = [i for i, layer in enumerate(layers) if hasattr(layer, "lstm")]
    return nn.Sequential(*layers[:at]), layers[at].lstm, nn.Sequential(*layers[at + 1 :])


def _windows(network: nn.Sequential, step: int, per_in: int = 1, per_out: int = 1) -> Windows:
    before, after = reach(layers_of(network), per_in, per_out)
    return Windows(network, before, after, step, per_in, per_out)


# ---------------------------------------------------------- weights of encodec and audiocraft


def model_from_native(checkpoint: NativeCheckpoint):
    """`EncodecModel` with the weights of a native file.

    Two projects publish them. `encodec`: a bare state dict (``encodec_24khz-d7cc33bc.th``,
    ``encodec_48khz-7e698e3e.th``) whose settings are in that package's code and restated here.
    `audiocraft` (``compression_state_dict.bin`` beside MusicGen, the 32 kHz codec): ``best_state``
    and, as YAML under ``xp.cfg``, all settings. Layers and names are the same in both; the weights
    keep their weight norm, as transformers' class has it too.
    """
    import transformers

    shapes = _from_shapes(checkpoint)
    levels, geometry = shapes.pop("levels"), (shapes["audio_channels"], shapes.pop("hop"))
    if isinstance(checkpoint.settings, str):
        settings = _from_yaml(checkpoint)
    elif geometry in _PUBLISHED:
        settings = _PUBLISHED[geometry]
    else:
        raise UserError(
            f"codec {checkpoint.path}: no settings in the file, and {geometry[0]} channels "
            f"with {geometry[1]} samples per frame is none of the published EnCodecs "
            "(24, 32, 48 kHz); give a folder in transformers' format"
        )
    config = transformers.EncodecConfig(**shapes, **settings)
    # kbps of every number of levels, and a little more: the class rounds down
    per_level = config.frame_rate * config.codebook_nbits / 1000
    config.target_bandwidths = [(k + 0.01) * per_level for k in range(1, levels + 1)]
    state = {_transformers_name(name): tensor for name, tensor in checkpoint.state.items()}
    return build(transformers.EncodecModel, config, state, checkpoint.path)


def _from_shapes(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    """Configuration values that the weights' shapes and names tell."""
    state, path = checkpoint.state, checkpoint.path

    def shape(layer: str) -> tuple[int, ...]:
        for leaf in ("conv.conv.weight_v", "conv.conv.weight"):
            if f"{layer}.{leaf}" in state:
                return tuple(state[f"{layer}.{leaf}"].shape)
        raise UserError(
            f"codec {path}: no tensor {layer}.conv.conv.weight_v; not a complete EnCodec checkpoint"
        )

    inner = [m for n in state if (m := re.match(r"encoder\.model\.(\d+)\.(conv|block|lstm)\.", n))]
    convs = sorted({int(m[1]) for m in inner if m[2] == "conv"})
    blocks = sorted({int(m[1]) for m in inner if m[2] == "block"})
    lstms = {n for n in state if re.match(r"encoder\.model\.\d+\.lstm\.weight_ih_l\d+$", n)}
    levels = {int(m[1]) for n in state if (m := re.match(r"quantizer\.vq\.layers\.(\d+)\.", n))}
    if len(convs) < 3 or not blocks or not lstms:
        raise UserError(
            f"codec {path}: an EnCodec without "
            f"{'an LSTM' if blocks and not lstms else 'residual blocks'}, which transformers' "
            "class does not have"
        )
    first, last = shape(f"encoder.model.{convs[0]}"), shape(f"encoder.model.{convs[-1]}")
    # between the first and the last one, each halves the rate of something: kernel = 2 strides
    strides = [shape(f"encoder.model.{i}")[2] // 2 for i in convs[1:-1]]
    block = f"encoder.model.{blocks[0]}"
    wide = shape(f"{block}.block.1")
    book = state.get("quantizer.vq.layers.0._codebook.embed")
    if book is None or book.ndim != 2:
        raise UserError(f"codec {path}: no codebook quantizer.vq.layers.0._codebook.embed")
    return {
        "hop": math.prod(strides),
        "levels": len(levels),
        "audio_channels": first[1],
        "num_filters": first[0],
        "kernel_size": first[2],
        "hidden_size": last[0],
        "last_kernel_size": last[2],
        "upsampling_ratios": strides[::-1],
        "num_residual_layers": len(blocks) // len(strides),
        "residual_kernel_size": wide[2],
        "compress": wide[1] // wide[0],
        "use_conv_shortcut": any(n.startswith(f"{block}.shortcut.conv") for n in state),
        "num_lstm_layers": len(lstms),
        "norm_type": "weight_norm"
        if any(n.endswith("weight_g") for n in state)
        else "time_group_norm",
        "codebook_size": book.shape[0],
        "codebook_dim": book.shape[1],
    }


def _from_yaml(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    """Configuration values of an audiocraft checkpoint that shapes don't tell."""
    path = checkpoint.path
    root = parse_yaml(checkpoint.settings, f"codec {path}: its settings (xp.cfg)", dict)

    def read(name: str, default: Any = None) -> Any:
        """Value of ``a.b``; ``${c.d}`` stands for another value (OmegaConf)."""
        value: Any = root
        for _ in range(10):
            for key in name.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            if reference is None:
                return default if value is None else value
            name, value = reference[1], root
        raise UserError(f"codec {path}: its settings (xp.cfg) refer to each other in a circle")

    must_be = {
        "compression_model": "encodec",
        "encodec.autoencoder": "seanet",
        "encodec.quantizer": "rvq",
        # would have to be stored beside the codes, and no published codec has it without segments
        "encodec.renormalize": False,
        "seanet.activation": "ELU",
        "seanet.activation_params.alpha": 1.0,
        "seanet.disable_norm_outer_blocks": 0,
        "seanet.decoder.final_activation": None,
        "seanet.encoder": {},
    }
    for name, wanted in must_be.items():
        if (found := read(name, wanted)) != wanted:
            raise UserError(
                f"codec {path}: trained with {name} = {found!r}; transformers' EnCodec has only "
                f"{wanted!r}"
            )
    extra = set(read("seanet.decoder", {})) - {
        "trim_right_ratio", "final_activation", "final_activation_params",
    }  # fmt: skip
    if extra:
        raise UserError(
            f"codec {path}: its decoder differs from its encoder in {', '.join(sorted(extra))}, "
            "which transformers' EnCodec can't express"
        )
    rate = read("encodec.sample_rate", read("sample_rate"))
    if not isinstance(rate, int):
        raise UserError(f"codec {path}: its settings (xp.cfg) have no sample_rate")
    return {
        "sampling_rate": rate,
        "use_causal_conv": bool(read("seanet.causal", read("encodec.causal", False))),
        "pad_mode": read("seanet.pad_mode", "reflect"),
        "dilation_growth_rate": read("seanet.dilation_base", 2),
        "trim_right_ratio": float(read("seanet.decoder.trim_right_ratio", 1.0)),
    }


def _transformers_name(name: str) -> str:
    """The name in `EncodecModel` of a native tensor; unknown names stay as they are.

    >>> _transformers_name("decoder.model.3.convtr.convtr.weight_g")
    'decoder.layers.3.conv.parametrizations.weight.original0'
    >>> _transformers_name("encoder.model.1.block.1.conv.norm.bias")
    'encoder.layers.1.block.1.norm.bias'
    """
    name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
    name = re.sub(
        r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook.", name
    )
    name = re.sub(r"\.(?:conv\.conv|convtr\.convtr)\.", ".conv.", name)
    name = re.sub(r"\.(?:conv|convtr)\.norm\.", ".norm.", name)
    name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
    return re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)
