"""Trained models as directories of two files, for use elsewhere: ``model.safetensors`` has the
weights and cannot run code, ``config.json`` everything else that is needed: the model's options,
the codec, the conditions with their symbols, how the training went.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path

import torch

from rvqlm.checkpoints.file import is_exported, load_model, write_errors
from rvqlm.cli import flatten
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.version import __version__

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
_TRAINING = ("epoch", "total_frames", "elapsed", "best", "averaged")
_PRIVATE = ("exp-dir", "manifest-dir", "resume", "init-from", "dry-run", "device", "num-threads")
"""Flags that say where something was, not how the model was trained."""


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
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    with write_errors(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            # tensors of several names are written once, metadata as other tools expect it
            save_model(model, str(temporary / WEIGHTS), {"format": "pt"})
            config = describe(model, state or {}, averaged)
            config["weights_sha256"] = _sha256(temporary / WEIGHTS)
            text = json.dumps(config, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
            (temporary / CONFIG).write_text(text, encoding="utf-8")
            for file in temporary.iterdir():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory


def describe(model, state: dict, averaged: bool) -> dict:
    """What ``config.json`` says, but for the checksum."""
    from rvqlm.models.factory import config_dict

    flags = {k: v for k, v in state.get("config", {}).items() if k not in _PRIVATE}
    training = {k: state[k] for k in _TRAINING if state.get(k) is not None}
    training.pop("averaged", None)
    if "averaged" in state:
        training["mean_of_steps"] = list(state["averaged"]["steps"])
    return _finite(
        {
            "model_type": "rvqlm",
            "format": FORMAT,
            "rvqlm_version": __version__,
            "model_name": model.name,
            "model_config": config_dict(model),
            "codec": model.info.to_dict(),
            "conditions": {k: c.to_dict() for k, c in model.conditions.items()},
            "averaged_weights": averaged,
            "step": int(state.get("step", 0)),
            **training,
            "config": flags,
        }
    )


def _finite(value):
    """Plain JSON: no validation yet is an infinite loss, which JSON does not have."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_pretrained(path: str | Path, device: torch.device | str = "cpu"):
    """A trained model, ready to generate; ``model.info`` is its codec.

    :param path: directory of `rvqlm export-model`, experiment, checkpoint, or a repository of the
        Hugging Face hub, "owner/name", where no such path exists.
    :raises UserError: nothing usable is there.
    """
    return load_model(locate(path), device=device)[0]


def locate(path: str | Path) -> Path:
    """`path`, or the local copy of the repository of the Hugging Face hub that it names."""
    name = str(path)
    if Path(path).exists():
        return Path(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(
            f"{name}: no such file or directory; give an exported model, an experiment, a "
            "checkpoint or the name of a Hugging Face repository (owner/name)"
        )
    import huggingface_hub
    from huggingface_hub import constants

    from rvqlm.hub import require_network

    files = [CONFIG, WEIGHTS]
    local = all(isinstance(huggingface_hub.try_to_load_from_cache(name, f), str) for f in files)
    try:
        if not local and not constants.HF_HUB_OFFLINE:
            require_network()
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=files, local_files_only=local
        )
    except Exception as e:  # the hub's client raises a dozen types, from OSError on
        raise UserError(
            f"{name}: no such path, and the Hugging Face repository is neither in the cache nor to "
            f"be had from the network ({type(e).__name__}); check the name"
        ) from e
    folder = Path(folder)
    if not is_exported(folder):
        raise UserError(f"{name}: the repository has no {CONFIG} and {WEIGHTS} at its top")
    return folder


def load_pretrained(
    directory: str | Path, device: torch.device | str = "cpu", use_ema: bool = True
):
    """What `load_model` returns, of the directory of an exported model.

    :raises UserError: damaged, not of this package, or of the averaged weights where `use_ema` is
        not wanted.
    """
    from rvqlm.models.factory import build_model

    directory = Path(directory)
    state = read_config(directory)
    if state["averaged_weights"] and not use_ema:
        raise UserError(
            f"{directory}: only the averaged weights were exported; export with --raw-weights"
        )
    try:
        info = CodecInfo.from_dict(state["codec"])
        conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
        model = build_model(state["model_name"], state["model_config"], info, conditions)
    except (UserError, TypeError, ValueError, KeyError, AttributeError) as e:
        raise UserError(
            f"{directory / CONFIG}: the model cannot be built ({' '.join(str(e).split())[:200]}); "
            f"use rvqlm {state.get('rvqlm_version')}, which wrote it"
        ) from e
    try:
        model.load_state_dict(read_weights(directory, state))
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{directory}: weights don't fit model {state['model_name']}: {reason}"
        ) from e
    return model.to(device).eval(), info, state


def read_config(directory: Path) -> dict:
    """``config.json`` as a checkpoint dictionary without tensors."""
    from rvqlm.training.config import TrainerConfig

    path = directory / CONFIG
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from None
    except ValueError as e:
        raise UserError(f"{path}: damaged, not JSON ({e}); export the model again") from None
    if not isinstance(state, dict) or state.get("model_type") != "rvqlm":
        raise UserError(f"{path}: not a model of rvqlm export-model; give one of those")
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {state.get('format')!r}, this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    needed = ("model_name", "model_config", "codec", "conditions", "averaged_weights", "step")
    needed += ("config", "weights_sha256")
    if missing := [k for k in needed if k not in state]:
        raise UserError(f"{path}: damaged, no {', '.join(missing)}; export the model again")
    for name in ("model_config", "codec", "conditions", "config"):
        if not isinstance(state[name], dict):
            raise UserError(f"{path}: damaged, {name} is {state[name]!r}; export the model again")
    # JSON has no tuples, options have no lists
    options = state["model_config"].items()
    state["model_config"] = {k: tuple(v) if isinstance(v, list) else v for k, v in options}
    # of a model that was saved without its checkpoint: as a training without flags has them
    state["config"] = flatten(TrainerConfig("", "")) | state["config"]
    return state


def read_weights(directory: Path, state: dict) -> dict[str, torch.Tensor]:
    """The tensors of an exported model by all their names, after a check of every byte."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = directory / WEIGHTS
    try:
        if _sha256(path) != state["weights_sha256"]:
            raise UserError(
                f"{path}: damaged, not the file that {CONFIG} was written for (sha256); copy or "
                "export the model again"
            )
        weights = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise UserError(f"{path}: damaged ({reason}); copy or export the model again") from None
    # a tensor of several names is in the file once, the metadata has its other names
    return weights | {other: weights[n] for other, n in metadata.items() if n in weights}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
