"""Finding a codec by name: `load_codec` and the table of backends behind it.

``load_codec("spectral")`` is in the package and needs nothing else. A name of any other kind goes
to the first backend that takes it. A new backend is one file, which ends with its `Backend`, and
one row of `BACKENDS`; what ``rvqlm codecs`` lists follows from that.
"""

from __future__ import annotations

import os

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs import native, nemo_codec, packages, pretrained, spectral
from rvqlm.codecs.base import Backend, Codec
from rvqlm.codecs.cards import Card
from rvqlm.errors import UserError
from rvqlm.hub import read_from_a_file
from rvqlm.runtime import pick_device

BACKENDS = (
    spectral.BACKEND,
    pretrained.BACKEND,
    native.BACKEND,
    packages.DAC,
    packages.ENCODEC,
    nemo_codec.BACKEND,
)

CARDS: tuple[Card, ...] = tuple(dict.fromkeys(card for b in BACKENDS for card in b.cards))
"""Published codecs that some backend loads."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def backend_of(name: str) -> Backend:
    """The backend whose business a name is, by its looks."""
    (otherwise,) = [b for b in BACKENDS if b.takes is None]
    return next((b for b in BACKENDS if b.takes is not None and b.takes(name)), otherwise)


def card_of(name: str) -> Card | None:
    """The card of a published codec by its name, with or without the owner."""
    return next((c for c in CARDS if name in (c.name, c.name.split("/")[-1])), None)


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
    codec = backend_of(name).load(name, num_codebooks)
    return codec.to(device).eval().set_dtype(DTYPES[dtype])


def load_codec_like(
    info: CodecInfo,
    name_or_path: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> Codec:
    """Load the codec that some tokens were made with; `UserError` if the weights are others.

    Args:
        info: from a token folder or checkpoint.
        name_or_path: where to load from; None uses the name that `info` remembers, from this
            machine only: nothing is fetched that nobody asked for.
        device: as in `load_codec`.
        dtype: as in `load_codec`; any serves for decoding.
    """
    source = info.name if name_or_path is None else os.fspath(name_or_path)
    with read_from_a_file(name_or_path is None):
        codec = load_codec(source, device, info.num_codebooks, dtype)
    info.require_same(codec.info, "the tokens", f"codec {source}")
    return codec
