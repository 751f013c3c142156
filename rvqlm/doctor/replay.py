"""A step that the guards skipped, run through a model once more.

`replay` draws the same dropout and the same masks as training did, and hooks on every module and
parameter tell where NaN and infinity come from.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path

import torch
from torch import Tensor, nn

from rvqlm.batch import Padded
from rvqlm.doctor.finding import rule, some
from rvqlm.errors import UserError, reason_of
from rvqlm.runtime import pick_precision, step_seed
from rvqlm.training.bad_batch import BadBatch, load_bad_batch
from rvqlm.training.level_weights import LevelWeights, LossConfig

CPU = torch.device("cpu")


@dataclass
class Replay:
    """What a skipped step does to a model."""

    loss: float = nan
    """Mean over the tokens of this rank's micro-batches."""
    grad_norm: float = nan
    """Of this rank's share, before clipping."""
    first: str | None = None
    """Where the first non-finite value comes from in the forward pass; None: all are finite."""
    first_gradient: str | None = None
    """The first parameter, in the order of the backward pass, whose gradient is non-finite."""
    out_of_range: list[str] = field(default_factory=list)
    """Where the first code or condition id of each sequence is that the model has no entry for."""
    error: str | None = None
    """What the forward or backward pass raised."""


def replay(
    model: nn.Module,
    bad: BadBatch,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
    draw_weights: Callable[[torch.device], Tensor | None] = lambda device: None,
) -> Replay:
    """Run a skipped step again, forward and backward, without taking it.

    :param model: on the CPU, neither compiled nor wrapped. Its weights are as before afterwards,
        gradients are empty, and it is in training mode.
    :param dtype: of autocast, as in training.
    :param label_smoothing, draw_weights: as in training (``LevelWeights.draw``), or the losses are
        not those that were judged.
    :raises UserError: the batch is of another codec or lacks a condition.
    """
    _check_fit(model, bad)
    found = Replay(out_of_range=_out_of_range(model, bad))
    model.train()
    model.progress, model.epoch = bad.progress, bad.epoch
    model.zero_grad(set_to_none=True)
    loss = tokens = 0.0
    trace = _Trace(model)
    try:
        with trace, torch.random.fork_rng([]):
            torch.manual_seed(step_seed(bad.seed, bad.rank, bad.step))
            for batch in bad.batches:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    weights = draw_weights(CPU)
                    out = model(batch, label_smoothing=label_smoothing, level_weights=weights)
                loss += out.loss.item()
                tokens += max(out.normalizer.item(), 1.0)
                if not isfinite(loss):
                    trace.begins("the loss")
                out.loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.loss = loss / tokens
        found.grad_norm = torch.nn.utils.get_total_norm(grads).item() / tokens
    except (IndexError, RuntimeError) as e:
        found.error = reason_of(e)
    finally:
        model.zero_grad(set_to_none=True)
    found.first, found.first_gradient = trace.first, trace.first_gradient
    return found


def _check_fit(model, bad: BadBatch) -> None:
    for batch in bad.batches:
        problem, levels = "", batch.codes.shape[2]
        if levels != model.info.num_codebooks:
            problem = f"codes of {levels} levels, the model has {model.info.num_codebooks}"
        elif missing := [kind for kind in model.conditions if kind not in batch.conditions]:
            problem = f"no {', '.join(missing)} in it, which the model is conditioned on"
        if problem:
            raise UserError(f"{bad.path}: {problem}; give the checkpoint of the same training")


def _out_of_range(model, bad: BadBatch) -> list[str]:
    """The first id outside its table in each sequence, in words."""
    found: list[str] = []
    for number, batch in enumerate(bad.batches):
        codes = (model.info.codebook_size,) * model.info.num_codebooks
        sequences = {"codes": (Padded(batch.codes, batch.lengths), codes)}
        for kind, info in model.conditions.items():
            sequences[kind] = (batch.conditions[kind], info.sizes)
        for name, (padded, sizes) in sequences.items():
            values = padded.values.long()
            real = torch.arange(values.shape[1]) < padded.lengths[:, None]  # (B, S)
            wrong = ((values < 0) | (values >= torch.tensor(sizes))) & real[:, :, None]
            if wrong.any():
                item, at, level = wrong.nonzero()[0].tolist()
                found.append(
                    f"{name} of micro-batch {number}: {values[item, at, level]} at item {item} "
                    f"(row {batch.index[item]} of the index), position {at}, level {level}; "
                    f"valid are 0 to {sizes[level] - 1}"
                )
    return found


