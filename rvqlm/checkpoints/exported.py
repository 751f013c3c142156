"""Trained models as directories, for use elsewhere: ``model.safetensors`` has the weights and
cannot run code, ``config.json`` everything else that is needed: the model's options, the codec, the
conditions with their symbols, how the training went. What lies beside them is for other engines
(`rvqlm.checkpoints.engine_files`) and not read again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import torch

from rvqlm.checkpoints.engine_files import write_engine_files
from rvqlm.checkpoints.file import write_errors
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError, reason_of
from rvqlm.files import Count, Digest, Finite, atomic_folder, fits, read_json, sha256_of, write_json
from rvqlm.models.factory import model_identity
from rvqlm.version import __version__

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
_TRAINING = ("epoch", "total_frames", "elapsed", "best")
_PRIVATE = ("exp-dir", "manifest-dir", "resume", "init-from", "dry-run", "device", "num-threads")
"""Flags that say where something was, not how the model was trained."""


class _Training(TypedDict, total=False):
    epoch: Count
    total_frames: Count
    elapsed: Finite
    best: dict
    mean_of_steps: list[Count]
    rvqlm_version: str


class Exported(_Training):
    """``config.json``; what the model's options may be, `build_model` knows."""

    model_name: str
    model_config: dict[str, Any]
    codec: CodecInfo
    conditions: dict[str, ConditionInfo]
    averaged_weights: bool
    step: Count
    config: dict[str, Any]
    weights_sha256: Digest


def save_pretrained(
    model, directory: str | Path, state: dict | None = None, averaged: bool = False
) -> Path:
    """Write a model to a new directory, which is there whole or not at all.

    :param model: `rvqlm.models.base.TokenModel`; its weights as they are, in their dtypes.
    :param state: the checkpoint that it is from (the third that `load_model` returns); what it says
        about the training goes along, without paths.
    :param averaged: the weights are those of the moving average.
    :return: the directory.
    :raises UserError: it exists and is not empty, or the disk refuses.
    """
    from safetensors.torch import save_model

    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: there is something already; give a new directory")
    if not directory.absolute().parent.is_dir():
        raise UserError(f"{directory}: no directory {directory.absolute().parent}; make it first")
    with write_errors(directory), atomic_folder(directory) as folder:
        # tensors of several names are written once, metadata as other tools expect it
        save_model(model, str(folder / WEIGHTS), {"format": "pt"})
        config = describe(model, state or {}, averaged)
        config["weights_sha256"] = sha256_of(folder / WEIGHTS)
        write_json(folder / CONFIG, config, checksum=True)
        write_engine_files(folder, config)
    return directory


def describe(model, state: dict, averaged: bool) -> dict:
    """What ``config.json`` says, but for the checksum."""
    flags = {k: v for k, v in state.get("config", {}).items() if k not in _PRIVATE}
    training = {k: state[k] for k in _TRAINING if state.get(k) is not None}
    if "averaged" in state:
        training["mean_of_steps"] = list(state["averaged"]["steps"])
    config = {
        "model_type": "rvqlm",
        "format": FORMAT,
        "rvqlm_version": __version__,
        **model_identity(model),
        "averaged_weights": averaged,
        "step": int(state.get("step", 0)),
        **training,
        "config": flags,
    }
    # before the first validation the best loss is infinite, a number that JSON does not have
    return json.loads(json.dumps(config), parse_constant=lambda name: None)


def is_exported(path: str | Path) -> bool:
    """Whether `path` is a directory of `rvqlm export-model`, or alike."""
    path = Path(path)
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def read_config(directory: Path) -> dict:
    """``config.json`` as a checkpoint dictionary without tensors.

    Its flags (``config``) are those that the training had, but for paths; none if the model was
    saved without its checkpoint.
    """
    path, again = directory / CONFIG, "export the model again"
    state = read_json(path, again, "no exported model", type=dict)
    if state.get("model_type") != "rvqlm":
        raise UserError(f"{path}: not a model of rvqlm export-model; give one of those")
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {state.get('format')!r}, this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    try:
        fits(state, Exported)
    except (ValueError, UserError) as e:
        raise UserError(f"{path} is damaged ({e}); {again}") from None
    # JSON has no tuples, options have no lists
    options = state["model_config"].items()
    state["model_config"] = {k: tuple(v) if isinstance(v, list) else v for k, v in options}
    return state


def read_weights(directory: Path, state: dict) -> dict[str, torch.Tensor]:
    """The tensors of an exported model by all their names, after a check of every byte."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = directory / WEIGHTS
    try:
        if sha256_of(path) != state["weights_sha256"]:
            raise UserError(
                f"{path}: damaged, not the file that {CONFIG} was written for (sha256); copy or "
                "export the model again"
            )
        weights = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as e:
        raise UserError(
            f"{path}: damaged ({reason_of(e)}); copy or export the model again"
        ) from None
    # a tensor of several names is in the file once, the metadata has its other names
    return weights | {other: weights[n] for other, n in metadata.items() if n in weights}
