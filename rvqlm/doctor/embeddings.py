"""Rows of embedding tables and classifiers, level by level: never updated, near zero, alike.

A row without second moment belongs to a code that the training did not see, or so long ago that
its moment underflowed (AdamW's 0.95 does in some 2,000 steps). Codecs leave codes unused, so that
is of concern only for most of a level, and for a level without any living row. What was updated
must not be zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient
from rvqlm.doctor.optimizer import SECOND, parameter_names, parts_of
from rvqlm.doctor.weights import START
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.embeddings import FieldEmbedding, SummedTables
from rvqlm.modules.heads import LinearHeads, TrunkHeads

MAX_UNUSED = 0.8
"""Share of a level's codes that the data may lack: of 1024 codes of the embedded codec an hour of
speech lacked up to 0.25, a single synthetic voice 0.52."""
NEAR_ZERO = 1e-4
"""A row has vanished if its norm is below this share of its level's median. Weight decay alone
takes 90,000 steps at 1e-3 x 0.1 to get there, and AdamW's next update brings a row back above."""
FRAMES_PER_CODE = 20
"""Unused rows are judged once the training has seen so many frames for each code: at 20 a code
that is ten times rarer than the mean is met with 86 %, a usual one always."""


@dataclass
class Table:
    """Rows of one level of a tensor."""

    name: str
    level: str
    rows: Tensor
    """(V, d)"""
    square: Tensor | None
    """second moments of the same shape"""
    classifier: bool = False
    """its rows start equal, at zero, and those of codes without data stay so"""

    @property
    def where(self) -> str:
        return f"{self.level} of {self.name}" if self.level else self.name


def check_levels(patient: Patient) -> list[Finding]:
    """Findings about the rows of every level."""
    if patient.model is None:
        return []
    found, unused, left_out = [], {}, _left_out(patient)
    for table in tables_of(patient):
        if not table.rows.isfinite().all():
            continue  # `doctor_weights` names it
        if table.classifier and table.level in left_out:
            continue
        more, untouched = _check_table(patient, table)
        found += more
        if untouched:
            unused.setdefault(table.name, []).append((table.level, untouched, len(table.rows)))
    what = "rows without update: of codes that the training data does not have, or hardly ever"
    for name, levels in unused.items():
        counted = some((f"{level} {n} of {V}".strip() for level, n, V in levels), 16)
        remedy = "rvqlm validate counts the codes of the data"
        found.append(Finding("note", "embeddings", f"{name}: {counted}", what, remedy))
    return found


def _left_out(patient: Patient) -> set[str]:
    """Levels that the training's own flags give no weight in the loss."""
    weights = patient.config.get("level-weights") or []
    return {f"level {k}" for k, w in enumerate(weights) if w.replace(".", "").strip("0") == ""}


def tables_of(patient: Patient) -> list[Table]:
    """Every level of every embedding and classifier, without rows of special ids."""
    weights, second = patient.state["model"], _second_moments(patient)
    out = []
    for prefix, module in patient.model.named_modules():
        for name, cut in _layout(module, patient):
            full = f"{prefix}.{name}" if prefix else name
            tensor, square = weights.get(full), second.get(full)
            if tensor is None or tensor.shape != getattr(module, name).shape:
                continue
            for level, rows in cut:
                flat = None if square is None else square.reshape(-1, square.shape[-1])[rows]
                of_level = tensor.reshape(-1, tensor.shape[-1])[rows]
                out.append(Table(full, level, of_level, flat, tensor.ndim == 3))
    return out


