"""Two checkpoints side by side: how far each module went, and which flags differ.

Of two checkpoints of one training the change of a module per step tells which part still learns,
and which never did.
"""

from __future__ import annotations

from collections import defaultdict
from math import sqrt

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient
from rvqlm.doctor.weights import floating, module_of, rms

_OF_A_START = ("exp-dir", "resume", "dry-run")


def compare_states(patient: Patient, other: Patient) -> tuple[dict, list[Finding]]:
    """Changes from `other` to `patient`, and findings: a damaged file, another codec or model,
    modules that did not change between two steps."""
    out: dict = {"path": str(other.path), "step": other.step}
    if other.state is None or patient.state is None:
        found = [f for f in other.findings if other.state is None]
        return out, found
    mine, theirs = floating(patient.state["model"]), floating(other.state["model"])
    common = [k for k in mine if k in theirs and mine[k].shape == theirs[k].shape]
    steps = abs(patient.step - other.step)
    out |= {
        "steps_between": steps,
        "flags": _differences(other.config, patient.config, _OF_A_START),
        "model_config": _differences(
            other.state.get("model_config") or {}, patient.state.get("model_config") or {}
        ),
        "only_here": sorted(mine.keys() - theirs.keys()),
        "only_there": sorted(theirs.keys() - mine.keys()),
        "other_shape": [
            f"{k} {list(theirs[k].shape)} -> {list(mine[k].shape)}"
            for k in mine
            if k in theirs and mine[k].shape != theirs[k].shape
        ],
    }
    modules: dict[str, list[str]] = defaultdict(list)
    for name in common:
        modules[module_of(name)].append(name)
    rows = []
    for module, names in modules.items():
        count = sum(mine[k].numel() for k in names)
        apart = sum(rms(mine[k].float() - theirs[k].float()) ** 2 * mine[k].numel() for k in names)
        size = sum(rms(theirs[k]) ** 2 * mine[k].numel() for k in names)
        change = sqrt(apart / size) if size else float("inf") if apart else 0.0
        row = {"module": module, "parameters": count, "change": change}
        if steps:
            row["change_per_step"] = change / steps
        rows.append(row)
    out["modules"] = rows
    return out, _findings(patient, other, out, steps)


def _differences(old: dict, new: dict, without=()) -> dict[str, list]:
    """{name: [there, here]} of all values that differ."""
    names = [k for k in {**old, **new} if k not in without]
    return {k: [old.get(k), new.get(k)] for k in names if old.get(k) != new.get(k)}


def _findings(patient: Patient, other: Patient, out: dict, steps: int) -> list[Finding]:
    found, there = [], str(other.path)
    codecs = [(p.state.get("codec") or {}).get("fingerprint") for p in (other, patient)]
    if codecs[0] != codecs[1]:
        what = f"codes of another codec: {codecs[0]} there, {codecs[1]} here"
        remedy = "their losses cannot be compared, and weights of one do not serve the other"
        found.append(Finding("concern", "comparison", there, what, remedy))
    differing = [*out["only_here"], *out["only_there"], *out["other_shape"]]
    if differing:
        what = f"{len(differing)} tensors are not in both alike: {some(differing)}"
        remedy = "they are of models of different shape; only the others are compared"
        found.append(Finding("note", "comparison", there, what, remedy))
    trainable = {module_of(k) for k, p in patient.model.named_parameters() if p.requires_grad} if (
        patient.model is not None
    ) else {r["module"] for r in out["modules"]}  # fmt: skip
    still = [r["module"] for r in out["modules"] if not r["change"] and r["module"] in trainable]
    if steps and still:
        whole = len(still) == len(out["modules"])
        what = f"no weight changed in {steps:,} steps"
        remedy = (
            "the learning rate was 0, or all steps were skipped"
            if whole
            else ("these modules are frozen or cut off from the loss")
        )
        where = "all modules" if whole else some(still)
        found.append(Finding("concern", "comparison", where, what, remedy))
    return found
