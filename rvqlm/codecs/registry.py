"""Finding a codec by name: `load_codec` and the table of backends behind it.

``load_codec("spectral")`` is in the package and needs nothing else. A name of any other kind goes
to the first backend of `_BACKENDS` that takes it; a new backend is one file and one row there.
``rvqlm codecs`` lists what is known, and what of it is installed.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.native_checkpoint import SUFFIXES
from rvqlm.codecs.pretrained import CODECS_ENV, HUB_NAMES
from rvqlm.errors import UserError
from rvqlm.runtime import pick_device

__all__ = ["CODECS_ENV", "DTYPES", "HUB_NAMES", "load_codec", "load_codec_like"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _load_spectral(name: str, num_codebooks: int | None) -> Codec:
    from rvqlm.codecs.spectral import SpectralCodec

    if name == "spectral":
        return SpectralCodec.load(num_codebooks=num_codebooks)
    if not Path(name).is_file():
        raise UserError(
            f"codec {name}: no such file; give --codec spectral for the embedded weights, or the "
            "path of weights written by tools/train_spectral_codec.py"
        )
    return SpectralCodec.load(name, num_codebooks=num_codebooks)


def _is_nemo(name: str) -> bool:
    hub_name = re.fullmatch(r"nvidia/[\w.-]*codec[\w.-]*", name) and not Path(name).exists()
    return name.startswith("nemo:") or name.endswith(".nemo") or bool(hub_name)


def _in(module: str, function: str) -> Callable[[str, int | None], Codec]:
    """The loader of a backend whose module is imported when it is needed."""

    def load(name: str, num_codebooks: int | None) -> Codec:
        found = importlib.import_module(f"rvqlm.codecs.{module}")
        return getattr(found, function)(name, num_codebooks)

    return load


class _Backend(NamedTuple):
    takes: Callable[[str], bool]
    """whether a name is this backend's business, by its looks"""
    load: Callable[[str, int | None], Codec]
    """from the name and the number of codebooks (None: the usual one)"""


_BACKENDS = (
    _Backend(lambda name: name == "spectral" or name.endswith(".safetensors"), _load_spectral),
    _Backend(lambda name: name.startswith("package:dac:"), _in("package_dac", "load_package")),
    _Backend(
        lambda name: name.startswith("package:encodec:"), _in("package_encodec", "load_package")
    ),
    _Backend(_is_nemo, _in("nemo_codec", "load_nemo")),
    _Backend(lambda name: name.endswith(SUFFIXES), _in("native_checkpoint", "load_native")),
    _Backend(lambda name: True, _in("pretrained", "load_pretrained")),
)


def load_codec(
    name_or_path: str | os.PathLike,
    device: str | torch.device = "cpu",
    num_codebooks: int | None = None,
    dtype: str = "float32",
) -> Codec:
    """Load a codec, ready to encode and decode on `device`.

    Args:
        name_or_path: one of

            - ``spectral``, or a ``.safetensors`` file of spectral weights;
            - a hub name such as ``descript/dac_44khz``, or a folder with ``config.json`` and
              weights in transformers' format;
            - a weight file as its project publishes it: ``weights.pth`` of descript-audio-codec,
              ``encodec_24khz-d7cc33bc.th`` of encodec, ``compression_state_dict.bin`` of
              audiocraft. None of these packages is needed;
            - ``package:dac:FILE`` or ``package:encodec:FILE``: the same files through those
              packages themselves, with equal codes;
            - ``nvidia/audio-codec-44khz`` or a ``.nemo`` file, through NeMo.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        num_codebooks: levels to use, coarsest first. None: all, but 8 of an EnCodec at 24 kHz or a
            Mimi, which hold more.
        dtype: what the network computes in. ``bfloat16`` and ``float16`` change codes.

    Raises `UserError` naming the file looked for, where it can be had and how to point to it.
    """
    name = os.fspath(name_or_path)
    device = pick_device(str(device))
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
    backend = next(b for b in _BACKENDS if b.takes(name))
    return backend.load(name, num_codebooks).to(device).eval().set_dtype(DTYPES[dtype])


def load_codec_like(
    info: CodecInfo,
    name_or_path: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> Codec:
    """Load the codec that some tokens were made with; `UserError` if the weights are others.

    Args:
        info: from a token folder or checkpoint.
        name_or_path: where to load from; None uses the name that `info` remembers.
        device: as in `load_codec`.
        dtype: as in `load_codec`; any serves for decoding.
    """
    source = info.name if name_or_path is None else os.fspath(name_or_path)
    codec = load_codec(source, device, info.num_codebooks, dtype)
    info.require_same(codec.info, "the tokens", f"codec {source}")
    return codec
