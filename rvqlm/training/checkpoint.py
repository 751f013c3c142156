"""Checkpoints: one file with everything that training needs to go on and generation to start.

A file is written beside its place and renamed, so a crash at any moment leaves the one before.
Loading never runs code from a file (``weights_only``), and whatever cannot be loaded is reported
by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError

FORMAT = 2
_KEYS = (
    "model",
    "model_name",
    "model_config",
    "codec",
    "conditions",
    "step",
    "optimizer",
    "loader",
)


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, flush it to the disk and put it in the place of `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # on failure, and where both names are one file already
    with contextlib.suppress(OSError):  # directories of some file systems cannot be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(state: dict, path: str | Path, *, also: str | Path | None = None) -> None:
    """Write a checkpoint; `also` becomes a second name of the same content, without a second write
    where the file system has hard links.

    Raises `UserError` when the disk refuses; the previous files are untouched then.
    """

    def write(to: Path) -> None:
        with open(to, "wb") as file:  # an open file reports a full disk; torch's writer hides it
            torch.save(state, file)

    def link(to: Path) -> None:
        try:
            os.link(path, to)
        except OSError:
            write(to)

    try:
        atomic_write(path, write)
        if also is not None:
            atomic_write(also, link)
    except (OSError, RuntimeError) as e:
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); any earlier one is intact: "
            "free space or fix permissions, then run the same command again"
        ) from e


def load_checkpoint(path: str | Path) -> dict:
    """The dictionary that `Trainer.state_dict` made, tensors on the CPU.

    Raises `UserError` when `path` is missing, damaged, or not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint there; train first, or check the path")
    others = [p for p in (path.parent / "latest.pt", path.parent / "best.pt") if p.exists()]
    instead = next((f"; {p} may be good" for p in others if p.name != path.name), "")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as e:  # torch raises half a dozen types for damaged files, OSError among them
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        raise UserError(f"{path}: damaged, or not a checkpoint ({reason}){instead}") from e
    missing = _KEYS if not isinstance(state, dict) else [k for k in _KEYS if k not in state]
    if missing:
        raise UserError(
            f"{path}: not a checkpoint of rvqlm trainer (no {', '.join(missing)}){instead}"
        )
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return state


def last_stage(exp_dir: Path) -> Path:
    """Where the latest training of an experiment is: the directory itself, or of a model trained
    in stages EXP/stageN with the highest N."""
    if (exp_dir / "latest.pt").exists() or (exp_dir / "best.pt").exists():
        return exp_dir
    staged = [p.parent for p in exp_dir.glob("stage[0-9]*/*.pt")]
    return max(staged, key=lambda p: int(p.name.removeprefix("stage")), default=exp_dir)


def find_checkpoint(where: str | Path, which: str = "best") -> Path:
    """``best``, ``latest`` or a path, in an experiment directory; or `where` if it is a file."""
    where = Path(where)
    if where.is_file():
        return where
    if not where.is_dir():
        raise UserError(f"{where}: no such experiment; give the --exp-dir of a training")
    if which not in ("best", "latest"):
        return Path(which)
    where = last_stage(where)  # a model trained in stages is whole after the last
    path = where / f"{which}.pt"
    if not path.exists():
        other = where / ("latest.pt" if which == "best" else "best.pt")
        hint = f"; there is {other}" if other.exists() else "; train first"
        raise UserError(f"{path}: no such checkpoint{hint}")
    return path


def load_model(
    exp_dir_or_path: str | Path,
    which: str = "best",
    device: torch.device | str = "cpu",
    use_ema: bool = True,
):
    """Model for evaluation and generation.

    :param exp_dir_or_path: experiment directory or checkpoint file.
    :param which: ``best``, ``latest`` or the path of a file, within a directory.
    :param use_ema: averaged weights, where the training kept them.
    :return: (model in eval mode, `CodecInfo`, checkpoint dictionary).
    """
    from rvqlm.models.factory import build_model

    path = find_checkpoint(exp_dir_or_path, which)
    state = load_checkpoint(path)
    info = CodecInfo.from_dict(state["codec"])
    conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
    model = build_model(state["model_name"], state["model_config"], info, conditions)
    weights = state["ema"] if use_ema and state.get("ema") is not None else state["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{path}: weights don't fit model {state['model_name']}: {reason}") from e
    return model.to(device).eval(), info, state
