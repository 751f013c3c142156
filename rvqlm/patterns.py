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

    delay 0,1,1
    level 0  00 10 20 30 .
    level 1  .  01 11 21 31
    level 2  .  02 12 22 32
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
    steps_per_frame = 1
    """Steps from a frame to the next: what scales the time axis."""

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
    def cells(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """The inverse: frame of every cell, -1 where none can stand. Cells past the last frame
        name frames past it.

        :param steps: (S,) int64 step numbers.
        :param lengths: (B,) int64 frames per item, as in `steps`.
        :return: (B or 1, S, K) int64.
        """

    def positions(self, steps: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, S) places of steps on the time axis, where they are not the steps themselves."""
        return None

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_codebooks={self.num_codebooks})"


class DelayPattern(Pattern):
    """Level k stands ``delays[k]`` steps late, so that at each step it may depend on the coarser
    levels of its own frame. 0, 1, 2, ... by default; T + max(delays) steps."""

    name = "delay"

    def __init__(self, num_codebooks: int, delays: list[int] | None = None):
        super().__init__(num_codebooks)
        self.delays = list(range(num_codebooks)) if delays is None else list(delays)
        if len(self.delays) != num_codebooks or self.delays[0] != 0 or min(self.delays) < 0:
            raise UserError(
                f"delays {self.delays} do not fit {num_codebooks} codebooks: give one number per "
                "level, the first 0 and none negative"
            )
        self.exact = num_codebooks == 1

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        delays = torch.tensor(self.delays, device=frames.device)
        return (frames[:, None] + delays[None, :])[None]

    def cells(self, steps: Tensor, lengths: Tensor) -> Tensor:
        delays = torch.tensor(self.delays, device=steps.device)
        return (steps[:, None] - delays[None, :]).clamp(min=-1)[None]

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

    def __init__(self, num_codebooks: int):
        super().__init__(num_codebooks)
        self.steps_per_frame = num_codebooks

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        levels = torch.arange(self.num_codebooks, device=frames.device)
        return (frames[:, None] * self.num_codebooks + levels[None, :])[None]

    def cells(self, steps: Tensor, lengths: Tensor) -> Tensor:
        K = self.num_codebooks
        levels = torch.arange(K, device=steps.device)
        here = steps[:, None] % K == levels[None, :]
        return torch.where(here, steps[:, None] // K, -1)[None]

    def num_steps(self, num_frames: int) -> int:
        return num_frames * self.num_codebooks


class CoarseFirstPattern(Pattern):
    """Level 0 of all frames, then the other levels of all frames together: 2 T steps.

    Where the second half begins depends on the length, so it differs between the items of a
    batch. Of one or two levels it is exact; of more, the fine levels of a frame are predicted
    independently of one another.
    """

    name = "coarse_first"

    def __init__(self, num_codebooks: int):
        super().__init__(num_codebooks)
        self.exact = num_codebooks <= 2

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        fine = torch.arange(self.num_codebooks, device=frames.device) > 0
        return frames[None, :, None] + lengths[:, None, None] * fine[None, None, :]

    def cells(self, steps: Tensor, lengths: Tensor) -> Tensor:
        fine = torch.arange(self.num_codebooks, device=steps.device) > 0
        after = (steps[None, :] - lengths[:, None]).clamp(min=-1)  # (B, S)
        coarse = torch.where(after < 0, steps[None, :], -1)
        return torch.where(fine[None, None, :], after[:, :, None], coarse[:, :, None])

    def positions(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """The second half lies over the first, each frame at its time. Its first step does not,
        since there it is decided that the sequence ends: the place would give it away."""
        late = steps[None, :] > lengths[:, None]
        return torch.where(late, steps[None, :] - lengths[:, None], steps[None, :])

    def num_steps(self, num_frames: int) -> int:
        return num_frames * (2 if self.num_codebooks > 1 else 1)


PATTERNS = {p.name: p for p in (ParallelPattern, DelayPattern, FlattenPattern, CoarseFirstPattern)}


def make_pattern(name: str, num_codebooks: int, delays: tuple[int, ...] = ()) -> Pattern:
    """Pattern by name; ``delays`` of the delay pattern, 0, 1, 2, ... when empty.

    :raises UserError: no such name (lists them), or delays that do not fit.
    """
    if name not in PATTERNS:
        raise UserError(f"unknown pattern {name!r}; choose one of {', '.join(PATTERNS)}")
    if delays and name != "delay":
        raise UserError(f"--delays {' '.join(map(str, delays))}: only --pattern delay has delays")
    return DelayPattern(num_codebooks, list(delays)) if delays else PATTERNS[name](num_codebooks)
