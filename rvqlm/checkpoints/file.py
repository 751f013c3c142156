"""Checkpoints: one file with everything that training needs to resume and generation to start.

A file is written beside its place and renamed, so a crash at any moment leaves the one before.
Loading never runs code from a file (``weights_only``) and checks every byte against the checksums
that the format carries; whatever cannot be loaded is reported by name, with another that can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from rvqlm.checkpoints.shards import read_whole
from rvqlm.cli import kebab
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo, Infos
from rvqlm.errors import UserError, reason_of
from rvqlm.files import atomic_write, link_or_copy

FORMAT = 3
_KEYS = (
    *("model", "model_name", "model_config", "codec", "conditions"),
    *("step", "optimizer", "loader"),
)
NAMES = ("best", "latest", "average")
"""Checkpoints of an experiment that are known by name: EXP/NAME.pt."""
EARLIER_INTACT = (
    "any earlier one is intact: free space or fix permissions, then run the same command again"
)


def save_checkpoint(state: dict, path: str | Path, *, also: str | Path | None = None) -> None:
    """Write a checkpoint; `also` becomes a second name of the same content, without a second write
    where the file system has hard links.

    Raises `UserError` when the disk refuses; the previous files are untouched then.
    """

    def write(to: Path) -> None:
        with open(to, "wb") as file:  # an open file reports a full disk; torch's writer hides it
            torch.save(state, file)

    with write_errors(path):
        atomic_write(path, write)
        if also is not None:
            atomic_write(also, lambda to: link_or_copy(path, to))


@contextlib.contextmanager
def write_errors(path: str | Path):
    """What the disk refuses, as a `UserError`."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason_of(e)}); {EARLIER_INTACT}"
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
            reason = reason_of(e)
    if reason is not None:
        raise UserError(f"{path}: damaged, or not a checkpoint ({reason}){_instead(path)}")
    known = isinstance(state, dict) and "model_name" in state
    if known and state.get("format") != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    if known and "sharded" in state and gather:
        state = read_whole(path, state)
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
            bad = bad or next((i.filename for i in archive.infolist() if _is_foreign(i)), None)
    except (PermissionError, MemoryError):
        raise
    except Exception as e:  # whatever a wrong header makes zipfile raise
        return reason_of(e)
    return bad and f"its part {bad} is not what was written"


def _is_foreign(part: zipfile.ZipInfo) -> bool:
    """What torch never writes: packed parts, which may be of any size when unpacked, and an
    attribute outside all checksums, with which it would read nothing."""
    return part.compress_type != zipfile.ZIP_STORED or bool(part.external_attr & 16)


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
    """Raise `UserError` for a checkpoint that holds weights and nothing to resume from."""
    if "averaged" in state:
        steps = ", ".join(map(str, state["averaged"]["steps"]))
        raise UserError(
            f"{where}: the mean of the checkpoints of steps {steps}, without optimizer and "
            "position in the data; --resume one of those, or begin a training with --init-from"
        )


def require_same_run(state: dict, where: str, model, info: CodecInfo, config) -> None:
    """Raise `UserError` for a checkpoint that a training does not continue, naming every
    difference.

    :param model, info, config: of the training; `config` is its `TrainerConfig`.
    """
    require_resumable(state, where)
    averaging = config.optim.ema_decay > 0
    told = told_times({k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()})
    pairs = {  # what was, what is
        "--model-name": (state["model_name"], model.name),
        "--seed": (state["rng"]["seed"], config.seed),
        "--optimizer": (state["config"].get("optimizer"), config.optim.optimizer),
        "averaging (--ema-decay above 0)": (state["ema"] is not None, averaging),
        "--text-times": (told, told_times(model.conditions)),
    }
    differing = [f"{k} was {was}, is {now}" for k, (was, now) in pairs.items() if was != now]
    if model.name == state["model_name"]:
        free = getattr(model.config, "may_change", ())
        differing += differing_flags(model.config, state["model_config"], but=free)
    if differing:
        raise UserError(
            f"{where} is of another run: {'; '.join(differing)}; give the same "
            f"flags (--config {Path(where).parent / 'config.yaml'}), another --exp-dir, or "
            "--resume no"
        )
    for kind, condition in model.conditions.items():
        saved = ConditionInfo.from_dict(state["conditions"][kind])
        condition.require_same(saved, config.manifest_dir, where)
    info.require_same(CodecInfo.from_dict(state["codec"]), config.manifest_dir, where)


def told_times(conditions: Infos) -> str:
    """Whether a model is told when the symbols of its text are said, as the flag says it."""
    return "yes" if "text" in conditions and conditions["text"].aligned else "no"


def differing_flags(config: Any, before: dict[str, Any], but: Collection[str] = ()) -> list[str]:
    """``--nhead was 2, is 4`` for each field of a dataclass that a checkpoint has otherwise; one
    that it does not know, because the flag came later, was at its default.

    :param but: fields that may differ.
    """
    before = {f.name: f.default for f in dataclasses.fields(config)} | before
    return [
        f"--{kebab(name)} was {before[name]}, is {value}"
        for name, value in dataclasses.asdict(config).items()
        if name not in but and before[name] != value
    ]
