"""``--init-from``: a training that begins with the weights of another model, as far as they fit.

A tensor is taken when name and shape agree. What was taken, what was not and what may mean
something else now is reported, so that a fine-tuning cannot silently begin with initial weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.checkpoints.file import differing_flags
from rvqlm.checkpoints.loading import find_checkpoint, locate, read
from rvqlm.errors import UserError


@dataclass
class InitReport:
    """What `init_from` did; names are those of the state dict."""

    path: Path
    step: int
    """of the training that the weights are from"""
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """of the model, not in the file: they keep their initial values"""
    unexpected: list[str] = field(default_factory=list)
    """in the file, not of the model"""
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """of another shape in the file (first) than in the model (second): they keep their initial
    values"""
    values: int = 0
    """numbers taken"""
    total: int = 0
    """numbers that the model has"""
    remarks: list[str] = field(default_factory=list)
    """what may mean something else now"""

    def lines(self) -> list[str]:
        """For people: a summary, then what did not match, by module."""
        of_model = len(self.matched) + len(self.missing) + len(self.reshaped)
        lines = [
            f"began with the weights of {self.path} (step {self.step:,}): {len(self.matched)} of "
            f"{of_model} tensors, {100 * self.values / max(1, self.total):.1f} % of the parameters;"
            " optimizer, schedule and position in the data are new"
        ]
        groups = defaultdict(list)
        for name, (theirs, mine) in self.reshaped.items():
            groups[f"{_shape(theirs)} there, {_shape(mine)} here"].append(name)
        for what, names in groups.items():
            lines.append(f"  not taken, other shape ({what}): {by_module(names)}")
        if self.missing:
            lines.append(f"  new, not in the file: {by_module(self.missing)}")
        if self.unexpected:
            lines.append(f"  in the file, not of this model: {by_module(self.unexpected)}")
        return lines + [f"  note: {remark}" for remark in self.remarks]


@torch.no_grad()
def init_from(model, path: str | Path) -> InitReport:
    """Copy into `model` the tensors of another one that agree in name and shape; averaged ones,
    where the file has them.

    Call it before anything is derived from the weights (averages, optimizer).

    :param path: experiment directory (its best checkpoint), checkpoint file, directory of an
        exported model, or the name of a repository of the Hugging Face hub.
    :raises UserError: nothing usable there, nothing matches, or values are not finite.
    """
    path = find_checkpoint(locate(path))
    weights, state = read(path)
    mine = model.state_dict()
    report = InitReport(path, int(state["step"]))
    report.unexpected = sorted(weights.keys() - mine.keys())
    taken: dict[str, Tensor] = {}
    for name, here in mine.items():
        report.total += here.numel()
        there = weights.get(name)
        if there is None:
            report.missing.append(name)
        elif there.shape != here.shape:
            report.reshaped[name] = (tuple(there.shape), tuple(here.shape))
        elif there.is_floating_point() and not there.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite; take another file")
        else:
            taken[name] = there
            report.values += there.numel()
    report.matched = list(taken)
    if not taken:
        first = next(iter(report.reshaped), None)
        why = f", {first} for one is of another shape" if first else ", the names differ"
        raise UserError(
            f"--init-from {path}: none of the {len(mine)} tensors of this {model.name} match those "
            f"of the {state['model_name']} there{why}; give a model of the same family and width"
        )
    for name, there in taken.items():
        mine[name].copy_(there)
    report.remarks = _remarks(model, state)
    if report.values < 0.01 * report.total:
        names = ", ".join(report.matched[:4])
        report.remarks.insert(0, f"almost nothing was taken ({names}); is the width another?")
    return report


def _remarks(model, state: dict) -> list[str]:
    """Equal shapes may hide that the numbers meant something else."""
    found = []
    if state["model_name"] != model.name:
        found.append(f"the weights are of a {state['model_name']}, this is a {model.name}")
    mine = dataclasses.asdict(model.config)
    differing = differing_flags(model.config, mine | state["model_config"])
    if differing:
        found.append(f"other options: {'; '.join(differing)}")
    codec = state["codec"]
    if codec.get("fingerprint") != model.info.fingerprint:
        found.append(
            f"codes of {codec.get('name')} meant something else than those of {model.info.name}: "
            "embeddings and heads have to learn anew"
        )
    for kind, info in model.conditions.items():
        before = state["conditions"].get(kind)
        if before is not None and dict(before.get("settings") or {}) != dict(info.settings):
            found.append(f"the {kind} was prepared in another way: its embeddings have to learn")
        if before is not None and bool(before.get("aligned")) != info.aligned:
            found.append(
                f"that model was not told when the symbols of its {kind} are said, this one is: it "
                "has to learn durations"
                if info.aligned
                else f"that model was told when the symbols of its {kind} are said, this one is not"
            )
    return found


def by_module(names: list[str]) -> str:
    """Tensors counted by module; equal blocks of a stack are one entry.

    >>> by_module(["norm.weight", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"])
    'norm.weight, blocks.0,1 (4 tensors)'
    """
    groups: dict[str, list[str]] = defaultdict(list)
    layers: dict[str, dict[str, None]] = defaultdict(dict)  # numbers of each stack, in order
    for name in names:
        stacked = re.match(r"(.*?)\.(\d+)\.", name)
        module = stacked[1] if stacked else name.rpartition(".")[0] or name
        groups[module].append(name)
        if stacked:
            layers[module][stacked[2]] = None
    entries = []
    for module, members in groups.items():
        shown = f"{module}.{','.join(layers[module])}" if module in layers else module
        entries.append(f"{shown} ({len(members)} tensors)" if len(members) > 1 else members[0])
    return ", ".join(entries)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
