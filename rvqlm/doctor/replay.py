"""A step that the guards skipped, run through the checkpoint's weights once more.

The work is `rvqlm.training.bad_batch.replay`'s, with the precision, smoothing and level weights of
the training; here its result becomes findings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path

import torch

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient
from rvqlm.errors import UserError


def replay_batch(patient: Patient, path: str | Path, precision: str) -> tuple[dict, list[Finding]]:
    """What the batch of `path` did and does, and findings about it.

    :param precision: ``auto`` (the training's), ``bf16``, ``fp16`` or ``fp32``.
    :raises UserError: no such batch, one of another training, or no weights to run it through.
    """
    from rvqlm.training.bad_batch import load_bad_batch, replay

    bad = load_bad_batch(path)
    if patient.model is None:
        raise UserError(f"{patient.path}: no weights to replay {path} with; see rvqlm doctor alone")
    if not patient.weights_only:
        try:
            patient.model.load_state_dict(patient.state["model"])
        except RuntimeError as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{patient.path}: no weights to replay with: {reason}") from e
    smoothing, draw = _loss(patient)
    dtype = _dtype(patient, precision)
    result = replay(patient.model, bad, dtype, smoothing, draw)
    out = {
        "path": str(path),
        "step": bad.step,
        "rank": bad.rank,
        "skipped_as": bad.reason,
        "loss_then": bad.loss,
        "grad_norm_then": bad.grad_norm,
        "precision": str(dtype).removeprefix("torch."),
        "rows_of_the_index": [i for batch in bad.batches for i in batch.index.tolist()],
        "frames": [n for batch in bad.batches for n in batch.lengths.tolist()],
        **dataclasses.asdict(result),
    }
    return out, _findings(bad, result, out)


def _loss(patient: Patient):
    """Label smoothing and the function that draws level weights, as in training."""
    from rvqlm.training.config import LossConfig
    from rvqlm.training.level_weights import LevelWeights

    values = {f.name: patient.config.get(f.name.replace("_", "-")) for f in fields(LossConfig)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    config = LossConfig(**values)
    weights = LevelWeights(config, patient.model.info.num_codebooks)
    if saved := (patient.state.get("stepper") or {}).get("level_weights"):
        weights.load_state_dict(saved)
    return config.label_smoothing, weights.draw


def _dtype(patient: Patient, precision: str) -> torch.dtype:
    from rvqlm.runtime import pick_precision

    name = patient.config.get("precision", "auto") if precision == "auto" else precision
    try:
        return pick_precision(name, torch.device("cpu"))
    except UserError as e:
        raise UserError(
            f"the replay in the training's precision: {e}; give --replay-precision fp32"
            if precision == "auto"
            else f"--replay-precision {precision}: {e}"
        ) from None


def _findings(bad, result, out: dict) -> list[Finding]:
    where, found = f"step {bad.step:,}, rank {bad.rank}", []

    def add(severity: str, place: str, what: str, remedy: str) -> None:
        found.append(Finding(severity, "replay", place, what, remedy))

    if result.out_of_range:
        what = f"{result.out_of_range:.2%} of the ids are out of range: {some(result.examples, 2)}"
        add("concern", where, what, "the data is of another codec or damaged: rvqlm validate")
    if result.parameters:
        what = "these weights are no numbers, whatever the batch"
        add("concern", some(result.parameters), what, "go back to an earlier checkpoint")
    if result.error:
        what = f"an error in the forward or backward pass: {result.error}"
        add("concern", result.first or where, what, "see what stands in the batch's rows")
    elif result.first:
        what = "the first value that is no number comes from here, in the forward pass"
        add("concern", result.first, what, "the same with --replay-precision fp32 tells whether "
            "the precision overflows")  # fmt: skip
    if result.first_gradient:
        what = "the first gradient that is no number is that of this parameter"
        add("concern", result.first_gradient, what, "lower --base-lr, or go back to an earlier "
            "checkpoint")  # fmt: skip
    if not found:
        rows = some(out["rows_of_the_index"])
        what = f"all values are finite: loss {result.loss:.4g} (then {bad.loss:.4g}), gradient "
        what += f"norm {result.grad_norm:.4g} (then {bad.grad_norm:.4g}); rows {rows} of the index"
        remedy = "where the losses agree it is the data that is unusual, else it was the weights"
        add("note", where, what, remedy)
    return found
