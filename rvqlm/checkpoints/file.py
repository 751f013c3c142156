"""Checkpoints: one file with everything that training needs to go on and generation to start.

A file is written beside its place and renamed, so a crash at any moment leaves the one before.
Loading never runs code from a file (``weights_only``) and checks every byte against the checksums
that the format carries; whatever cannot be loaded is reported by name, with another that can.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.files import atomic_write

FORMAT = 3
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
NAMES = ("best", "latest", "average")
"""Checkpoints of an experiment that are known by name: EXP/NAME.pt."""


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

    with write_errors(path):
        atomic_write(path, write)
        if also is not None:
            atomic_write(also, link)


@contextlib.contextmanager
def write_errors(path: str | Path):
    """What the disk refuses, as a `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        reason = getattr(e, "strerror", None) or (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); any earlier one is intact: "
            "free space or fix permissions, then run the same command again"
        ) from e


def load_checkpoint(path: str | Path, mapped: bool = False, gather: bool = True) -> dict:
    """The dictionary that `Trainer.state_dict` made, tensors on the CPU.

    :param mapped: tensors stay on the disk until they are read; for who wants a few of them, soon.
    :param gather: of a sharded checkpoint put the tensors together; otherwise its directory is
        left under the key ``sharded``.
    :raises UserError: `path` is missing, damaged, or not a checkpoint of this package.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path}: a directory, not a checkpoint file; an exported model has weights only, "
            "--init-from begins a training with them"
        )
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint there; train first, or check the path")
    reason = damage(path)
    if reason is None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (PermissionError, MemoryError):
            raise
        except Exception as e:  # torch raises half a dozen types, OSError among them
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
    if reason is not None:
        raise UserError(f"{path}: damaged, or not a checkpoint ({reason}){_instead(path)}")
    known = isinstance(state, dict) and "model_name" in state
    if known and state.get("format") != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    if known and "sharded" in state and gather:
        from rvqlm.checkpoints.sharded import read_sharded

        state = read_sharded(path, state)
    missing = _KEYS if not isinstance(state, dict) else [k for k in _KEYS if k not in state]
    if missing and (gather or not known):
        raise UserError(
            f"{path}: not a checkpoint of rvqlm trainer (no {', '.join(missing)}){_instead(path)}"
        )
    return state


def damage(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`; None if every part has the CRC-32 it was written
    with. torch itself does not compare them."""
    size = path.stat().st_size
    if not size:
        return "an empty file"
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path):
                return f"cut short: {size:,} bytes, the table of contents after them is gone"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            # this attribute is outside all checksums, and torch reads nothing of a "directory"
            bad = bad or next(
                (i.filename for i in archive.infolist() if i.external_attr & 16), None
            )
    except (PermissionError, MemoryError):
        raise
    except Exception as e:  # whatever a wrong header makes zipfile raise
        return (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
    return bad and f"its part {bad} is not what was written"


def _instead(path: Path) -> str:
    """Words that name an intact checkpoint of the same experiment, the newest there is."""
    folder = path.parent.parent if path.parent.name == "archive" else path.parent
    others = [folder / f"{name}.pt" for name in NAMES]
    others = [p for p in (*others, *folder.glob("archive/*.pt")) if p.is_file() and p != path]
    others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for other in others:
        if damage(other) is None:
            return f"; {other} is intact: give that one"
    return "; no other checkpoint there is intact" if others else ""


def require_resumable(state: dict, where: str | Path) -> None:
    """Raise `UserError` for a checkpoint that holds weights and nothing to go on from."""
    if "averaged" in state:
        steps = ", ".join(map(str, state["averaged"]["steps"]))
        raise UserError(
            f"{where}: the mean of the checkpoints of steps {steps}, without optimizer and "
            "position in the data; --resume one of those, or begin a training with --init-from"
        )


def last_stage(exp_dir: Path) -> Path:
    """Where the latest training of an experiment is: the directory itself, or of a model trained
    in stages EXP/stageN with the highest N."""
    if (exp_dir / "latest.pt").exists() or (exp_dir / "best.pt").exists():
        return exp_dir
    staged = [p.parent for p in exp_dir.glob("stage[0-9]*/*.pt")]
    return max(staged, key=lambda p: int(p.name.removeprefix("stage")), default=exp_dir)


def is_exported(path: str | Path) -> bool:
    """Whether `path` is a directory of `rvqlm export-model`, or alike."""
    path = Path(path)
    return (path / "model.safetensors").is_file() and (path / "config.json").is_file()


def find_checkpoint(where: str | Path, which: str = "best") -> Path:
    """``best``, ``latest``, ``average`` or a path, in an experiment directory; or `where` itself if
    it is a file or the directory of an exported model."""
    where = Path(where)
    if where.is_file():
        return where
    if not where.is_dir():
        raise UserError(f"{where}: no such experiment; give the --exp-dir of a training")
    if which not in NAMES:
        return Path(which)
    if is_exported(where):
        return where
    where = last_stage(where)  # a model trained in stages is whole after the last
    path = where / f"{which}.pt"
    if not path.exists():
        others = [p for p in (where / f"{name}.pt" for name in NAMES) if p.exists()]
        hint = f"; there is {others[0]}" if others else "; train first"
        if which == "average" and others:
            hint = f"; rvqlm average {where} makes it"
        raise UserError(f"{path}: no such checkpoint{hint}")
    return path


def load_model(
    exp_dir_or_path: str | Path,
    which: str = "best",
    device: torch.device | str = "cpu",
    use_ema: bool = True,
):
    """Model for evaluation and generation.

    :param exp_dir_or_path: experiment directory, checkpoint file or directory of an exported model.
    :param which: ``best``, ``latest``, ``average`` or the path of a file, within an experiment.
    :param use_ema: averaged weights, where the training kept them.
    :return: (model in eval mode, `CodecInfo`, checkpoint dictionary; of an exported model all of
        it but weights and optimizer).
    """
    from rvqlm.checkpoints.exported import load_pretrained
    from rvqlm.models.factory import build_model

    path = find_checkpoint(exp_dir_or_path, which)
    if is_exported(path):
        return load_pretrained(path, device, use_ema)
    # mapped: what isn't wanted, the optimizer's state above all, is never read into memory
    state = load_checkpoint(path, mapped=True)
    info = CodecInfo.from_dict(state["codec"])
    conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
    model = build_model(state["model_name"], state["model_config"], info, conditions)
    weights = weights_of(state, use_ema)
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{path}: weights don't fit model {state['model_name']}: {reason}") from e
    return model.to(device).eval(), info, state


def weights_of(state: dict, use_ema: bool = True) -> dict:
    """The averaged weights of a checkpoint where it has them and they are wanted, else the last."""
    return state["ema"] if use_ema and state.get("ema") is not None else state["model"]
