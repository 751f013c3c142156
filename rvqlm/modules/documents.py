"""Several sequences in a row: where each stands, and attention that keeps them apart.

A padded batch spends computation on padding; rows that are filled with whole sequences, each at
positions 0, 1, 2, ... of its own and seeing none of the others, hardly do. What a sequence is given
and what comes out is the same either way.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from rvqlm.batch import to_device
from rvqlm.modules.attention import as_bias, attend, masks_in_blocks


class Documents:
    """B sequences, padded to S steps, in R rows of W steps.

    >>> docs = Documents(torch.tensor([[0, 2], [0, 1], [1, 3]]), size=3)
    >>> docs.item.tolist()
    [[0, 0, 1], [2, 2, 2]]
    >>> docs.pack(torch.arange(9).view(3, 3)).tolist()
    [[0, 1, 3], [6, 7, 8]]

    :param rows: (B, 2) on the host: the row of each and its steps.
    :param size: S, at least the steps of each.
    """

    def __init__(self, rows: Tensor, size: int, device: torch.device | str = "cpu"):
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, (row, steps) in enumerate(rows.tolist()):
            found[row].append((number, steps))
        width = max(sum(steps for _, steps in row) for row in found.values())
        item = torch.full((len(found), width), -1)
        place = torch.zeros(len(found), width, dtype=torch.long)
        back = torch.zeros(len(rows), size, dtype=torch.long)
        self.sizes: list[int] = []
        """Steps of the sequences and of what is left of each row, in order."""
        for line, row in enumerate(found.values()):
            at = 0
            for number, steps in row:
                own = torch.arange(steps)
                item[line, at : at + steps] = number
                place[line, at : at + steps] = own
                back[number, :steps] = line * width + at + own
                self.sizes.append(steps)
                at += steps
            if at < width:
                self.sizes.append(width - at)
        self.real = to_device(item >= 0, device)
        """(R, W) bool"""
        self.item = to_device(item.clamp(min=0), device)
        """(R, W) which sequence; 0 where there is none."""
        self.number = to_device(item, device)
        self._from = to_device(item.clamp(min=0) * size + place, device)  # (R, W) in B * S
        self._back = to_device(back, device)  # (B, S) in R * W

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, ...) -> (R, W, ...); 0 where there is no step."""
        rows = x.flatten(0, 1).index_select(0, self._from.flatten())
        rows = rows.unflatten(0, self._from.shape)
        return rows.masked_fill(~self.real.view(*self.real.shape, *[1] * (x.ndim - 2)), 0)

    def unpack(self, x: Tensor) -> Tensor:
        """(R, W, d) -> (B, S, d); anything finite past the steps of a sequence."""
        return x.flatten(0, 1).index_select(0, self._back.flatten()).unflatten(0, self._back.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> Tensor:
        """SDPA of (R, H, W, D) in which no sequence sees another; `causal` ones nothing later.

        One call each, which computes nothing that is not seen. A GPU, where each is a launch, has
        `bias` instead.
        """
        R, H, W, D = q.shape
        parts = [t.transpose(1, 2).reshape(R * W, H, D).split(self.sizes) for t in (q, k, v)]
        made = [
            attend(*(t.transpose(0, 1)[None] for t in part), causal=causal, dropout=dropout)
            for part in zip(*parts)
        ]
        return torch.cat(made, 2).view(H, R, W, D).transpose(0, 1)

    def bias(self, causal: bool, dtype: torch.dtype) -> Tensor | None:
        """(R, 1, W, W), see `rvqlm.modules.attention.bias_of`; steps that are none see each other,
        since each must see one."""
        if masks_in_blocks(self.number.device):
            return None
        seen = (self.number[:, :, None] == self.number[:, None, :])[:, None]
        return as_bias(seen.tril() if causal else seen, dtype)
