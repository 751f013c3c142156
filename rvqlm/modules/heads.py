"""Output side: K distributions over V codes from a hidden state, their loss, and drawing from them.

========== ========================================================================================
linear     one linear classifier per level
mlp        per level a norm, a feed-forward layer without residual, and a classifier
residual   the same in a chain: a level's layer adds to the state that the level before left
depth      a small causal transformer over the levels of a frame (`rvqlm.modules.depth`)
========== ========================================================================================

``linear`` and ``mlp`` can be ``shared``: one classifier for all levels, given the level as a
learned vector added to the hidden state. All start with classifiers of zeros, so that the first
loss is exactly ln V. Losses are computed as `rvqlm.modules.fused_loss` tells.

A hidden state may serve all levels, (N, d), or be one level's own, (N, K, d), as where a pattern
gives every level its own step. Heads take fewer levels than the input has where a model predicts
only some: they know nothing but their number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.batch import Most
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.fused_loss import HeadLoss, fused_loss, fused_loss_of_level, fused_trunk_loss

Choose = Callable[[int, Tensor], Tensor]
"""``choose(first_level, logits (N, k, V)) -> codes (N', k)`` of levels first_level ...
first_level + k - 1. N' = N, or a fraction of it where several rows (with and without a condition)
decide together about one sequence: rows n, n + N', n + 2 N' ... are then one sequence's."""


class Heads(nn.Module):
    """What all heads offer."""

    exact_frame = False
    """`loss` is that of the joint distribution of a frame's levels, not of their margins."""

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        valid: Tensor,
        level_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        most: Most | None = None,
    ) -> HeadLoss:
        """Sums of -log p over the valid targets.

        :param hidden: (N, d), or (N, K, d) with a state per level.
        :param targets: (N, K) integer codes. Where not valid any number; depth heads take one
            outside 0 ... V - 1 for "no code here", and others for codes that finer levels see.
        :param valid: (N, K) bool, or weights of the targets in all sums, 0 where not valid.
        :param level_weights: (K,) factors of the loss, 1 by default.
        :param label_smoothing: share of the target spread evenly over the V codes.
        :param most: how many are valid at most; it saves work on a GPU.
        """
        raise NotImplementedError

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """(..., d) -> logits (..., K, V); ``targets`` (..., K) are needed by depth heads only."""
        raise NotImplementedError

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        """(..., d) -> logits (..., V) of one level, at the cost of one."""
        raise NotImplementedError

    def draw(self, hidden: Tensor, choose: Choose) -> Tensor:
        """Codes (N', K) from states (N, d); see `Choose`."""
        return choose(0, self(hidden))

    def muon_matrices(self) -> list[nn.Parameter]:
        """Matrices between hidden states, (M, N) or a stack (K, M, N): not the classifiers."""
        return []


