"""Where a sequence ends: one binary decision per frame, apart from the codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.batch import Batch


class EndHead(nn.Module):
    """Logit that the sequence ends before a frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        # ends are rare: start from "continues"
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -5.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (...)"""
        return self.linear(hidden).squeeze(-1)

    def loss(self, hidden: Tensor, at: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p of "continues" before every scored frame and of "ends" after the last, the latter
        only for items that end where their recording ends; sum and number of decisions.

        :param hidden: (B, S, d).
        :param at: (B or 1, T + 1) int64 step at which it is decided whether the sequence has
            exactly 0, 1, ... T frames.
        """
        B, T = batch.codes.shape[:2]
        index = at.expand(B, -1).clamp(max=hidden.shape[1] - 1).unsqueeze(-1)
        logits = self(hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))).float()  # (B, T+1)
        frames = torch.arange(T + 1, device=hidden.device)[None, :]
        ends = (frames == batch.lengths[:, None]) & batch.ends[:, None]
        decided = (frames < batch.lengths[:, None]) | ends
        if batch.prompt_lengths is not None:
            decided &= frames >= batch.prompt_lengths[:, None]
        nats = F.binary_cross_entropy_with_logits(logits, ends.float(), reduction="none")
        return (nats * decided).sum(), decided.sum().float()
