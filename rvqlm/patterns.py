"""Codebook patterns: how the (T, K) grid of codes is laid out in the steps of a sequence model.

A frame has K codes, a transformer makes one step at a time; a pattern says which codes share a
step. Each is one formula, `Pattern.steps`: the step at which the code of frame t and level k
stands. Interleaving scatters codes to those steps, de-interleaving gathers them back. Cells of
the step grid that hold no code carry a special id. The idea and the names follow MusicGen
(Copet et al., 2023, arXiv:2306.05284).

The code of frame t, level k, written ``tk``; steps run to the right; ``.`` is an empty cell::

    parallel                 delay                       flatten (K = 2)
    level 0  00 10 20 30     level 0  00 10 20 30 .  .   level 0  00 .  10 .  20 .
    level 1  01 11 21 31     level 1  .  01 11 21 31 .   level 1  .  01 .  11 .  21
    level 2  02 12 22 32     level 2  .  .  02 12 22 32

    coarse_first
    level 0  00 10 20 30 .  .  .  .
    level 1  .  .  .  .  01 11 21 31
    level 2  .  .  .  .  02 12 22 32
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rvqlm.errors import UserError


class Pattern(ABC):
    """Layout of K codebooks on steps.

    A step must come no earlier than every step it is to be predicted from, so for each level the
    formula grows with t. ``exact`` says whether a model with independent heads per level, one
    step at a time, can represent any joint distribution of the codes: then its loss estimates the
    entropy of the codes, else it is a bound from above.
    """

    name: str
    exact = False

    def __init__(self, num_codebooks: int):
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks must be positive, not {num_codebooks}")
        self.num_codebooks = num_codebooks

    @abstractmethod
    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Step of every code.

        :param frames: (T,) int64 frame numbers, counted from 0.
        :param lengths: (B,) int64 frames per item; only patterns whose layout depends on the
            whole length (coarse_first) look at it.
        :return: (B or 1, T, K) int64.
        """

    @abstractmethod
    def num_steps(self, num_frames: int) -> int:
        """Steps that a sequence of ``num_frames`` frames takes."""

    def grid_steps(self, num_frames: int, with_end: bool = False) -> int:
        """Steps of the padded grid; ``with_end`` leaves room for the step after the last frame,
        where the end of the sequence is decided."""
        if not with_end:
            return self.num_steps(num_frames)
        return max(self.num_steps(num_frames), self.end_step(num_frames) + 1)

    def end_step(self, num_frames: int) -> int:
        """The step at which it is decided that the sequence has exactly ``num_frames`` frames:
        where level 0 of the next frame would stand."""
        last = torch.tensor([num_frames])
        return int(self.steps(last, last + 1)[0, 0, 0])

    def interleave(
        self, codes: Tensor, lengths: Tensor, empty: int, num_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Lay codes out on steps.

        :param codes: (B, T, K) integers; what lies past ``lengths`` is ignored.
        :param lengths: (B,) valid frames.
        :param empty: id for cells without a code.
        :param num_steps: width of the grid, `num_steps` of T by default.
        :return: grid (B, S, K) of the dtype of ``codes`` and a mask (B, S, K), true where the
            grid holds a code: each valid code exactly once.
        """
        B, T, K = codes.shape
        S = self.num_steps(T) if num_steps is None else num_steps
        frames = torch.arange(T, device=codes.device)
        steps = self.steps(frames, lengths).expand(B, T, K)
        real = (frames[None, :] < lengths[:, None])[:, :, None].expand(B, T, K)
        # where a layout depends on the length, padding could fall on a valid cell: send it to a
        # spare column that is cut off again
        steps = torch.where(real, steps, S)
        grid = codes.new_full((B, S + 1, K), empty).scatter_(1, steps, codes)
        mask = torch.zeros(B, S + 1, K, dtype=torch.bool, device=codes.device)
        mask.scatter_(1, steps, real)
        return grid[:, :S].masked_fill(~mask[:, :S], empty), mask[:, :S]

    def deinterleave(self, grid: Tensor, lengths: Tensor, num_frames: int, fill: int) -> Tensor:
        """Inverse of `interleave`: (B, S, K) -> (B, T, K), ``fill`` past ``lengths``."""
        B, _, K = grid.shape
        frames = torch.arange(num_frames, device=grid.device)
        steps = self.steps(frames, lengths).expand(B, num_frames, K)
        real = (frames[None, :] < lengths[:, None])[:, :, None]
        codes = grid.gather(1, steps.clamp(max=grid.shape[1] - 1))
        return codes.masked_fill(~real, fill)

    def frames(self, num_frames: int, num_steps: int) -> Tensor:
        """The inverse map for one sequence: (S, K) int64 frame of each cell, -1 where empty."""
        length = torch.tensor([num_frames])
        numbers = torch.arange(num_frames)[None, :, None].expand(1, -1, self.num_codebooks)
        return self.interleave(numbers, length, -1, num_steps)[0][0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_codebooks={self.num_codebooks})"


class DelayPattern(Pattern):
    """Level k stands ``delays[k]`` steps late, so that at each step it may depend on the coarser
    levels of its own frame. 0, 1, 2, ... by default; T + max(delays) steps."""

    name = "delay"

    def __init__(self, num_codebooks: int, delays: list[int] | None = None):
        super().__init__(num_codebooks)
        self.delays = list(range(num_codebooks)) if delays is None else list(delays)
        if len(self.delays) != num_codebooks or min(self.delays) != 0 or self.delays[0] != 0:
            raise UserError(
                f"delays {self.delays} do not fit {num_codebooks} codebooks: give one number per "
                "level, the first 0 and none negative"
            )
        self.exact = num_codebooks == 1

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        delays = torch.tensor(self.delays, device=frames.device)
        return (frames[:, None] + delays[None, :])[None]

    def num_steps(self, num_frames: int) -> int:
        return num_frames + max(self.delays)


class ParallelPattern(DelayPattern):
    """All levels of a frame in one step: T steps; the levels of a frame are predicted
    independently of one another, given the past."""

    name = "parallel"

    def __init__(self, num_codebooks: int):
        super().__init__(num_codebooks, [0] * num_codebooks)


class FlattenPattern(Pattern):
    """One code a step, level after level: T * K steps, exact."""

    name = "flatten"
    exact = True

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        levels = torch.arange(self.num_codebooks, device=frames.device)
        return (frames[:, None] * self.num_codebooks + levels[None, :])[None]

    def num_steps(self, num_frames: int) -> int:
        return num_frames * self.num_codebooks


class CoarseFirstPattern(Pattern):
    """Level 0 of all frames, then the other levels of all frames together: 2 T steps.

    Where the second half begins depends on the length, so it differs between the items of a
    batch.
    """

    name = "coarse_first"

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        fine = torch.arange(self.num_codebooks, device=frames.device) > 0
        return frames[None, :, None] + lengths[:, None, None] * fine[None, None, :]

    def num_steps(self, num_frames: int) -> int:
        return num_frames * (2 if self.num_codebooks > 1 else 1)


PATTERNS = {p.name: p for p in (ParallelPattern, DelayPattern, FlattenPattern, CoarseFirstPattern)}


def make_pattern(name: str, num_codebooks: int) -> Pattern:
    """Pattern by name; `UserError` lists the names when there is none such."""
    if name not in PATTERNS:
        raise UserError(f"unknown pattern {name!r}; choose one of {', '.join(PATTERNS)}")
    return PATTERNS[name](num_codebooks)
