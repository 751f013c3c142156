"""Which cells of a (frames, levels) grid are hidden, and which of them are to be predicted.

K = 3 levels below one another, T = 6 frames; # hidden and predicted, - hidden only:

    frame           level           coarse_first (level 1)
    . # . # # .     . # . . # .     . . . . . .
    . # . # # .     # # . . # #     # . # . # .
    . # . # # .     . . # . # .     - - - - - -

frame: all levels of a frame together. level: each cell on its own. coarse_first: of one level, the
coarser being known and the finer hidden (SoundStorm: Borsos et al., 2023, arXiv:2305.09636).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MASKINGS = ("frame", "level", "coarse_first")


class Mask(NamedTuple):
    hidden: Tensor
    """(B, T, K) bool: cells without their code in the input."""
    predicted: Tensor
    """(B, T, K) bool: those of them that are scored."""
    level: Tensor | None = None
    """(B,) their level, where an item's are all of one."""


def lowest(keys: Tensor, allowed: Tensor, number: Tensor) -> Tensor:
    """(B, U) bool: of each row the ``number`` (B,) allowed units of least key.

    >>> lowest(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, False, True]]), torch.ones(1))
    tensor([[False, False,  True]])
    """
    order = keys.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(keys.shape[1], device=keys.device).expand_as(order)
    )
    return (rank < number[:, None]) & allowed


def draw_mask(masking: str, free: Tensor, share: Tensor, keys: Tensor, level: Tensor) -> Mask:
    """Hide part of what may be hidden.

    :param free: (B, T) bool: frames that may be hidden.
    :param share: (B,) in (0, 1]: how much of it; of n units ceil(share * n), at least one.
    :param keys: (B, T, K) random numbers: the units of least key are hidden.
    :param level: (B,) which level is predicted; coarse_first only.
    """
    B, T, K = keys.shape
    cells = free[..., None].expand(B, T, K)

    def number(units: Tensor) -> Tensor:
        return (share * units.sum(1)).ceil().clamp(min=1)

    if masking == "level":
        units = cells.flatten(1)
        hidden = lowest(keys.flatten(1), units, number(units)).view(B, T, K)
        return Mask(hidden, hidden)
    frames = lowest(keys[..., 0], free, number(free))[..., None]
    if masking == "frame":
        hidden = frames.expand(B, T, K)
        return Mask(hidden, hidden)
    levels, one = torch.arange(K, device=keys.device), level[:, None, None]
    predicted = frames & (levels == one)
    return Mask(predicted | cells & (levels > one), predicted, level)
