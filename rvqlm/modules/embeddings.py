"""Input side: the codes or fields of one step become one vector.

========== ========================================================================================
sum        the sum of one embedding per level
weighted   each through a feed-forward layer, summed with learned weights
attention  a learned query attends over the levels: their weights depend on the codes
========== ========================================================================================

All tables lie one below the other in one matrix, so all levels are looked up and summed by one
fused call (`embedding_bag`), forward and backward, without a loop over levels and without a
(B, S, K, d) intermediate. That holds for the layers of the other two as well: they see one code
at a time, so where a batch has more steps than a level has codes, they work on the tables, once,
before the lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_HEADS = 4
"""Of `AttentionEmbedding`; must divide the width."""


class SummedTables(nn.Module):
    """Sum over fields of one embedding per field; at the start the sum has unit variance.

    :param sizes: ids of each field, 0 ... sizes[f] - 1.
    """

    def __init__(self, sizes: Sequence[int], dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(sizes), dim))
        nn.init.normal_(self.weight, std=len(sizes) ** -0.5)
        offsets = torch.tensor([0, *accumulate(sizes)][:-1])
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, S, F) integer ids -> (B, S, d) in the dtype of the weights."""
        B, S, K = ids.shape
        rows = (ids.long() + self.offsets).view(B * S, K)
        return F.embedding_bag(rows, self.weight, mode="sum").view(B, S, self.weight.shape[1])

    def muon_matrices(self) -> list[nn.Parameter]:
        """Hidden matrices: none, a table is no map between hidden states."""
        return []


class SumEmbedding(SummedTables):
    """Sum over levels of one embedding per level.

    :param num_embeddings: ids per level, the special one ("no code here", the last) included.
    """

    def __init__(self, num_codebooks: int, num_embeddings: int, dim: int):
        super().__init__((num_embeddings,) * num_codebooks, dim)
        self.num_codebooks, self.num_embeddings = num_codebooks, num_embeddings

    @torch.no_grad()
    def begin_with(self, vectors: Tensor) -> None:
        """Begin with given vectors of the codes, such as the codec's own: those that sound alike
        are alike before anything is learned, also those that the data hardly have.

        Of more dimensions than the width the principal ones are kept. All is turned at random and
        brought to unit variance of the sum; special ids begin as zeros.

        :param vectors: (K', V, D), mean 0 at each level, K' at least the number of levels.
        """
        tables = self.weight.view(self.num_codebooks, self.num_embeddings, -1)
        width, vectors = tables.shape[2], vectors[: self.num_codebooks].double()
        flat = vectors.flatten(0, 1)
        axes = torch.linalg.eigh(flat.mT @ flat).eigenvectors[:, -width:]
        turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
        turned = vectors @ axes @ turn[: axes.shape[1]]
        turned /= (self.num_codebooks * turned.square().mean()).sqrt()
        tables.zero_()[:, :-1] = turned.to(tables)


class FieldEmbedding(SummedTables):
    """Steps of a condition (`rvqlm.condition_info`): sum over fields of unequal vocabularies.

    Padding (any negative id) is looked up as id 0: finite, and for the caller to mask.

    >>> FieldEmbedding((40, 7), 16)(torch.tensor([[[39, 6], [-1, -1]]])).shape
    torch.Size([1, 2, 16])
    """

    def forward(self, ids: Tensor) -> Tensor:
        """(B, S, F) integer ids -> (B, S, d); S may be 0."""
        return super().forward(ids.clamp(min=0))


