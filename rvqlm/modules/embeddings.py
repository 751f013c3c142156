"""Input side: the codes or fields of one step become one vector.

All tables lie one below the other in one matrix, so all levels are looked up and summed by one
fused call (`embedding_bag`), forward and backward, without a loop over levels and without a
(B, S, K, d) intermediate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SummedTables(nn.Module):
    """Sum over fields of one embedding per field; at the start the sum has unit variance.

    :param sizes: ids of each field, 0 ... sizes[f] - 1.
    """

    def __init__(self, sizes: Sequence[int], dim: int):
        super().__init__()
        sizes = torch.tensor(sizes)
        self.weight = nn.Parameter(torch.empty(int(sizes.sum()), dim))
        nn.init.normal_(self.weight, std=len(sizes) ** -0.5)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)

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


class FieldEmbedding(SummedTables):
    """Steps of a condition (`rvqlm.condition_info`): sum over fields of unequal vocabularies.

    Padding (any negative id) is looked up as id 0: finite, and for the caller to mask.

    >>> FieldEmbedding((40, 7), 16)(torch.tensor([[[39, 6], [-1, -1]]])).shape
    torch.Size([1, 2, 16])
    """

    def forward(self, ids: Tensor) -> Tensor:
        """(B, S, F) integer ids -> (B, S, d); S may be 0."""
        return super().forward(ids.clamp(min=0))