def _layout(module: nn.Module, patient: Patient):
    """(parameter, [(level, rows)]) of the tables of a module."""
    if isinstance(module, FieldEmbedding):
        edges = [*module.offsets.tolist(), len(module.weight)]
        cuts = [slice(a, b) for a, b in pairwise(edges)]
        names = [f"field {n}" for n in range(len(cuts))] if len(cuts) > 1 else [""]
        yield "weight", list(zip(names, cuts))
    elif isinstance(module, SummedTables) and hasattr(module, "num_embeddings"):
        size = module.num_embeddings
        yield "weight", _levels(module.num_codebooks, size, size - 1)
    elif isinstance(module, nn.Embedding):
        yield "weight", [("", slice(None))]
    elif isinstance(module, DepthHeads):
        size = module.weight.shape[1] + 1
        yield "tables", _levels(len(module.tables) // size, size, size - 1)
        yield "weight", _levels(len(module.weight), size - 1, size - 1)
    elif isinstance(module, (LinearHeads, TrunkHeads)) and hasattr(module, "weight"):
        n, size = module.weight.shape[:2]
        if getattr(module, "shared", False):
            yield "weight", [("all levels", slice(0, size))]
        else:  # heads of some levels are those of the last ones, or of level 0
            first = patient.model.info.num_codebooks - n if n > 1 else 0
            yield "weight", _levels(n, size, size, first)


def _levels(count: int, stride: int, codes: int, first: int = 0) -> list[tuple[str, slice]]:
    return [(f"level {first + k}", slice(k * stride, k * stride + codes)) for k in range(count)]


def _second_moments(patient: Patient) -> dict[str, Tensor]:
    parts = parts_of(patient.state.get("optimizer"))
    names = parameter_names(patient, parts) if parts else None
    found = {}
    for (n, i), name in (names or {}).items():
        of_param = parts[n]["state"].get(i, {})
        square = next((of_param[k] for k in SECOND if k in of_param), None)
        weights = patient.state["model"].get(name)
        if square is not None and weights is not None and square.shape == weights.shape:
            found[name] = square
    if not any(square.any() for square in found.values()):
        return {}  # `doctor_optimizer` says that all are zero
    return found


def _check_table(patient: Patient, table: Table) -> tuple[list[Finding], int]:
    """Findings of concern, and the number of rows without update where that is none."""
    V = len(table.rows)
    norms = torch.linalg.vector_norm(table.rows.float(), dim=1)
    if not norms.any():
        # heads start at zero: before the first updates that is as it should be
        if patient.step <= START and not patient.weights_only:
            return [], 0
        what = "a dead level: all its rows are zero"
        remedy = "check --num-quantizers and the weights of the levels; go back to a checkpoint "
        remedy += "where it lives"
        return [Finding("concern", "embeddings", table.where, what, remedy)], 0
    untouched = torch.zeros(V, dtype=torch.bool)
    if table.square is not None and patient.step > START:
        untouched = ~table.square.any(1)
    if untouched.all():
        what = "a dead level: no gradient reaches its rows"
        remedy = "a level that the training leaves out is so (a stage, a weight of 0); any other "
        remedy += "is cut off from the loss"
        return [Finding("concern", "embeddings", table.where, what, remedy)], 0
    frames, count = patient.state.get("total_frames"), int(untouched.sum())
    early = frames is not None and frames < FRAMES_PER_CODE * V
    found = []
    if count > MAX_UNUSED * V and not early:
        where, what = f"{table.where}: {_rows(untouched)}", f"{count} of {V} rows dead: no update"
        remedy = "compare rvqlm validate: where the data has these codes, training does not"
        found.append(Finding("concern", "embeddings", where, what, remedy))
        count = 0
    vanished = (norms < NEAR_ZERO * norms.median()) & ~untouched
    if vanished.any():
        where = f"{table.where}: {_rows(vanished)}"
        what = f"{int(vanished.sum())} of {V} rows dead: near zero"
        remedy = "they were erased, or never came back from zero; an earlier checkpoint has them"
        found.append(Finding("concern", "embeddings", where, what, remedy))
    doubles = _duplicates(table.rows) & ~(untouched | vanished)
    if doubles.any() and not table.classifier:
        where = f"{table.where}: {_rows(doubles)}"
        what = f"{int(doubles.sum())} rows equal others exactly: these codes are all one"
        remedy = "the table was filled or copied wrongly; an earlier checkpoint shows since when"
        found.append(Finding("concern", "embeddings", where, what, remedy))
    return found, count


def _rows(mask: Tensor) -> str:
    return f"rows {some(mask.nonzero().flatten().tolist())}"


def _duplicates(rows: Tensor) -> Tensor:
    """(V,) bool: a row equals an earlier or later one."""
    _, inverse, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[inverse] > 1
