"""Several sequences in a row: where each stands, and attention that keeps them apart.

A padded batch spends computation on padding; rows that are filled with whole sequences, each at
positions 0, 1, 2, ... of its own and seeing none of the others, hardly do. Conditions that stand
before a sequence stand in the row too, without what they are padded with. What a sequence is given
and what comes out is the same either way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor

from rvqlm.batch import mask_of, to_device
from rvqlm.modules.attention import as_bias, attend
from rvqlm.modules.native_training import Part


class Documents:
    """B sequences, padded to S steps, in R rows of W steps.

    >>> docs = Documents(torch.tensor([[0, 2], [0, 1], [1, 3]]), size=3)
    >>> docs.item.tolist()
    [[0, 0, 1], [2, 2, 2]]
    >>> docs.pack(torch.arange(9).view(3, 3)).tolist()
    [[0, 1, 3], [6, 7, 8]]

    :param rows: (B, 2) on the host: the row of each and its steps.
    :param size: S, at least the steps of each.
    :param lead: (B, M) bool on the host: which of M steps, padded, stand before those of each
        sequence, seen by all of its own whatever their order. M is 0 where it is None.
    """

    def __init__(
        self,
        rows: Tensor,
        size: int,
        device: torch.device | str = "cpu",
        lead: Tensor | None = None,
    ):
        lead = torch.empty(len(rows), 0, dtype=torch.bool) if lead is None else lead
        exists = torch.cat([lead, mask_of(rows[:, 1], size)], 1)
        lengths, leads = exists.sum(1).tolist(), lead.sum(1).tolist()
        found: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows[:, 0].tolist()):
            found[row].append(number)
        width = max(sum(lengths[n] for n in row) for row in found.values())
        item = torch.full((len(found), width), -1)
        place = torch.zeros(len(found), width, dtype=torch.long)
        back = torch.zeros(len(rows), size, dtype=torch.long)
        self.parts: list[tuple[int, int]] = []
        """Steps of the sequences and of what is left of each row, in order, and how many lead."""
        for line, row in enumerate(found.values()):
            at = 0
            for number in row:
                begin, end = at + leads[number], at + lengths[number]
                item[line, at:end] = number
                place[line, at:end] = exists[number].nonzero().flatten()
                back[number, : end - begin] = line * width + torch.arange(begin, end)
                self.parts.append((end - at, begin - at))
                at = end
            if at < width:
                self.parts.append((width - at, 0))
        self.real = to_device(item >= 0, device)
        """(R, W) bool"""
        self.item = to_device(item.clamp(min=0), device)
        """(R, W) which sequence; 0 where there is none."""
        self.number = to_device(item, device)
        self.leads = to_device((item >= 0) & (place < lead.shape[1]), device)
        """(R, W) bool: steps that all of their sequence see."""
        places = item.clamp(min=0) * exists.shape[1] + place
        self._from = to_device(places, device)  # (R, W) in B * (M + S)
        self._back = to_device(back, device)  # (B, S) in R * W

    def pack(self, x: Tensor) -> Tensor:
        """(B, M + S, ...) -> (R, W, ...); 0 where there is no step."""
        rows = x.flatten(0, 1).index_select(0, self._from.flatten())
        rows = rows.unflatten(0, self._from.shape)
        return rows.masked_fill(~self.real.view(*self.real.shape, *[1] * (x.ndim - 2)), 0)

    def unpack(self, x: Tensor) -> Tensor:
        """(R, W, ...) -> (B, S, ...); anything finite past the steps of a sequence."""
        return x.flatten(0, 1).index_select(0, self._back.flatten()).unflatten(0, self._back.shape)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool,
        dropout: float,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """SDPA of (R, H, W, D) in which no sequence sees another; `causal` ones nothing later, but
        for what leads; and nothing that ``key_mask`` (R, W) hides.

        One call each, which computes nothing that is not seen. A GPU, where each is a launch, has
        `bias` instead.
        """
        parts = zip(*(self._split(t.transpose(1, 2)) for t in (q, k, v)), self._masks(key_mask))
        made = [
            attend(*(t.transpose(1, 2) for t in qkv), mask, causal, lead, dropout)
            for (*qkv, mask), (_, lead) in zip(parts, self.parts)
        ]
        R, H, W, D = q.shape
        return torch.cat(made, 2).view(H, R, W, D).transpose(0, 1)

    def natively(
        self, cos: Tensor, sin: Tensor, key_mask: Tensor | None, causal: bool
    ) -> list[Part]:
        """The same for `rvqlm.modules.native_training.attend_each`; cos and sin (R, W, D/2)."""
        parts = zip(self._split(cos), self._split(sin), self._masks(key_mask), self.parts)
        return [Part((1, n), c, s, mask, causal, lead) for c, s, mask, (n, lead) in parts]

    def _split(self, x: Tensor) -> Iterable[Tensor]:
        """(R, W, ...) -> (1, n, ...) of each of `parts`."""
        return x.flatten(0, 1)[None].split([steps for steps, _ in self.parts], 1)

    def _masks(self, key_mask: Tensor | None) -> Iterable[Tensor | None]:
        return repeat(None) if key_mask is None else self._split(key_mask)

    def bias(self, causal: bool, dtype: torch.dtype, key_mask: Tensor | None = None) -> Tensor:
        """(R, 1, W, W), see `rvqlm.modules.attention.bias_of`; steps that are none see each other,
        since each must see one."""
        seen = (self.number[:, :, None] == self.number[:, None, :])[:, None]
        if causal:
            seen = seen.tril() | (seen & self.leads[:, None, None])
        if key_mask is not None:
            seen = seen & key_mask[:, None, None]
        return as_bias(seen, dtype)
