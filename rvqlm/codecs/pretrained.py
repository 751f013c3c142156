"""Codecs in transformers' format: a folder, or a hub name that stands for one.

A hub name is looked for in the folders of ``RVQLM_CODECS``, then in the Hugging Face cache, then
(unless offline, and only where a user gave the name) on the hub. What is found there is wrapped by
the adapter for its type.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rvqlm.codecs.base import Backend, Codec
from rvqlm.codecs.cards import CODECS_ENV, candidates
from rvqlm.codecs.dac import DacCodec
from rvqlm.codecs.encodec import EncodecCodec
from rvqlm.codecs.encodec_segments import EncodecSegmentCodec
from rvqlm.codecs.mimi import MimiCodec
from rvqlm.codecs.transformers_codec import TransformersCodec
from rvqlm.errors import UserError, reason_of
from rvqlm.hub import require_network

ADAPTERS = (DacCodec, EncodecSegmentCodec, EncodecCodec, MimiCodec)
"""Classes for models of one type, the first that fits; `TransformersCodec` is for all others."""

TRANSFORMERS_TYPES = {
    "dac": "works",
    "encodec": "works",
    "mimi": "works",
    "xcodec": "works; files go in whole (it holds a speech model that attends to everything)",
    "higgs_audio_v2_tokenizer": "works where torchaudio is installed; files go in whole",
    "xcodec2": "no: its encoder also wants mel features that torchaudio has to compute",
    "neucodec": "no: it changes the rate, and its encoder wants features computed by torchaudio",
    "pocket_tts_audio_tokenizer": "no: its latents are continuous, there are no codes",
    "vibevoice_acoustic_tokenizer": "no: its latents are continuous, there are no codes",
}
"""Model types that transformers maps for audio tokenization or that encode and decode audio, and
what became of each with small random weights."""

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def transformers_types() -> dict[str, str]:
    """`TRANSFORMERS_TYPES` and what an installed, newer transformers maps beside these."""
    from transformers.models.auto import modeling_auto as auto

    mapped = getattr(auto, "MODEL_FOR_AUDIO_TOKENIZATION_NAMES", {})
    new = [kind for kind in mapped if kind not in TRANSFORMERS_TYPES]
    return TRANSFORMERS_TYPES | dict.fromkeys(new, "untried; taken if it has (B, K, T) codes")


def from_model(model: nn.Module, name: str, num_codebooks: int | None = None) -> TransformersCodec:
    """Wrap a loaded model; raises `UserError` naming what keeps a model from being usable."""
    for adapter in ADAPTERS:
        if adapter.fits(model.config):
            return adapter(model, name, num_codebooks)
    codec = TransformersCodec(model, name, num_codebooks)
    codec.probe()
    return codec


def load_pretrained(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec in a folder in transformers' format, or of a hub name."""
    import transformers

    folder = find_folder(name)
    if folder is not None:
        model = _from_pretrained(transformers, str(folder), name, local_files_only=True)
    else:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(
                f"codec {name}: no such folder, and neither a hub name; give --codec spectral, "
                f"one of {_published()}, a folder with config.json and model.safetensors, or "
                "a weight file (rvqlm codecs lists them all)"
            )
        try:
            model = _from_pretrained(transformers, name, name, local_files_only=True)
        except UserError:  # not in the cache
            model = _from_pretrained(transformers, name, name, local_files_only=False)
    if folder is not None and Path(name).expanduser().is_dir():
        name = str(folder)  # what a later command has to find again
    return from_model(model, name, num_codebooks)


def find_folder(name: str) -> Path | None:
    """The local folder that `name` means, checked to hold a codec; None if there is none."""
    for folder in candidates(name):
        if folder.is_file():
            raise UserError(
                f"codec {name}: {folder} is a file; give the folder it lies in, or a weight file "
                "as the codec's project publishes it (.pth, .th, .bin)"
            )
        if not folder.is_dir():
            continue
        if not (folder / "config.json").is_file():
            raise UserError(
                f"codec {name}: no file {folder / 'config.json'}; a codec folder holds config.json "
                "and model.safetensors as transformers' save_pretrained writes them"
            )
        if not any((folder / w).is_file() for w in _WEIGHT_FILES):
            raise UserError(
                f"codec {name}: no file {folder / 'model.safetensors'} beside its config.json; "
                "copy the weights there, or give another folder with --codec"
            )
        return folder.resolve()
    return None


def _from_pretrained(transformers, source: str, name: str, local_files_only: bool):
    """Model from a folder or hub name; every way in which that fails becomes a `UserError`."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what matters of its loading report is checked below
    logging.disable_progress_bar()
    try:
        if not local_files_only:
            require_network(name)
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=local_files_only)
        model_class = model_class_of(transformers, config, name)
        model, loading = model_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=local_files_only,
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as e:  # transformers raises anything from OSError to KeyError and SSLError
        if source == name and not Path(source).is_dir():
            raise UserError(
                f"codec {name}: config.json and model.safetensors are neither in the Hugging Face "
                f"cache nor to be had from the network ({type(e).__name__}); fetch both from "
                f"https://huggingface.co/{name} into a folder and give it with --codec FOLDER, or "
                f"put it at DIR/{name} with {CODECS_ENV}=DIR; --codec spectral needs no download"
            ) from None
        raise UserError(f"codec {name}: cannot load {source}: {reason_of(e)}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    lacking = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if lacking:  # transformers would fill these with random numbers and continue
        raise UserError(
            f"codec {name}: the weights in {source} are incomplete: {len(lacking)} tensors are "
            f"missing or of another shape, {lacking[0]} first; fetch the checkpoint again"
        )
    return model


def model_class_of(transformers, config, name: str) -> type:
    """The model class for `config`, from transformers' audio-tokenizer mapping or its general one.

    EnCodec and Mimi are only in the general mapping, which has every model there is: from there,
    a class must at least be able to encode and decode.
    """
    from transformers.models.auto import modeling_auto as auto

    for mapping in ("MODEL_FOR_AUDIO_TOKENIZATION_MAPPING", "MODEL_MAPPING"):
        if type(config) in getattr(auto, mapping, {}):
            found = getattr(auto, mapping)[type(config)]
            if hasattr(found, "encode") and hasattr(found, "decode"):
                return found
    raise UserError(
        f"codec {name}: a transformers model of type {config.model_type!r} is no audio codec; "
        f"use for example {_published()}"
    )


BACKEND = Backend(
    "transformers",
    ADAPTERS,
    takes=None,
    load=load_pretrained,
    give="a hub name, or a folder with config.json and weights",
    module="transformers",
    distribution="transformers",
)


def _published() -> str:
    return ", ".join(card.name for card in BACKEND.cards)
