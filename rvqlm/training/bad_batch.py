"""Steps that were skipped, kept as files.

A file holds the micro-batches of one rank at one step and what the step's randomness depends on, so
that a replay (`rvqlm doctor --replay`) draws the same dropout and the same masks as training did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.batch import Batch, Padded
from rvqlm.errors import UserError
from rvqlm.files import atomic_write

FORMAT = 1


@dataclass
class BadBatch:
    """A skipped step."""

    step: int
    rank: int
    seed: int
    reason: str
    """``nonfinite`` or ``outlier``."""
    loss: float
    """Mean over the tokens of all ranks, as the step was judged."""
    grad_norm: float
    progress: float
    """Share of the training that was done (`TokenModel.progress`)."""
    batches: list[Batch]
    epoch: int = 0
    """In which the step began (`TokenModel.epoch`); files of earlier versions have none."""
    path: Path | None = None
    """The file that it was read from."""


def save_bad_batch(exp_dir: str | Path, bad: BadBatch, keep: int) -> Path | None:
    """Write ``EXP/bad_batches/step-000123-rank-0.pt`` and delete this rank's oldest beyond `keep`.

    Returns None where nothing was written: `keep` is 0, or the disk refused. Training continues
    without the file.
    """
    if keep < 1:
        return None
    folder = Path(exp_dir) / "bad_batches"
    path = folder / f"step-{bad.step:06d}-rank-{bad.rank}.pt"
    state = {"format": FORMAT, **vars(bad), "batches": [_plain(batch) for batch in bad.batches]}
    del state["path"]

    def write(to: Path) -> None:
        with open(to, "wb") as file:  # an open file reports a full disk; torch's writer hides it
            torch.save(state, file)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, write)
        # by time, not by step: a training resumed from further back counts its steps again
        files = sorted(
            folder.glob(f"step-*-rank-{bad.rank}.pt"), key=lambda p: p.stat().st_mtime_ns
        )
        for old in [p for p in files if p != path][: max(0, len(files) - keep)]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return path if path.exists() else None
    return path


def _plain(batch: Batch) -> dict:
    """Fields of a batch as what ``weights_only`` loads: tensors and dictionaries."""

    def plain(value):
        if isinstance(value, Padded):
            return {name: plain(part) for name, part in value._asdict().items()}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        # a copy, since the file would hold the whole storage behind a view
        return value.detach().cpu().clone() if isinstance(value, Tensor) else value

    return {f.name: plain(getattr(batch, f.name)) for f in fields(Batch)}


def load_bad_batch(path: str | Path) -> BadBatch:
    """What `save_bad_batch` wrote; `UserError` for anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; skipped steps are in EXP_DIR/bad_batches")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if (found := state.pop("format")) != FORMAT:
            raise UserError(
                f"{path}: format {found!r}, this version reads {FORMAT}; use the version "
                "that wrote it"
            )
        batches = []
        for values in state["batches"]:
            conditions = {kind: Padded(**parts) for kind, parts in values.pop("conditions").items()}
            batches.append(Batch(**values, conditions=conditions))
        return BadBatch(**state | {"batches": batches}, path=path)
    except (UserError, PermissionError, MemoryError):
        raise
    except Exception as e:  # torch raises half a dozen types for damaged files
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        raise UserError(f"{path}: damaged, or not a skipped step ({reason}); take another") from e
