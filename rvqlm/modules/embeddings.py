"""Input side: the codes of one step become one vector.

The K tables lie in one (K * num_embeddings, d) matrix, so all levels are looked up and summed by
one fused call (`embedding_bag`), forward and backward, without a loop over levels and without a
(B, S, K, d) intermediate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SumEmbedding(nn.Module):
    """Sum over levels of one embedding per level.

    :param num_embeddings: ids per level, the special one included.
    """

    def __init__(self, num_codebooks: int, num_embeddings: int, dim: int):
        super().__init__()
        self.num_codebooks, self.num_embeddings = num_codebooks, num_embeddings
        self.weight = nn.Parameter(torch.empty(num_codebooks * num_embeddings, dim))
        # the sum over K levels has unit variance
        nn.init.normal_(self.weight, std=num_codebooks**-0.5)
        offsets = torch.arange(num_codebooks) * num_embeddings
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, S, K) integer ids -> (B, S, d) in the dtype of the weights."""
        B, S, K = grid.shape
        rows = (grid.long() + self.offsets).view(B * S, K)
        return F.embedding_bag(rows, self.weight, mode="sum").view(B, S, -1)
