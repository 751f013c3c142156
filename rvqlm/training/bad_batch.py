"""Steps that were skipped, kept as files, and what a replay of one finds.

A file holds the micro-batches of one rank at one step and what the step's randomness hangs on, so
`replay` draws the same dropout and the same masks as training did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch, Padded
from rvqlm.errors import UserError
from rvqlm.files import atomic_write
from rvqlm.training.nonfinite import Trace, not_finite

FORMAT = 1
_FACTS = ("step", "rank", "seed", "reason", "loss", "grad_norm", "progress")


@dataclass
class BadBatch:
    """A skipped step."""

    path: Path
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


def save_bad_batch(
    exp_dir: str | Path,
    batches: list[Batch],
    *,
    step: int,
    rank: int,
    seed: int,
    reason: str,
    loss: float,
    grad_norm: float,
    progress: float,
    keep: int,
) -> Path | None:
    """Write ``EXP/bad_batches/step-000123-rank-0.pt`` and delete this rank's oldest beyond `keep`.

    Returns None where nothing was written: `keep` is 0, or the disk refused. Training goes on
    without the file.
    """
    if keep < 1:
        return None
    folder = Path(exp_dir) / "bad_batches"
    path = folder / f"step-{step:06d}-rank-{rank}.pt"
    facts = (step, rank, seed, reason, loss, grad_norm, progress)
    state = {
        "format": FORMAT,
        **dict(zip(_FACTS, facts)),
        "batches": [_plain(batch) for batch in batches],
    }

    def write(to: Path) -> None:
        with open(to, "wb") as file:  # an open file reports a full disk; torch's writer hides it
            torch.save(state, file)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, write)
        # by time, not by step: a training resumed from further back counts its steps again
        files = sorted(folder.glob(f"step-*-rank-{rank}.pt"), key=lambda p: p.stat().st_mtime_ns)
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
        if state["format"] != FORMAT:
            raise UserError(
                f"{path}: format {state['format']!r}, this version reads {FORMAT}; use the version "
                "that wrote it"
            )
        batches = []
        for values in state["batches"]:
            heard = {kind: Padded(**parts) for kind, parts in values.pop("conditions").items()}
            batches.append(Batch(**values, conditions=heard))
        return BadBatch(path, *(state[name] for name in _FACTS), batches)
    except (UserError, PermissionError, MemoryError):
        raise
    except Exception as e:  # torch raises half a dozen types for damaged files
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        raise UserError(f"{path}: damaged, or not a skipped step ({reason}); take another") from e


@dataclass
class Replay:
    """What a skipped step does to a model."""

    losses: list[float]
    """Mean over tokens of each micro-batch; fewer than there are if one raised an error."""
    loss: float
    """Mean over the tokens of this rank's micro-batches."""
    grad_norm: float
    """Of this rank's share, before clipping."""
    first: str | None
    """Where the first value that is not finite comes from in the forward pass, or where `error`
    was raised; None: all are finite."""
    first_gradient: str | None
    """The first parameter, in the order of the backward pass, whose gradient is not finite."""
    parameters: list[str]
    """Parameters that hold values that are not finite, whatever the batch."""
    out_of_range: float
    """Share of codes and condition ids that the model has no entry for."""
    examples: list[str] = field(default_factory=list)
    """Where the first such value of each sequence is."""
    error: str | None = None

    @property
    def healthy(self) -> bool:
        """Nothing is wrong with this batch on these weights."""
        return not (self.error or self.first or self.first_gradient or self.parameters) and (
            self.out_of_range == 0 and isfinite(self.loss) and isfinite(self.grad_norm)
        )

    def lines(self) -> list[str]:
        """For people."""
        said = [
            f"loss {self.loss:.4f} nats/token, gradient norm {self.grad_norm:.4f}"
            f" (micro-batches: {' '.join(f'{x:.4f}' for x in self.losses) or 'none'})"
        ]
        if self.out_of_range:
            said.append(f"{self.out_of_range:.2%} of the ids are out of range: the data are wrong")
            said += self.examples
        if self.parameters:
            said.append(f"weights that are not finite: {_some(self.parameters)}")
        if self.error:
            said.append(f"error in {self.first}: {self.error}")
        elif self.first:
            said.append(f"the first value that is not finite comes from {self.first}")
        if self.first_gradient:
            said.append(f"the first gradient that is not finite is that of {self.first_gradient}")
        return said if len(said) > 1 else [*said, "all values are finite"]


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def replay(
    model: nn.Module,
    bad: BadBatch,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
    draw_weights: Callable[[torch.device], Tensor | None] | None = None,
) -> Replay:
    """Run a skipped step again, forward and backward, without taking it.

    :param dtype: of autocast, as in training.
    :param label_smoothing, draw_weights: as in training (``LevelWeights.draw``), or the losses are
        not those that were judged.

    The model must not be compiled or wrapped. Its weights and mode and torch's random state are as
    before afterwards; gradients are empty. Raises `UserError` if the batch is of another codec or
    lacks a condition.
    """
    from rvqlm.runtime import step_seed

    device = next(model.parameters()).device
    _check_fit(model, bad)
    share, examples = _out_of_range(model, bad)
    found = Replay([], float("nan"), float("nan"), None, None, not_finite(model), share, examples)
    if share and device.type == "cuda":  # an assertion on the GPU would end the process
        found.first, found.error = "the data", "not run on a GPU with ids out of range"
        return found
    before = model.training, getattr(model, "progress", None)
    trace = Trace(model)
    loss = tokens = 0.0
    try:
        model.train()
        model.progress = bad.progress
        model.zero_grad(set_to_none=True)
        with trace, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(step_seed(bad.seed, bad.rank, bad.step))
            for batch in bad.batches:
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    out = model(
                        batch.to(device),
                        label_smoothing=label_smoothing,
                        level_weights=draw_weights(device) if draw_weights else None,
                    )
                nats, count = out.loss.item(), max(out.normalizer.item(), 1.0)
                found.losses.append(nats / count)
                loss, tokens = loss + nats, tokens + count
                if not isfinite(nats):
                    trace.begins("the loss")
                out.loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.loss = loss / tokens
        found.grad_norm = torch.nn.utils.get_total_norm(grads).item() / tokens
    except (IndexError, RuntimeError) as e:
        found.error = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        trace.begins(trace.running)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(before[0])
        model.progress = before[1]
    found.first, found.first_gradient = trace.first, trace.first_gradient
    return found


