"""Codecs in transformers' format: a folder, or a hub name that stands for one.

A hub name is looked for in the folders of ``RVQLM_CODECS``, then in the Hugging Face cache, then
(unless offline) on the hub. What is found there is wrapped by `transformers_codec`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rvqlm.codecs.base import Codec
from rvqlm.errors import UserError
from rvqlm.hub import require_network

CODECS_ENV = "RVQLM_CODECS"
"""Environment variable: folders (separated like PATH) that hold codecs by hub name, with or without
the owner: ``$RVQLM_CODECS/descript/dac_44khz/config.json`` or ``$RVQLM_CODECS/dac_44khz/...``; and
native weight files by file name: ``$RVQLM_CODECS/weights_44khz_8kbps_0.0.1.pth``."""

HUB_NAMES = (
    "descript/dac_44khz",
    "descript/dac_24khz",
    "descript/dac_16khz",
    "facebook/encodec_24khz",
    "facebook/encodec_32khz",
    "facebook/encodec_48khz",
    "kyutai/mimi",
)
"""Published codecs known to fit; any other of the same model types works as well."""

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def candidates(name: str) -> list[Path]:
    """Where `name` may lie on this machine: as given, and in the folders of ``RVQLM_CODECS``."""
    found = [Path(name).expanduser()]
    for root in filter(None, os.environ.get(CODECS_ENV, "").split(os.pathsep)):
        found += [Path(root).expanduser() / name, Path(root).expanduser() / Path(name).name]
    return found


def load_pretrained(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec in a folder in transformers' format, or of a hub name.

    Args:
        name: folder with ``config.json`` and weights, or ``owner/name``.
        num_codebooks: as in `load_codec`.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"codec {name} needs the package transformers: pip install transformers "
            "(or use --codec spectral, which needs nothing)"
        ) from None
    from rvqlm.codecs.transformers_codec import TransformersCodec

    folder = find_folder(name)
    if folder is not None:
        model = _from_pretrained(transformers, str(folder), name, local_files_only=True)
    else:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise UserError(
                f"codec {name}: no such folder, and neither a hub name; give --codec spectral, "
                f"one of {', '.join(HUB_NAMES)}, a folder with config.json and model.safetensors, "
                "or a weight file (rvqlm codecs lists them all)"
            )
        try:
            model = _from_pretrained(transformers, name, name, local_files_only=True)
        except UserError:  # not in the cache
            model = _from_pretrained(transformers, name, name, local_files_only=False)
    if folder is not None and Path(name).expanduser().is_dir():
        name = str(folder)  # what a later command has to find again
    return TransformersCodec.from_model(model, name, num_codebooks)


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
            require_network()
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
        first = (str(e).strip().splitlines() or [""])[0]
        if source == name and not Path(source).is_dir():
            raise UserError(
                f"codec {name}: config.json and model.safetensors are neither in the Hugging Face "
                f"cache nor to be had from the network ({type(e).__name__}); fetch both from "
                f"https://huggingface.co/{name} into a folder and give it with --codec FOLDER, or "
                f"put it at DIR/{name} with {CODECS_ENV}=DIR; --codec spectral needs no download"
            ) from None
        raise UserError(f"codec {name}: cannot load {source}: {first}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    lacking = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if lacking:  # transformers would fill these with random numbers and go on
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
        f"use for example {', '.join(HUB_NAMES)}"
    )
