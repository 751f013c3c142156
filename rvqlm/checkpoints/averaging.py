"""The mean of several checkpoints' weights: a model that is often better than each of them.

Averaging the last checkpoints of a training is due to Izmailov et al., "Averaging Weights Leads to
Wider Optima and Better Generalization" (arXiv:1803.05407), and common in speech recognition and
synthesis. Sums are in float64, so the order of the checkpoints does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.checkpoints.archives import archives
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.checkpoints.loading import last_stage
from rvqlm.errors import UserError

_IDENTITY = ("model_name", "model_config", "codec", "conditions")
_KEPT = ("format", "rvqlm_version", *_IDENTITY, "config", "epoch", "total_frames", "elapsed")


def newest_archives(exp_dir: str | Path, last: int | None) -> list[Path]:
    """The `last` newest periodic archives of an experiment (of its last stage), or all.

    :raises UserError: fewer than two, or than asked for.
    """
    exp_dir = last_stage(Path(exp_dir))
    found = archives(exp_dir)
    if len(found) < (least := max(2, last or 2)):
        raise UserError(
            f"{exp_dir / 'archive'}: {len(found)} archives, a mean takes at least {least}; train "
            "with --archive-every or --archive-every-steps, or name checkpoints"
        )
    return found[-last:] if last else found


def average_checkpoints(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write the mean of the weights of checkpoints of one model, and that of their averages (EMA).

    The result loads like any checkpoint, but holds nothing to resume from. Its step is the highest.

    :param paths: two checkpoint files or more.
    :param out: the file to write; none of `paths`.
    :return: `out`.
    :raises UserError: files that cannot be read, of different models, with values that are not
        finite, or given twice.
    """
    paths, out = [Path(p) for p in paths], Path(out)
    _check_paths(paths, out)
    first, steps = None, []
    sums: dict[str, dict[str, Tensor] | None] = {}
    for path in paths:
        state = load_checkpoint(path, mapped=True)
        if first is None:
            first = last = state
            sums = {k: None if state.get(k) is None else {} for k in ("model", "ema")}
        _require_same_model(state, first, path, paths[0])
        for part, total in sums.items():
            if total is not None:
                _add(total, state[part], f"{path}: {part}")
        steps.append(int(state["step"]))
        if state["step"] >= last["step"]:
            last = state
    averaged = {"paths": [str(p) for p in paths], "steps": steps}
    result = {k: last[k] for k in _KEPT if k in last}
    for part, total in sums.items():
        result[part] = total and {k: _mean(v, len(paths), last[part][k]) for k, v in total.items()}
    result |= {"step": last["step"], "averaged": averaged, "optimizer": None, "loader": None}
    save_checkpoint(result, out)
    return out


def _check_paths(paths: list[Path], out: Path) -> None:
    if len(paths) < 2:
        raise UserError(f"a mean takes at least two checkpoints, not {len(paths)}")
    for i, path in enumerate(paths):
        if not path.is_file():
            raise UserError(f"{path}: no checkpoint there; give checkpoint files")
        for other in paths[:i]:
            if os.path.samefile(path, other):
                raise UserError(f"{path} and {other} are one file; give each checkpoint once")
        if out.exists() and os.path.samefile(path, out):
            raise UserError(f"{out} is one of the checkpoints to average; give another --out")
    if out.is_dir() or not out.parent.is_dir():
        what = "a directory" if out.is_dir() else f"no directory {out.parent}"
        raise UserError(f"{out}: {what}; give the path of a file with --out")


def _require_same_model(state: dict, first: dict, path: Path, first_path: Path) -> None:
    for name in _IDENTITY:
        if state[name] == first[name]:
            continue
        a, b = state[name], first[name]
        if isinstance(a, dict) and isinstance(b, dict):
            name += " " + ", ".join(k for k in sorted({*a, *b}) if a.get(k) != b.get(k))
        raise UserError(f"{path} is of another model than {first_path}: {name} differ")
    if (state.get("ema") is None) != (first.get("ema") is None):
        raise UserError(f"of {path} and {first_path} only one has averaged weights (--ema-decay)")
    for part in ("model", "ema"):
        shapes, wanted = (
            {k: tuple(v.shape) for k, v in (s.get(part) or {}).items()} for s in (state, first)
        )
        if differing := sorted(k for k in {*shapes, *wanted} if shapes.get(k) != wanted.get(k)):
            raise UserError(f"{path} is of another model than {first_path}: {differing[0]} differs")


def _add(total: dict[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    for name, value in weights.items():
        if not value.is_floating_point():
            if name in total and not torch.equal(total[name], value):
                raise UserError(f"{where}: {name} are integers that differ and have no mean")
            total[name] = value
            continue
        if not value.isfinite().all():
            raise UserError(f"{where}: {name} is not finite; leave this checkpoint out")
        total[name] = (
            total[name].add_(value) if name in total else value.to(torch.float64, copy=True)
        )


def _mean(total: Tensor, count: int, like: Tensor) -> Tensor:
    return (total / count).to(like.dtype) if like.is_floating_point() else total
