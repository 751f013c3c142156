"""Weight files as the codecs' own projects publish them, loaded without those projects' packages.

``--codec weights.pth`` (descript-audio-codec), ``encodec_24khz-d7cc33bc.th`` (encodec) and
``compression_state_dict.bin`` (audiocraft, the codec of MusicGen) are recognised by the names of
their tensors and turned into the transformers class of the same layers: the codes and audio that
the original package gives with the same file, bit for bit where ``tools/test.sh --codecs`` has
compared them (x86 processors with AVX2).
"""

from __future__ import annotations

import os

import torch

from rvqlm.codecs import dac, encodec
from rvqlm.codecs.base import Backend, Codec
from rvqlm.codecs.cards import find_file, remembered
from rvqlm.codecs.encodec_segments import EncodecSegmentCodec
from rvqlm.codecs.native_checkpoint import NativeCheckpoint, read_native
from rvqlm.codecs.pretrained import from_model
from rvqlm.errors import UserError

SUFFIXES = (".pth", ".th", ".bin", ".ckpt", ".pt")
"""What such files are called; other names are not tried."""

_KINDS = {
    "dac": ("encoder.block.0.", "decoder.model.0.", "quantizer.quantizers."),
    "encodec": ("encoder.model.0.", "decoder.model.0.", "quantizer.vq.layers."),
}
"""Whose layers a file holds, by beginnings of its tensors' names, all of which it must have."""

_CONVERTERS = {"dac": dac.model_from_native, "encodec": encodec.model_from_native}


def load_native(name: str | os.PathLike, num_codebooks: int | None = None) -> Codec:
    """The codec in a native weight file, through the transformers class of the same layers."""
    path = find_file(name)
    return from_model(to_transformers(read_native(path)), remembered(name, path), num_codebooks)


def to_transformers(checkpoint: NativeCheckpoint) -> torch.nn.Module:
    """The transformers model with these weights; `UserError` naming what keeps it from fitting."""
    return _CONVERTERS[kind_of(checkpoint)](checkpoint)


def kind_of(checkpoint: NativeCheckpoint) -> str:
    """``dac`` or ``encodec``; `UserError` for the weights of anything else."""
    path, names = checkpoint.path, list(checkpoint.state)

    def has(*prefixes: str) -> bool:
        return all(any(name.startswith(p) for name in names) for p in prefixes)

    for kind, prefixes in _KINDS.items():
        if has(*prefixes):
            return kind
    if has("encoder.conv1.", "decoder.conv1.") or has("encoder.layers.0.", "decoder.layers.0."):
        raise UserError(
            f"codec {path}: weights in transformers' format; give the folder that holds them "
            "together with config.json"
        )
    raise UserError(
        f"codec {path}: no codec by its tensors (first: {', '.join(names[:3]) or 'none'}); known "
        "are weights.pth of descript-audio-codec, encodec_24khz-*.th and encodec_48khz-*.th of "
        "encodec, compression_state_dict.bin of audiocraft"
    )


BACKEND = Backend(
    "native",
    (dac.DacCodec, encodec.EncodecCodec, EncodecSegmentCodec),
    takes=lambda name: name.endswith(SUFFIXES) and not name.startswith("package:"),
    load=load_native,
    give="a .pth, .th or .bin file as the codec's own project publishes it",
    module="transformers",
    distribution="transformers",
)
