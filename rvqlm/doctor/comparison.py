"""Two checkpoints side by side: how far each module went, and which flags differ.

Of two checkpoints of one training the change of a module per step tells which part still learns,
and which never did.
"""

from __future__ import annotations

from math import inf

from rvqlm.doctor.finding import rule, some
from rvqlm.doctor.measure import by_module, differences, module_of, norm

_OF_A_START = ("exp-dir", "resume", "dry-run")


def compare_checkpoints(checkpoint, other) -> dict:
    """JSON: changes from `other` to `checkpoint`."""
    mine, theirs = checkpoint.weights, other.weights
    alike = [k for k in mine if k in theirs and mine[k].shape == theirs[k].shape]
    steps = abs(checkpoint.step - other.step)
    configs = [x.state["model_config"] for x in (other, checkpoint)]
    modules = []
    for module, names in by_module(alike).items():
        apart, size = norm(differences(mine, theirs, names)), norm(theirs[k] for k in names)
        change = apart / size if size else inf if apart else 0.0
        count = sum(mine[k].numel() for k in names)
        row = {"module": module, "parameters": count, "change": change}
        modules.append(row | ({"change_per_step": change / steps} if steps else {}))
    return {
        "path": str(other.path),
        "step": other.step,
        "steps_between": steps,
        "flags": _differences(other.config, checkpoint.config),
        "model_config": _differences(*configs),
        "unlike": sorted((mine.keys() | theirs.keys()) - set(alike)),
        "modules": modules,
    }


def _differences(old: dict, new: dict) -> dict[str, list]:
    """{name: [there, here]} of all values that differ."""
    names = [k for k in {**old, **new} if k not in _OF_A_START]
    return {k: [old.get(k), new.get(k)] for k in names if old.get(k) != new.get(k)}


@rule("concern", "comparison", "codes of another codec: {there} there, {here} here",
      "their losses cannot be compared, and weights of one do not serve the other")  # fmt: skip
def another_codec(c):
    there, here = (x.state["codec"].get("fingerprint") for x in (c.other, c))
    if there != here:
        yield {"where": c.other.path, "there": there, "here": here}


@rule("note", "comparison", "{n} tensors are not in both alike: {names}",
      "they are of models of different shape; only the others are compared")  # fmt: skip
def another_model(c):
    if names := c.comparison["unlike"]:
        yield {"where": c.other.path, "n": len(names), "names": some(names)}


@rule("concern", "comparison", "no weight changed in {steps:,} steps",
      "modules are frozen or cut off from the loss; if it is all of them the learning rate was 0, "
      "or all steps were skipped")  # fmt: skip
def no_weight_changed(c):
    modules, steps = c.comparison["modules"], c.comparison["steps_between"]
    trainable = {r["module"] for r in modules}
    if c.model is not None:
        trainable = {module_of(k) for k, p in c.model.named_parameters() if p.requires_grad}
    still = [r["module"] for r in modules if not r["change"] and r["module"] in trainable]
    if still and steps:
        yield {"where": some(still), "steps": steps}
