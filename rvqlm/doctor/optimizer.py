"""The optimizer's state: learning rates, moments, steps, and how far the next update goes."""

from __future__ import annotations

import dataclasses
from math import isfinite

import torch
from torch import Tensor

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient
from rvqlm.doctor.weights import START, rms
from rvqlm.errors import UserError
from rvqlm.training.config import OptimConfig
from rvqlm.training.scaled_adam import MAX_RMS, MIN_RMS, SCALE_LR

FIRST = ("exp_avg", "mean", "momentum_buffer")
"""Names of the running mean of a gradient: of AdamW, `ScaledAdam`, `Muon`."""
SECOND = ("exp_avg_sq", "square")
"""The same of its square."""
MAX_UPDATE = 0.1
"""Update over weights in one step above which a matrix is rewritten rather than trained: 1e-3 is
usual, and what starts at zero has 1 / step, so the first 100 steps are not judged."""
MIN_APPLIED = 0.9
"""Share of the steps that the optimizer made; the guards skipped or undid the others."""


def check_optimizer(patient: Patient) -> tuple[list[Finding], dict[str, float]]:
    """Findings, and the rms of the next update of each tensor by name, where known."""
    state = patient.state
    parts = parts_of(state.get("optimizer"))
    if parts is None:
        if patient.weights_only:
            return [], {}
        what = "no optimizer state that this version reads: training would go on cold"
        return [Finding("concern", "optimizer", "optimizer", what, _init_from(patient))], {}
    names = parameter_names(patient, parts)
    if names is None:
        names = {
            (n, i): f"optimizer {n}, parameter {i}"
            for n, part in enumerate(parts)
            for group in part["param_groups"]
            for i in group["params"]
        }
    found = _learning_rate(patient, parts)
    updates: dict[str, float] = {}
    moments: list[tuple[str, dict]] = []
    missing: list[str] = []
    for n, part in enumerate(parts):
        for group in part["param_groups"]:
            for i in group["params"]:
                name, of_param = names[n, i], part["state"].get(i)
                if of_param:
                    moments.append((name, of_param))
                    updates[name] = _next_update(group, of_param, state["model"].get(name))
                else:
                    missing.append(name)
    found += _moments(patient, moments, missing)
    found += _steps(patient, moments)
    updates = {k: u for k, u in updates.items() if u is not None and isfinite(u)}
    return found + _too_large(patient, updates), updates


def parts_of(saved) -> list[dict] | None:
    """State dicts of the single optimizers, however `Optimizers.state_dict` wraps them."""
    if isinstance(saved, dict):
        saved = next((v for v in saved.values() if isinstance(v, (list, tuple))), None)
    if not isinstance(saved, (list, tuple)):
        return None
    parts = [p for p in saved if isinstance(p, dict) and {"state", "param_groups"} <= p.keys()]
    return parts if parts and len(parts) == len(saved) else None


def parameter_names(patient: Patient, parts: list[dict]) -> dict[tuple[int, int], str] | None:
    """Name of each parameter by (optimizer, number in its state); None where the optimizer of the
    checkpoint's flags is not the one that was saved.

    Optimizers know parameters by number only, so the same ones are built once more.
    """
    from rvqlm.training.optim import build_optimizer

    if patient.model is None:
        return None
    values = {f.name: patient.config.get(f.name.replace("_", "-")) for f in _optim_fields()}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    try:
        optimizers = build_optimizer(patient.model, OptimConfig(**values))
    except (UserError, TypeError, ValueError):
        return None
    known = {id(p): name for name, p in patient.model.named_parameters()}
    names = {}
    for n, (optimizer, part) in enumerate(zip(optimizers.parts, parts)):
        params = [p for g in optimizer.param_groups for p in g["params"]]
        numbers = [i for g in part["param_groups"] for i in g["params"]]
        if len(params) != len(numbers):
            return None
        names |= {(n, i): known[id(p)] for i, p in zip(numbers, params)}
    return names if len(optimizers.parts) == len(parts) else None


def _optim_fields():
    return dataclasses.fields(OptimConfig)


def _init_from(patient: Patient) -> str:
    return f"weights alone still serve: --init-from {patient.path}"


def _learning_rate(patient: Patient, parts: list[dict]) -> list[Finding]:
    rates = [float(g.get("lr", 0.0)) for p in parts for g in p["param_groups"]]
    progress = (patient.state.get("schedule") or {}).get("progress")
    where = f"step {patient.step:,}"
    if not all(isfinite(r) and r >= 0 for r in rates):
        what = f"the learning rate is {some(sorted(set(map(str, rates))))}"
        remedy = "check --base-lr and the schedule's flags"
        return [Finding("concern", "optimizer", where, what, remedy)]
    # the schedule's factor is 0 before the first step, and after the last of a cosine
    if max(rates, default=0.0) == 0.0 and patient.step > 1:
        over = progress is not None and progress >= 1
        return [
            Finding(
                "note" if over else "concern",
                "optimizer",
                where,
                "the learning rate is 0: "
                + ("the schedule is at its end" if over else "nothing is learned"),
                "to train on, give a larger budget"
                if over
                else "check --base-lr, --eta-min-ratio and the schedule; a finished schedule was "
                "perhaps resumed",
            )
        ]
    return []


