"""Two checkpoints side by side: how far each module went, and which flags differ.

Of two checkpoints of one training the change of a module per step tells which part still learns,
and which never did.
"""

from __future__ import annotations

from math import inf, sqrt

from rvqlm.doctor.finding import rule, some
from rvqlm.doctor.measure import by_module, distance, module_of, rms

_OF_A_START = ("exp-dir", "resume", "dry-run")


def compare_checkpoints(checkpoint, other) -> dict:
    """JSON: changes from `other` to `checkpoint`; of a damaged one path and step only."""
    out: dict = {"path": str(other.path), "step": other.step}
    if other.state is None or checkpoint.state is None:
        return out
    mine, theirs = checkpoint.weights, other.weights
    shapes = {k: (list(theirs[k].shape), list(mine[k].shape)) for k in mine if k in theirs}
    steps = abs(checkpoint.step - other.step)
    configs = [x.state.get("model_config") or {} for x in (other, checkpoint)]
    out |= {
        "steps_between": steps,
        "flags": _differences(other.config, checkpoint.config, _OF_A_START),
        "model_config": _differences(*configs),
        "only_here": sorted(mine.keys() - theirs.keys()),
        "only_there": sorted(theirs.keys() - mine.keys()),
        "other_shape": [f"{k} {a} -> {b}" for k, (a, b) in shapes.items() if a != b],
        "modules": [],
    }
    for module, names in by_module(k for k, (a, b) in shapes.items() if a == b).items():
        apart = sum(distance(mine[k], theirs[k]) ** 2 * mine[k].numel() for k in names)
        size = sum(rms(theirs[k]) ** 2 * mine[k].numel() for k in names)
        change = sqrt(apart / size) if size else inf if apart else 0.0
        count = sum(mine[k].numel() for k in names)
        row = {"module": module, "parameters": count, "change": change}
        out["modules"].append(row | ({"change_per_step": change / steps} if steps else {}))
    return out


def _differences(old: dict, new: dict, without=()) -> dict[str, list]:
    """{name: [there, here]} of all values that differ."""
    names = [k for k in {**old, **new} if k not in without]
    return {k: [old.get(k), new.get(k)] for k in names if old.get(k) != new.get(k)}


@rule("concern", "comparison", "codes of another codec: {there} there, {here} here",
      "their losses cannot be compared, and weights of one do not serve the other")  # fmt: skip
def another_codec(c):
    there, here = ((x.state.get("codec") or {}).get("fingerprint") for x in (c.other, c))
    if there != here:
        yield {"where": c.other.path, "there": there, "here": here}


@rule("note", "comparison", "{n} tensors are not in both alike: {names}",
      "they are of models of different shape; only the others are compared")  # fmt: skip
def another_model(c):
    x = c.comparison
    if names := [*x["only_here"], *x["only_there"], *x["other_shape"]]:
        yield {"where": c.other.path, "n": len(names), "names": some(names)}


@rule("concern", "comparison", "no weight changed in {steps:,} steps", "{remedy}")
def no_weight_changed(c):
    modules = c.comparison["modules"]
    trainable = {r["module"] for r in modules}
    if c.model is not None:
        trainable = {module_of(k) for k, p in c.model.named_parameters() if p.requires_grad}
    still = [r["module"] for r in modules if not r["change"] and r["module"] in trainable]
    if not still or not c.comparison["steps_between"]:
        return
    where, remedy = some(still), "these modules are frozen or cut off from the loss"
    if len(still) == len(modules):
        where, remedy = "all modules", "the learning rate was 0, or all steps were skipped"
    yield {"where": where, "steps": c.comparison["steps_between"], "remedy": remedy}