def _check_fit(model, bad: BadBatch) -> None:
    levels = {batch.codes.shape[2] for batch in bad.batches}
    if levels != {model.info.num_codebooks}:
        raise UserError(
            f"{bad.path}: codes of {', '.join(map(str, levels))} levels, the model has "
            f"{model.info.num_codebooks}; give the checkpoint of the same training"
        )
    for batch in bad.batches:
        if missing := [kind for kind in model.conditions if kind not in batch.conditions]:
            raise UserError(
                f"{bad.path}: no {', '.join(missing)} in it, which the model hears; give the "
                "checkpoint of the same training"
            )


def _out_of_range(model, bad: BadBatch) -> tuple[float, list[str]]:
    """Share of ids outside their tables, and the first of each sequence in words."""
    wrong = total = 0
    examples: list[str] = []
    for number, batch in enumerate(bad.batches):
        codes = (model.info.codebook_size,) * model.info.num_codebooks
        sequences = {"codes": (Padded(batch.codes, batch.lengths), codes)}
        for kind, info in model.conditions.items():
            sequences[kind] = (batch.conditions[kind], info.sizes)
        for name, (padded, sizes) in sequences.items():
            values, lengths = padded.values.long(), padded.lengths
            real = torch.arange(values.shape[1])[None, :] < lengths[:, None]  # (B, S)
            bad_ids = ((values < 0) | (values >= torch.tensor(sizes))) & real[:, :, None]
            total += int(real.sum()) * len(sizes)
            wrong += int(bad_ids.sum())
            if bad_ids.any():
                item, at, level = bad_ids.nonzero()[0].tolist()
                examples.append(
                    f"{name} of micro-batch {number}: {values[item, at, level]} at item {item} "
                    f"(row {batch.index[item]} of the index), position {at}, level {level}; "
                    f"valid are 0 to {sizes[level] - 1}"
                )
    return wrong / max(1, total), examples