def _moments(patient: Patient, moments: list[tuple[str, dict]], missing) -> list[Finding]:
    found = []
    zero, stopped = [], []
    for name, of_param in moments:
        for key, value in of_param.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            bad = int((~value.isfinite()).sum())
            if bad:
                what = f"{bad:,} of {value.numel():,} values of {key} are NaN or infinite"
                found.append(Finding("concern", "optimizer", name, what, _init_from(patient)))
            elif key in SECOND and bool((value < 0).any()):
                what = "negative second moments: the state is damaged"
                found.append(Finding("concern", "optimizer", name, what, _init_from(patient)))
        first = next((of_param[k] for k in FIRST if k in of_param), None)
        second = next((of_param[k] for k in SECOND if k in of_param), first)
        if isinstance(second, Tensor) and not second.any():
            zero.append(name)
        elif isinstance(first, Tensor) and not first.any():
            stopped.append(name)
    if patient.step <= 1:
        return found
    unlearned = zero + missing
    if len(unlearned) == len(moments) + len(missing):
        what = "all moments are zero or missing: training would go on as if it began"
        found.append(Finding("concern", "optimizer", "all tensors", what, _init_from(patient)))
    elif unlearned and patient.step > START:
        found += _unlearned(patient, unlearned)
    if stopped:
        what = "its gradient has been exactly zero for some hundred steps"
        remedy = "look for activations that died or overflow: rvqlm doctor --replay a bad batch"
        found.append(Finding("concern", "optimizer", some(stopped), what, remedy))
    return found


def _unlearned(patient: Patient, names: list[str]) -> list[Finding]:
    """Parameters without gradient: matrices are of concern, vectors may serve a case that this
    training does not have (masked's `reach` without conditions)."""
    weights, found = patient.state["model"], []
    vectors = [n for n in names if n in weights and weights[n].ndim < 2]
    matrices = [n for n in names if n not in vectors]
    what = f"no gradient reached it in {patient.step:,} steps (its moments are zero or missing)"
    remedy = "parts that the training never uses, such as a condition that no cut has, are so; any "
    remedy += "other is cut off from the loss"
    for severity, those in (("concern", matrices), ("note", vectors)):
        if those:
            found.append(Finding(severity, "optimizer", some(those), what, remedy))
    return found


def _steps(patient: Patient, moments: list[tuple[str, dict]]) -> list[Finding]:
    counts = {int(float(s["step"])) for _, s in moments if "step" in s}
    if not counts or not patient.step:
        return []
    most = max(counts)
    if most > patient.step:
        what = f"it has made {most:,} steps, the training {patient.step:,}: of another run?"
        return [Finding("concern", "optimizer", "step", what, _init_from(patient))]
    if most < MIN_APPLIED * patient.step:
        what = f"only {most:,} of {patient.step:,} steps were applied, the others were skipped, or "
        what += "undone by a return to a checkpoint"
        return [Finding("concern", "optimizer", "step", what, "see the findings about the log")]
    return []


def _next_update(group: dict, of_param: dict, weights: Tensor | None) -> float | None:
    """Rms of what a step like the last ones changes; None where that is not known.

    AdamW: the update of its moments with their biases corrected (Kingma & Ba, 2015,
    arXiv:1412.6980) and the decay. `ScaledAdam`: that times the size of the tensor, and its change
    of scale. `Muon`: 0.2 times the learning rate, to which it scales.
    """
    lr = float(group.get("lr", 0.0))
    if "momentum_buffer" in of_param:
        return 0.2 * lr
    first, second = (next((of_param[k] for k in names if k in of_param), None)
                     for names in (FIRST, SECOND))  # fmt: skip
    if weights is None or first is None or second is None or second.shape != weights.shape:
        return None
    steps = max(1.0, float(of_param["step"]))
    up, down = (1 - beta**steps for beta in group["betas"])
    change = (first.float() / up) / ((second.float() / down).clamp(min=0).sqrt() + group["eps"])
    if "mean" in of_param:
        if weights.numel() == 1:
            return lr * SCALE_LR * rms(change)
        root = (max(float(of_param["scale_square"]), 0.0) / down) ** 0.5 + group["eps"]
        scale = float(of_param["scale_mean"]) / up / root
        size = min(max(rms(weights), MIN_RMS), MAX_RMS)
        return lr * rms(torch.add(size * change, weights.float(), alpha=SCALE_LR * scale))
    return lr * rms(torch.add(change, weights.float(), alpha=group.get("weight_decay", 0.0)))


def _too_large(patient: Patient, updates: dict[str, float]) -> list[Finding]:
    if patient.step <= 100:
        return []
    weights = patient.state["model"]
    large = {
        name: update / rms(weights[name])
        for name, update in updates.items()
        if name in weights and weights[name].ndim > 1 and weights[name].any()
    }
    large = {k: r for k, r in large.items() if isfinite(r) and r > MAX_UPDATE}
    if not large:
        return []
    where = some(f"{k} ({r:.2g})" for k, r in sorted(large.items(), key=lambda kr: -kr[1]))
    what = f"a step changes it by more than {MAX_UPDATE:g} of its size"
    return [Finding("concern", "optimizer", where, what, "lower --base-lr")]