class _LayeredEmbedding(SumEmbedding):
    """Embedding of a code plus that of its level, norm, and layers that see one code at a time."""

    def __init__(self, num_codebooks: int, num_embeddings: int, dim: int):
        super().__init__(num_codebooks, num_embeddings, dim)
        self.level = nn.Parameter(torch.randn(num_codebooks, dim) * 0.5**0.5)
        nn.init.normal_(self.weight, std=0.5**0.5)  # with the level's, unit variance
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, S, K) integer ids -> (B, S, d) in the dtype of the weights."""
        B, S, K = grid.shape
        rows = (grid.long() + self.offsets).view(B * S, K)
        if len(rows) < self.num_embeddings:
            out = self._of_codes(F.embedding(rows, self.weight) + self.level)
        else:
            tables = self.weight.view(K, self.num_embeddings, -1) + self.level[:, None]
            out = self._of_tables(tables, rows)
        return out.view(B, S, self.weight.shape[1])

    def _of_codes(self, x: Tensor) -> Tensor:
        """Embedded codes (n, K, d) -> (n, d)."""
        raise NotImplementedError

    def _of_tables(self, tables: Tensor, rows: Tensor) -> Tensor:
        """The same from tables (K, ids, d) and rows of them (n, K), as if they were one matrix."""
        raise NotImplementedError


class WeightedEmbedding(_LayeredEmbedding):
    """Sum over levels of x + feed-forward(norm(x)), with learned softmax weights."""

    def __init__(self, num_codebooks: int, num_embeddings: int, dim: int):
        super().__init__(num_codebooks, num_embeddings, dim)
        self.up = nn.Linear(dim, 2 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=False)
        self.level_logits = nn.Parameter(torch.zeros(num_codebooks))
        nn.init.uniform_(self.up.weight, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)
        nn.init.zeros_(self.down.weight)  # begins as the identity

    def _encode(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))

    def _weights(self) -> Tensor:
        # equal weights keep unit variance
        return self.level_logits.softmax(0) * self.num_codebooks**0.5

    def _of_codes(self, x: Tensor) -> Tensor:
        return (self._encode(x) * self._weights()[:, None]).sum(1)

    def _of_tables(self, tables: Tensor, rows: Tensor) -> Tensor:
        tables = self._encode(tables) * self._weights()[:, None, None]
        return F.embedding_bag(rows, tables.flatten(0, 1), mode="sum")

    def muon_matrices(self) -> list[nn.Parameter]:
        return [self.up.weight, self.down.weight]


class AttentionEmbedding(_LayeredEmbedding):
    """Cross-attention of one learned query over the levels of a step.

    Values weighted by softmax(query . key) over the levels, in `ATTENTION_HEADS` parts; starts with
    equal weights.
    """

    def __init__(self, num_codebooks: int, num_embeddings: int, dim: int):
        super().__init__(num_codebooks, num_embeddings, dim)
        if dim % ATTENTION_HEADS:
            raise ValueError(f"width {dim} is not a multiple of {ATTENTION_HEADS} heads")
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.query = nn.Parameter(torch.zeros(ATTENTION_HEADS, dim // ATTENTION_HEADS))
        for matrix in (self.key.weight, self.value.weight):
            nn.init.uniform_(matrix, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded codes (..., d) -> scores (..., H) and values (..., H, D)."""
        y = self.norm(x)
        keys, values = (
            f(y).to(x.dtype).unflatten(-1, self.query.shape) for f in (self.key, self.value)
        )
        scores = (keys * self.query).sum(-1) * self.query.shape[1] ** -0.5
        return scores, values * self.num_codebooks**0.5  # equal weights keep unit variance

    def _of_codes(self, x: Tensor) -> Tensor:
        scores, values = self._encode(x)
        return (scores.softmax(1).unsqueeze(-1) * values).sum(1)

    def _of_tables(self, tables: Tensor, rows: Tensor) -> Tensor:
        scores, values = (t.flatten(0, 1) for t in self._encode(tables))
        H, D = self.query.shape
        weights = F.embedding(rows, scores).softmax(1).transpose(1, 2)  # (n, H, K)
        # a bag per step and head, over a table with a row per code and head
        bags = rows[:, None, :] * H + torch.arange(H, device=rows.device)[:, None]
        return F.embedding_bag(
            bags.flatten(0, 1),
            values.reshape(-1, D),
            mode="sum",
            per_sample_weights=weights.flatten(0, 1),
        )

    def muon_matrices(self) -> list[nn.Parameter]:
        return [self.key.weight, self.value.weight]


INPUT_SIDES: dict[str, type[SumEmbedding]] = {
    "sum": SumEmbedding,
    "weighted": WeightedEmbedding,
    "attention": AttentionEmbedding,
}
