"""Codebook patterns: how the (T, K) grid of codes is laid out in the steps of a sequence model.

A frame has K codes, a transformer makes one step at a time; a pattern says which codes share a
step. Each is one formula, `Pattern.steps`: the step at which the code of frame t and level k
stands. Interleaving scatters codes to those steps. Cells of the step grid that hold no code carry a
special id. The idea and the names follow MusicGen
(Copet et al., 2023, arXiv:2306.05284).

`PATTERNS` lists the classes. Flags, their help and the cards of `rvqlm models` read names, meanings
and costs from there, and tests the grids in the docstrings, so a pattern is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, ClassVar

from rvqlm.errors import UserError

if TYPE_CHECKING:  # `rvqlm models` lists the patterns without waiting for torch
    from torch import Tensor


class Pattern(ABC):
    """Layout of K codebooks on steps: two formulas, one the inverse of the other.

    A step must come no earlier than every step it is to be predicted from, so for each level the
    formula grows with t. In the grids of the subclasses ``tk`` is the code of frame t, level k;
    steps run to the right; ``.`` is an empty cell.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """In a few words, for the help of flags."""
    passes: ClassVar[str]
    """Steps for T frames of K levels, as a formula: ``T K`` is their product."""
    exact_up_to: ClassVar[float] = 1
    """Levels up to which no two codes share a step. Then a model with independent heads per level
    can represent any joint distribution of the codes, and its loss estimates their entropy; with
    more levels it is a bound from above."""
    one_code_a_step: ClassVar[bool] = False
    """Level k of frame t alone stands at step t K + k."""
    by_length: ClassVar[bool] = False
    """Where codes stand, or the steps on the time axis, depends on the length of the sequence."""
    steps_per_frame: int = 1
    """Steps from a frame to the next: what scales the time axis."""

    def __init__(self, num_codebooks: int):
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks must be positive, not {num_codebooks}")
        self.num_codebooks = num_codebooks
        self.exact = num_codebooks <= self.exact_up_to

    @abstractmethod
    def step_of(self, frame: Tensor, level: Tensor, length: Tensor) -> Tensor:
        """Step of codes: int64 tensors (1, T, 1), (K,) and (B, 1, 1) -> (B or 1, T, K). Only
        patterns whose layout depends on the whole length look at it."""

    @abstractmethod
    def frame_at(self, step: Tensor, level: Tensor, length: Tensor) -> Tensor:
        """The inverse, (1, S, 1), (K,) and (B, 1, 1) -> (B or 1, S, K): frame of cells, -1 where
        none can stand. Cells past the last frame name frames past it."""

    def steps(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """`step_of` every level of frames (T,), or of each item's own (B, T), of items of lengths
        (B,): (B or 1, T, K)."""
        levels = _numbers(self.num_codebooks, frames.device)
        frames = frames[None] if frames.ndim == 1 else frames
        return self.step_of(frames[:, :, None], levels, lengths[:, None, None])

    def cells(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`frame_at` every level of steps (S,), or of each item's own (B, S), of items of lengths
        (B,): (B or 1, S, K)."""
        levels = _numbers(self.num_codebooks, steps.device)
        steps = steps[None] if steps.ndim == 1 else steps
        return self.frame_at(steps[:, :, None], levels, lengths[:, None, None])

    def positions(self, steps: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, S) places of steps (S,) or (B, S) on the time axis, where they are not the steps
        themselves."""
        return None

    def num_steps(self, num_frames: int) -> int:
        """Steps that a sequence of ``num_frames`` frames takes."""
        last = _numbers(1) + num_frames - 1
        return int(self.steps(last, last + 1).max()) + 1

    def steps_at_most(self, num_frames: int, num_items: int) -> int:
        """Steps that so many sequences of so many frames together take at most: no step count grows
        faster with frames than from one frame to two."""
        each = self.num_steps(2) - self.num_steps(1)
        return each * num_frames + (self.num_steps(1) - each) * num_items

    def frames_after(self, num_steps: int) -> int:
        """Frames that are complete after so many steps, where that does not depend on the length of
        the sequence: the most that `num_steps` says take no more."""
        return max(0, (num_steps - self.num_steps(1)) // self.steps_per_frame + 1)

    def grid_steps(self, num_frames: int, with_end: bool = False) -> int:
        """Steps of the padded grid; ``with_end`` leaves room for the step after the last frame,
        where the end of the sequence is decided."""
        if not with_end:
            return self.num_steps(num_frames)
        return max(self.num_steps(num_frames), self.end_step(num_frames) + 1)

    def end_step(self, num_frames: int) -> int:
        """The step at which it is decided that the sequence has exactly ``num_frames`` frames:
        where level 0 of the next frame would stand."""
        following = _numbers(1) + num_frames
        return int(self.steps(following, following + 1)[0, 0, 0])

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
        frames = _numbers(T, codes.device)
        steps = self.steps(frames, lengths).expand(B, T, K)
        real = (frames[None, :] < lengths[:, None])[:, :, None].expand(B, T, K)
        # where a layout depends on the length, padding could fall on a valid cell: send it to a
        # spare column that is cut off again
        steps = steps.masked_fill(~real, S)
        grid = codes.new_full((B, S + 1, K), empty).scatter_(1, steps, codes)
        mask = real.new_zeros(B, S + 1, K).scatter_(1, steps, real)
        return grid[:, :S].masked_fill(~mask[:, :S], empty), mask[:, :S]


def _numbers(count: int, device=None) -> Tensor:
    """0 ... count - 1."""
    import torch

    return torch.arange(count, device=device)


class DelayPattern(Pattern):
    """Level k stands ``delays[k]`` steps late, so that at each step it may depend on the coarser
    levels of its own frame. Delays 0, 1, 2, ... by default::

        level 0  00 10 20 30 .  .
        level 1  .  01 11 21 31 .
        level 2  .  .  02 12 22 32
    """

    name = "delay"
    about = "each level one step after the coarser one"
    passes = "T + K - 1"

    def __init__(self, num_codebooks: int, delays: list[int] | None = None):
        super().__init__(num_codebooks)
        self.delays = list(range(num_codebooks)) if delays is None else list(delays)
        self._copies: dict = {}
        if len(self.delays) != num_codebooks or self.delays[0] != 0 or min(self.delays) < 0:
            raise UserError(
                f"delays {self.delays} do not fit {num_codebooks} codebooks: give one number per "
                "level, the first 0 and none negative"
            )

    def step_of(self, frame: Tensor, level: Tensor, length: Tensor) -> Tensor:
        return frame + self._delays(level)

    def frame_at(self, step: Tensor, level: Tensor, length: Tensor) -> Tensor:
        return (step - self._delays(level)).clamp(min=-1)

    def _delays(self, level: Tensor) -> Tensor:
        """(K,) on the device of `level`, copied there once: a GPU is waited for at each copy."""
        if level.device not in self._copies:
            self._copies[level.device] = level.new_tensor(self.delays)
        return self._copies[level.device]


class ParallelPattern(DelayPattern):
    """All levels of a frame in one step: they are predicted independently of one another, given the
    past::

        level 0  00 10 20 30
        level 1  01 11 21 31
        level 2  02 12 22 32
    """

    name = "parallel"
    about = "all levels of a frame at once"
    passes = "T"

    def __init__(self, num_codebooks: int):
        super().__init__(num_codebooks, [0] * num_codebooks)


class FlattenPattern(Pattern):
    """One code a step, level after level::

    level 0  00 .  10 .  20 .
    level 1  .  01 .  11 .  21
    """

    name = "flatten"
    about = "one code a step, K times the steps"
    passes = "T K"
    exact_up_to = inf
    one_code_a_step = True

    def __init__(self, num_codebooks: int):
        super().__init__(num_codebooks)
        self.steps_per_frame = num_codebooks

    def step_of(self, frame: Tensor, level: Tensor, length: Tensor) -> Tensor:
        return frame * self.num_codebooks + level

    def frame_at(self, step: Tensor, level: Tensor, length: Tensor) -> Tensor:
        frame = step.div(self.num_codebooks, rounding_mode="floor")
        return frame.where(step % self.num_codebooks == level, -1)


class CoarseFirstPattern(Pattern):
    """Level 0 of all frames, then the other levels of all frames together, independently of one
    another::

        level 0  00 10 20 30 .  .  .  .
        level 1  .  .  .  .  01 11 21 31
        level 2  .  .  .  .  02 12 22 32

    Where the second half begins depends on the length, so it differs between the items of a batch.
    """

    name = "coarse_first"
    by_length = True
    about = "level 0 of all frames, then the others"
    passes = "2 T"
    exact_up_to = 2

    def step_of(self, frame: Tensor, level: Tensor, length: Tensor) -> Tensor:
        return frame + length * (level > 0)

    def frame_at(self, step: Tensor, level: Tensor, length: Tensor) -> Tensor:
        fine = (step - length).clamp(min=-1)
        return fine.where(level > 0, step.where(step < length, -1))

    def positions(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """The second half lies over the first, each frame at its time. Its first step does not,
        since there it is decided that the sequence ends: the place would give it away."""
        steps, lengths = steps[None] if steps.ndim == 1 else steps, lengths[:, None]
        return steps - lengths * (steps > lengths)


PATTERNS: dict[str, type[Pattern]] = {
    p.name: p for p in (DelayPattern, ParallelPattern, FlattenPattern, CoarseFirstPattern)
}
"""By name, the default first."""


def make_pattern(name: str, num_codebooks: int, delays: tuple[int, ...] = ()) -> Pattern:
    """Pattern by name; ``delays`` of the delay pattern, 0, 1, 2, ... when empty.

    :raises UserError: no such name (lists them), or delays that do not fit.
    """
    if name not in PATTERNS:
        raise UserError(f"unknown pattern {name!r}; choose one of {', '.join(PATTERNS)}")
    if delays and name != DelayPattern.name:
        raise UserError(
            f"--delays {' '.join(map(str, delays))}: only --pattern {DelayPattern.name} has delays"
        )
    return DelayPattern(num_codebooks, list(delays)) if delays else PATTERNS[name](num_codebooks)