class _Trace(contextlib.AbstractContextManager):
    """Notes where the first non-finite value appears, in the order of execution.

    A module inside another ends before it, so the innermost is named. What a module computes
    without submodules (a fused loss, a sum) shows as what the next one is given.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.first: str | None = None
        self.first_gradient: str | None = None
        self._handles: list = []

    def begins(self, where: str) -> None:
        if self.first is None:
            self.first = where

    def __enter__(self) -> _Trace:
        for name, module in self.model.named_modules():
            name = f"{name or 'the model itself'} ({type(module).__name__})"

            def enter(module, args, kwargs, name=name) -> None:
                # NaN only: masks of attention are -inf by right
                if self.first is None and any(t.isnan().any() for t in _floats((args, kwargs))):
                    self.begins(f"what {name} is given")

            def leave(module, args, kwargs, out, name=name) -> None:
                if self.first is None and any(not t.isfinite().all() for t in _floats(out)):
                    self.begins(name)

            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            ]
        for name, parameter in self.model.named_parameters():

            def accumulated(p, name=name) -> None:
                if self.first_gradient is None and not p.grad.isfinite().all():
                    self.first_gradient = name

            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(accumulated)
                self._handles.append(hook)
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()


def _floats(value) -> list[Tensor]:
    """Floating-point tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, Padded):  # integers, and times that are NaN where they are not known
        return []
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        value = getattr(value, "__dict__", {}).values()  # dataclasses: context, output
    return [t for v in value if isinstance(v, (Tensor, tuple, list, dict)) for t in _floats(v)]


def replay_batch(c, path: str | Path, precision: str) -> dict:
    """JSON: what the batch of `path` did and does, with the training's smoothing and weights of
    the levels.

    :param precision: ``auto`` (the training's), ``bf16``, ``fp16`` or ``fp32``.
    :raises UserError: no such batch, one of another training, or no weights to run it through.
    """
    bad = load_bad_batch(path)
    if c.model is None:
        raise UserError(f"{c.path}: no weights to replay {path} with; see rvqlm doctor alone")
    name = c.config.get("precision", "auto") if precision == "auto" else precision
    try:
        dtype = pick_precision(name, CPU)
    except UserError as e:
        raise UserError(f"--replay-precision {name}: {e}; fp32 runs everywhere") from None
    config = c.flags(LossConfig)
    weights = LevelWeights(config, c.model.info.num_codebooks)
    if saved := c.state.get("stepper", {}).get("level_weights"):
        weights.load_state_dict(saved)
    weights.epoch = bad.epoch
    result = replay(c.model, bad, dtype, config.label_smoothing, weights.draw)
    return {
        "path": str(path),
        "step": bad.step,
        "rank": bad.rank,
        "skipped_as": bad.reason,
        "loss_then": bad.loss,
        "grad_norm_then": bad.grad_norm,
        "precision": str(dtype).removeprefix("torch."),
        "rows_of_the_index": [i for batch in bad.batches for i in batch.index.tolist()],
        **dataclasses.asdict(result),
    }


@rule("concern", "replay", "ids out of range: {examples}",
      "the data is of another codec or damaged: rvqlm validate")  # fmt: skip
def ids_out_of_range(c):
    if examples := c.replay["out_of_range"]:
        yield {"where": _place(c), "examples": some(examples, 2)}


def _place(c) -> str:
    return f"step {c.replay['step']:,}, rank {c.replay['rank']}"


@rule("concern", "replay", "an error in the forward or backward pass: {error}",
      "see what stands in the batch's rows")  # fmt: skip
def error_in_replay(c):
    if c.replay["error"]:
        yield {"where": _place(c), "error": c.replay["error"]}


@rule("concern", "replay", "the first non-finite value comes from here, in the forward pass",
      "if weights are finite --replay-precision fp32 tells whether the precision overflows; else "
      "go back to an earlier checkpoint")  # fmt: skip
def first_non_finite_value(c):
    if c.replay["first"]:
        yield {"where": c.replay["first"]}


@rule("concern", "replay", "the first non-finite gradient is that of this parameter",
      "lower --base-lr, or go back to an earlier checkpoint")  # fmt: skip
def first_non_finite_gradient(c):
    if c.replay["first_gradient"]:
        yield {"where": c.replay["first_gradient"]}


@rule("note", "replay", "all values are finite: loss {loss:.4g} (then {loss_then:.4g}), gradient "
      "norm {grad_norm:.4g} (then {grad_norm_then:.4g}); rows {rows} of the index",
      "where the losses agree it is the data that is unusual, else it was the weights")  # fmt: skip
def finite_replay(c):
    if not any(c.replay[name] for name in ("out_of_range", "error", "first", "first_gradient")):
        yield {**c.replay, "where": _place(c), "rows": some(c.replay["rows_of_the_index"])}
