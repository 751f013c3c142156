"""Rows of embedding tables and classifiers, level by level: never updated, near zero.

Codecs leave codes unused, so rows without update are of concern only for most of a level, and for
a level without any living row. What was updated must not be zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from rvqlm.doctor.finding import START, rule, some
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.embeddings import FieldEmbedding, SummedTables
from rvqlm.modules.heads import LinearHeads, TrunkHeads

NEAR_ZERO = 1e-4
"""A row has vanished if its norm is below this share of its level's median. Weight decay alone
takes 90,000 steps at 1e-3 x 0.1 to get there, and AdamW's next update brings a row back above."""


@dataclass
class Table:
    """Rows of one level of a tensor."""

    name: str
    level: str
    rows: Tensor
    """(V, d)"""
    square: Tensor | None
    """second moments of the same shape, where they tell which rows were updated"""
    classifier: bool
    """its rows start equal, at zero, and those of codes without data stay so"""

    @property
    def where(self) -> str:
        return f"{self.level} of {self.name}" if self.level else self.name

    @cached_property
    def norms(self) -> Tensor:
        """(V,)"""
        return torch.linalg.vector_norm(self.rows.float(), dim=1)

    @cached_property
    def untouched(self) -> Tensor:
        """(V,) bool: no update reached the row, or so long ago that its moment underflowed
        (AdamW's 0.95 does in some 2,000 steps)."""
        if self.square is None:
            return torch.zeros(len(self.rows), dtype=torch.bool)
        return ~self.square.any(1)

    @property
    def dead(self) -> bool:
        return not self.norms.any() or bool(self.untouched.all())


def read_tables(
    model: nn.Module, weights: dict[str, Tensor], second: dict[str, Tensor]
) -> list[Table]:
    """Every level of every embedding and classifier, without rows of special ids.

    :param second: second moments by name, where they tell which rows were updated.
    """
    out = []
    for prefix, module in model.named_modules():
        for name, levels in _layout(module, model):
            full = f"{prefix}.{name}" if prefix else name
            width, square = weights[full].shape[-1], second.get(full)
            for level, rows in levels:
                of_level = weights[full].reshape(-1, width)[rows]
                of_square = None if square is None else square.reshape(-1, width)[rows]
                out.append(Table(full, level, of_level, of_square, weights[full].ndim == 3))
    return out


def _layout(module: nn.Module, model: nn.Module):
    """(parameter, [(level, rows)]) of the tables of a module."""
    if isinstance(module, FieldEmbedding):
        cuts = [slice(a, b) for a, b in pairwise([*module.offsets.tolist(), len(module.weight)])]
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
            first = model.info.num_codebooks - n if n > 1 else 0
            yield "weight", _levels(n, size, size, first)


def _levels(count: int, stride: int, codes: int, first: int = 0) -> list[tuple[str, slice]]:
    return [(f"level {first + k}", slice(k * stride, k * stride + codes)) for k in range(count)]


MAX_UNUSED = 0.8
"""Share of a level's codes that the data may lack: of 1024 codes of the embedded codec an hour of
speech lacked up to 0.25, a single synthetic voice 0.52."""
FRAMES_PER_CODE = 20
"""Unused rows are judged once the training has seen so many frames for each code: at 20 a code
that is ten times rarer than the mean is met with 86 %, a usual one always."""


@rule("concern", "embeddings", "a dead level: {what}",
      "a level that the training leaves out is so (a stage, a weight of 0); any other is cut off "
      "from the loss: check --num-quantizers and --level-weights")  # fmt: skip
def dead_level(c):
    for t in c.embeddings:
        if t.norms.any() and t.untouched.all():
            yield {"where": t.where, "what": "no gradient reaches its rows"}
        # heads start at zero: before the first updates that is as it should be
        elif not t.norms.any() and c.step > START and not c.weights_only:
            yield {"where": t.where, "what": "all its rows are zero"}


@rule("concern", "embeddings", "{n} of {V} rows dead: {what}",
      "compare rvqlm validate, which counts the codes of the data; an earlier checkpoint has rows "
      "that were erased")  # fmt: skip
def dead_rows(c):
    for t in c.embeddings:
        if t.dead:
            continue
        V = len(t.rows)
        vanished = (t.norms < NEAR_ZERO * t.norms.median()) & ~t.untouched
        found = [(vanished, "near zero")]
        seen_often = c.state.get("total_frames", 0) >= FRAMES_PER_CODE * V
        if seen_often and int(t.untouched.sum()) > MAX_UNUSED * V:
            found.append((t.untouched, "no update"))
        for mask, what in found:
            if rows := mask.nonzero().flatten().tolist():
                where = f"{t.where}: rows {some(rows)}"
                yield {"where": where, "n": len(rows), "V": V, "what": what}
