"""Weight files as the codecs' own projects publish them: reading them safely, filling a model.

Which projects' files there are, and whose layers they hold, is the business of
`rvqlm.codecs.native`.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvqlm.errors import UserError, reason_of


@dataclass
class NativeCheckpoint:
    """Contents of a native weight file."""

    path: Path
    state: dict[str, Tensor]
    """weights by their native names, weight norm as ``weight_g`` and ``weight_v``"""
    settings: dict[str, Any] | str | None = None
    """what the file says about the model: keyword arguments (dac), YAML (audiocraft) or nothing"""


def read_native(path: str | os.PathLike) -> NativeCheckpoint:
    """Read a native weight file; `UserError` for what is none.

    Nothing in the file is executed: it is unpickled with ``weights_only=True``.
    """
    path = Path(path)
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise UserError(f"codec {path}: holds a {type(content).__name__}, not weights")
    if "pretrained" in content and "best_state" not in content:
        raise UserError(
            f"codec {path}: holds no weights, only the name of the codec they belong to; "
            f"give --codec {content['pretrained']}"
        )
    state, settings = content, None
    if "state_dict" in content:
        state = content["state_dict"]
        settings = (content.get("metadata") or {}).get("kwargs")
    elif "best_state" in content:
        state = content["best_state"]
        settings = content.get("xp.cfg")
        if isinstance(state, dict) and isinstance(state.get("model"), dict):
            state = state["model"]
    if not isinstance(state, dict):
        raise UserError(f"codec {path}: its weights are a {type(state).__name__}, not a dict")
    state = {_old_name(str(k)): v for k, v in state.items() if isinstance(v, Tensor)}
    return NativeCheckpoint(path, state, settings)


def build(model_class: type, config, state: dict[str, Tensor], path: Path) -> torch.nn.Module:
    """`model_class(config)` filled with `state`, which must fit exactly."""
    try:
        model = model_class(config)
    except ValueError as e:  # a codebook size that the class can't take, for example
        raise UserError(f"codec {path}: transformers' {model_class.__name__}: {e}") from None
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    both = [k for k in wanted if k in given]
    wrong = {
        "missing": [k for k in wanted if k not in given],
        "of another shape": [
            f"{k} is {given[k]}, not {wanted[k]}" for k in both if given[k] != wanted[k]
        ],
        "unknown": [k for k in given if k not in wanted],
    }
    for what, names in wrong.items():
        if names:
            raise UserError(
                f"codec {path}: {len(names)} of its tensors are {what}, {names[0]} first (names "
                f"of {model_class.__name__}); not a complete checkpoint of this kind"
            )
    model.load_state_dict(state)
    return model.eval()


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace each ``weight_g``, ``weight_v`` by the weight g v / |v| that they stand for.

    The norm runs over all axes but the one along which g lies. The result is that of torch's own
    weight norm on x86 with AVX2, to the last bit and on every machine: another order of summation
    gives other last bits, and with them another fingerprint and now and then another code.
    """
    folded = {}
    for name, tensor in state.items():
        if name.endswith("weight_g"):
            continue
        if name.endswith("weight_v"):
            g = state.get(name[:-1] + "g")
            if g is None:
                continue  # reported as missing by `build`
            axis = max(range(g.ndim), key=lambda i: g.shape[i])
            rows = tensor.movedim(axis, 0)
            gain = g.reshape(-1) / _norms(rows.reshape(len(rows), -1).float())
            shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
            tensor, name = tensor * gain.reshape(shape), name[:-2]
        folded[name] = tensor
    return folded


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norms (M,) of float32 rows (M, N), summed in the order of an eight-lane register.

    aten/src/ATen/native/cpu/WeightNormKernel.cpp: lane l adds up the squares of elements l, l + 8,
    l + 16, ...; then the lanes are added in halves. Fewer than eight are added one by one.
    """
    M, N = rows.shape
    squares = rows * rows
    if N < 8:
        total = squares[:, 0]
        for i in range(1, N):
            total = total + squares[:, i]
    else:
        lanes = torch.nn.functional.pad(squares, (0, -N % 8)).reshape(M, -1, 8).unbind(1)
        total = lanes[0].clone()
        for more in lanes[1:]:  # zeros behind the end change nothing
            total += more
        for half in (4, 2, 1):
            total = total[:, :half] + total[:, half:]
        total = total[:, 0]
    return total.double().sqrt().float()  # the float32 root of some libraries is not rounded right


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(n.endswith(".data/extern_modules") for n in archive.namelist()):
                raise UserError(
                    f"codec {path}: a torch.package, which is a program as much as weights; give "
                    "the weights.pth that lies beside it"
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"codec {path}: not loaded, for it holds objects other than weights; a checkpoint of "
            "an audiocraft training must first be exported (audiocraft.utils.export)"
        ) from None
    except Exception as e:  # torch raises anything for a damaged file, IndexError too
        raise UserError(f"codec {path}: not a file of torch.save ({reason_of(e)})") from None


def _old_name(name: str) -> str:
    """Weight norm's newer parameter names as the older ones, which the packages use."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return name.replace("parametrizations.weight.original1", "weight_v")