class LinearHeads(Heads):
    """One linear classifier per level: weight (K, V, d).

    :param tied: an embedding whose tables of levels ``first_level`` ... are the classifiers, as in
        VALL-E (Wang et al., 2023, arXiv:2301.02111); its special ids are no codes. Logits are then
        scaled by d^-0.5, which makes the first loss nearly ln V.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        tied: SumEmbedding | None = None,
        first_level: int = 0,
    ):
        super().__init__()
        self._tied = (tied, slice(first_level, first_level + num_codebooks))  # no submodule
        if tied is None:
            self.weight = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim))
        elif self.classifiers.shape != (num_codebooks, codebook_size, dim):
            raise ValueError("the embedding has other levels, codes or width than the heads")

    @property
    def classifiers(self) -> Tensor:
        """(K, V, d)."""
        embedding, levels = self._tied
        if embedding is None:
            return self.weight
        dim = embedding.weight.shape[1]
        tables = embedding.weight.view(-1, embedding.num_embeddings, dim)
        return tables[levels, :-1] * dim**-0.5

    def untie(self, classifiers: Tensor) -> None:
        """Have classifiers (K, V, d) of their own."""
        self._tied = None, slice(0)
        self.weight = nn.Parameter(classifiers)

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        weight = self.classifiers
        K, V, d = weight.shape
        return F.linear(hidden, weight.reshape(K * V, d)).unflatten(-1, (K, V))

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        return F.linear(hidden, self.classifiers[level])

    def loss(
        self, hidden, targets, valid, level_weights=None, label_smoothing=0.0, most=None
    ) -> HeadLoss:
        how = level_weights, label_smoothing, most
        return fused_loss(hidden, self.classifiers, targets, valid, *how)

    def loss_of_level(
        self, hidden, level, targets, valid, level_weights=None, label_smoothing=0.0
    ) -> HeadLoss:
        """`loss` of hidden (B, T, d) where each item has one level (B,), and one target a row:
        targets and valid (B, T); the sums are of all levels."""
        return fused_loss_of_level(
            hidden, self.classifiers, level, targets, valid, level_weights, label_smoothing
        )


Stack = Tensor | nn.ModuleList
"""Matrices (K, out, in), one for each level; or packed, the modules of their products."""


def of_level(stack: Stack, x: Tensor, level: int) -> Tensor:
    """(..., in) -> (..., out) by the matrix of one level."""
    matrix = stack[level]
    return F.linear(x, matrix) if isinstance(matrix, Tensor) else matrix(x)


def of_levels(stack: Stack, x: Tensor) -> Tensor:
    """States (n, in), or of every level (n, K, in), by the matrix of each -> (n, K, out)."""
    if not isinstance(stack, Tensor):
        each = [x] * len(stack) if x.ndim == 2 else x.unbind(1)
        return torch.stack([product(state) for product, state in zip(stack, each)], 1)
    if x.ndim == 2:
        return F.linear(x, stack.flatten(0, 1)).unflatten(1, stack.shape[:2])
    return torch.bmm(x.transpose(0, 1), stack.mT).transpose(0, 1)


class TrunkHeads(Heads):
    """Classifiers of states that layers of the head make, one for each level."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int, shared: bool = False):
        super().__init__()
        self.num_codebooks, self.shared = num_codebooks, shared
        self.codebook_size = codebook_size
        self.weight = nn.Parameter(torch.zeros(1 if shared else num_codebooks, codebook_size, dim))

    def states(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """(n, d) or (n, K, d) -> (n, K, w)."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        leading = hidden.shape[:-1]
        if targets is not None:
            targets = targets.reshape(-1, self.num_codebooks)
        states = self.states(hidden.reshape(-1, hidden.shape[-1]), targets)
        if self.shared:
            logits = of_level(self.weight, states, 0)
        else:
            logits = of_levels(self.weight, states)
        return logits.unflatten(0, leading)

    def loss(
        self, hidden, targets, valid, level_weights=None, label_smoothing=0.0, most=None
    ) -> HeadLoss:
        trunk = [p for p in self.parameters() if p is not self.weight]
        how = level_weights, label_smoothing, most
        return fused_trunk_loss(self.states, trunk, hidden, self.weight, targets, valid, *how)


class SharedLinearHeads(TrunkHeads):
    """One classifier for all levels, of the hidden state plus a vector of the level."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int):
        super().__init__(num_codebooks, codebook_size, dim, shared=True)
        self.level = nn.Parameter(torch.randn(num_codebooks, dim))

    def states(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        return (hidden.unsqueeze(1) if hidden.ndim == 2 else hidden) + self.level

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        return of_level(self.weight, hidden + self.level[level], 0)


class MLPHeads(TrunkHeads):
    """Norm, feed-forward layer without residual, classifier.

    Per level all but the norm, whose gain the matrix after it could hold as well; ``shared`` has
    one of each for all levels, and a vector of the level added before the norm.

    :param expansion: inner width of the feed-forward layer, in widths of the model.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        expansion: float = 1.0,
        shared: bool = False,
    ):
        super().__init__(num_codebooks, codebook_size, dim, shared)
        copies, inner = len(self.weight), round(expansion * dim)
        self.level = nn.Parameter(torch.randn(num_codebooks, dim)) if shared else None
        self.norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Parameter(torch.empty(copies, inner, dim))
        self.down = nn.Parameter(torch.empty(copies, dim, inner))
        # states of about unit size out of normed ones; gelu halves the mean square
        nn.init.uniform_(self.up, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)
        nn.init.uniform_(self.down, -((6 / inner) ** 0.5), (6 / inner) ** 0.5)

    def states(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.shared:
            hidden = (hidden.unsqueeze(1) if hidden.ndim == 2 else hidden) + self.level
            return self._feedforward(self.norm(hidden), 0)
        return of_levels(self.down, F.gelu(of_levels(self.up, self.norm(hidden))))

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        if self.shared:
            hidden = hidden + self.level[level]
        copy = 0 if self.shared else level
        return of_level(self.weight, self._feedforward(self.norm(hidden), copy), copy)

    def _feedforward(self, x: Tensor, copy: int) -> Tensor:
        return of_level(self.down, F.gelu(of_level(self.up, x, copy)), copy)

    def muon_matrices(self) -> list[nn.Parameter]:
        return [self.up, self.down]


class ResidualHeads(TrunkHeads):
    """Level after level, x + feed-forward(norm(x)) and a classifier: what a level found out reaches
    the finer ones, and so do the gradients of these. It is the state that is handed on, no code:
    levels may be drawn in any order, and are independent given the state.

    The order is that of a residual codec, whose levels each refine what those before left.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int, expansion: float = 1.0):
        super().__init__(num_codebooks, codebook_size, dim)
        inner = round(expansion * dim)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Parameter(torch.empty(num_codebooks, inner, dim))
        nn.init.uniform_(self.up, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)
        # begins as the identity
        self.down = nn.Parameter(torch.zeros(num_codebooks, dim, inner))

    def _refine(self, x: Tensor, level: int) -> Tensor:
        inner = F.gelu(of_level(self.up, self.norm(x), level))
        return x + of_level(self.down, inner, level)

    def states(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        x = hidden.unsqueeze(1) if hidden.ndim == 2 else hidden  # (n, 1 or K, d)
        found = []
        for level in range(self.num_codebooks):
            x = self._refine(x, level)
            found.append(x[:, 0])
            if hidden.ndim == 3:  # the others are of states of later levels
                x = x[:, 1:]
        return torch.stack(found, 1)

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        for coarser in range(level + 1):
            hidden = self._refine(hidden, coarser)
        return of_level(self.weight, hidden, level)

    def muon_matrices(self) -> list[nn.Parameter]:
        return [self.up, self.down]
