"""The decoding loop of all autoregressive models.

Steps of a pattern are made from left to right: those that every item's prompt fills completely go
through in one pass, and from there one at a time over a preallocated key-value cache. Prompts of
unequal lengths share a batch: where an item's prompt has a code for a cell, it is taken instead of
a draw. The end is decided where the next frame's level 0 would stand; what the frames before still
lack is then completed, be it the finer levels of the last few frames or of all.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import guide, sample, uniforms, without_repetition
from rvqlm.patterns import Pattern

BLOCK = 16
"""Steps between two looks at whether all sequences have ended, for which a GPU would be waited
for; what is decoded in vain before the next is thrown away."""


class Autoregressive(Protocol):
    """What the loop needs of a model."""

    pattern: Pattern
    special: int

    def begin(self, conditions, batch_size: int, max_steps: int, drop: Tensor | None):
        """State before the first step; ``drop`` (B,) bool: items that are given no condition."""

    def step(self, inputs: Tensor, state, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """inputs (B, n, K) columns that follow those in the cache, at positions (B, n) or one after
        the other -> hidden (B, d) and the logit (B,) of an end, or None, of the last step."""

    def draw(self, hidden: Tensor, choose, level: int | None) -> Tensor:
        """Codes (B, K); ``choose(first_level, logits (B, k, V)) -> (B, k)``. Where a level is named
        those of others may be anything."""


class Cells(NamedTuple):
    """What is known beforehand of a step."""

    known: Tensor
    """(B, K) bool: cells whose code a prompt gives."""
    given: Tensor
    """(B, K) these codes."""
    frames: Tensor
    """(B or 1, K) of the cells; `NOWHERE` where a step has none."""
    noise: Tensor
    """(B, W) uniforms: of the levels, of the end (which `threshold` is made of), and of second
    draws."""
    threshold: Tensor
    """(B,) logit of an end above which the sequence ends here; inf where it may not."""
    before: Tensor
    """() frames that it then has."""
    number: Tensor
    """() of the step."""
    level: int | None
    """The only one that the step draws; None: all."""


NOWHERE = 1 << 62
"""A frame beyond all sequences."""


class Decoding:
    """A batch on its way: the grid of the pattern, and how far each sequence reaches.

    `step` is one step as a function of tensors of always the same shapes. All that depends on where
    it stands lies in tables, made for `BLOCK` steps at once.
    """

    def __init__(self, model: Autoregressive, request: Request):
        self.model, self.request, self.pattern = model, request, model.pattern
        r, B, K = request, request.batch_size, request.prompt_codes.shape[2]
        self.device = r.prompt_codes.device
        self.steps = self.pattern.num_steps(r.max_frames)
        self.canvas = r.canvas(r.max_frames, model.special)
        self.lengths = r.limits.clone()
        # in front what repetition is looked for in, which is nothing yet
        self.margin = r.sampling.repetition_window * self.pattern.steps_per_frame
        self.grid = self.canvas.new_full((B, self.margin + self.steps, K), model.special)
        self.likelihood = torch.zeros(2, B, device=self.device)
        """Sum of log p of the codes drawn, and their number."""

    def laid_out(self, steps: Tensor) -> dict[str, Tensor]:
        """The fields of `Cells` that a layout gives, of steps (n,) by the lengths so far: (B, n, K)
        each."""
        frames = self.pattern.cells(steps, self.lengths)
        index = frames.clamp(0, self.canvas.shape[1] - 1)
        parts = {
            "known": (frames >= 0) & (frames < self.request.prompt_lengths[:, None, None]),
            "given": self.canvas.gather(1, index.expand(len(self.canvas), -1, -1)),
            "frames": frames.masked_fill(frames < 0, NOWHERE),
        }
        return parts

    def begin(self) -> Tensor:
        """Lay the steps down that all prompts fill; inputs (B, n, K) up to the first that is drawn,
        which is step n - 1."""
        known, given, frames = self.laid_out(torch.arange(self.steps, device=self.device)).values()
        complete = (known | (frames == NOWHERE)).all(2).all(0)  # (S,)
        count = int(complete.int().cumprod(0).sum())
        start = self.grid[:, self.margin : self.margin + count]
        start.copy_(given[:, :count].masked_fill(~known[:, :count], self.model.special))
        special = torch.full_like(self.grid[:, :1], self.model.special)
        return torch.cat([special, start], 1)

    def tables(self, first: int, count: int) -> list[Cells]:
        """Of steps ``first`` ... in turn."""
        r, K = self.request, self.grid.shape[2]
        noise = uniforms(
            r.seed, r.rows, count, 2 * K + 1 if self.margin else K + 1, first, self.device
        )
        steps = torch.arange(first, first + count, device=self.device)
        before = self.pattern.cells(steps, torch.full_like(steps[:1], NOWHERE))[0, :, 0]
        least = torch.maximum(r.prompt_lengths, r.min_frames).clamp(min=1)[:, None]
        may = (before >= least) & (before < r.limits[:, None])
        draws = noise[..., K] if r.sampling.temperature else torch.full_like(noise[..., K], 0.5)
        laid_out, alone = self.laid_out(steps), self.pattern.one_code_a_step
        of_steps = {
            **{name: part.unbind(1) for name, part in laid_out.items()},
            "noise": noise.unbind(1),
            "threshold": draws.logit().masked_fill(~may, torch.inf).unbind(1),
            "before": before.unbind(0),
            "number": steps.unbind(0),
            "level": [s % K if alone else None for s in range(first, first + count)],
        }
        return [Cells(**dict(zip(of_steps, parts))) for parts in zip(*of_steps.values())]

    def step(
        self, inputs: Tensor, state, positions: Tensor | None, cells: Cells, recent: Tensor | None
    ) -> Tensor:
        """inputs (B, n, K), mostly one column, and the codes (B, W, K) of the frames before where
        repetition is avoided -> the next column (B, K)."""
        r, K = self.request, self.grid.shape[2]
        hidden, end = self.model.step(
            inputs.repeat(2, 1, 1) if r.guided else inputs, state, positions
        )
        if end is not None:
            end = guide(end, r.sampling.cfg_scale) if r.guided else end.float()
            # the first end counts: later ones are of more frames
            ends = torch.where(end > cells.threshold, cells.before, NOWHERE)
            self.lengths = torch.minimum(self.lengths, ends)
            if self.pattern.by_length:
                now = self.laid_out(cells.number[None])
                cells = cells._replace(**{name: part[:, 0] for name, part in now.items()})
        inside = cells.frames < self.lengths[:, None]
        counted = inside & ~cells.known

        def choose(level: int, logits: Tensor) -> Tensor:
            levels = slice(level, level + logits.shape[1])
            if r.guided:
                logits = guide(logits, r.sampling.cfg_scale)
            if r.logit_bias is not None:
                logits = logits + r.logit_bias[levels]
            drawn = sample(logits, cells.noise[:, levels], r.sampling, level)
            if recent is not None:
                again = cells.noise[:, K + 1 :][:, levels]
                drawn = without_repetition(drawn, logits, again, recent[..., levels], r.sampling)
            if r.sampling.best_of > 1:
                nats = logits.float().log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
                self.likelihood[0] += (nats * counted[:, levels]).sum(1)
                self.likelihood[1] += counted[:, levels].sum(1)
            return drawn

        codes = self.model.draw(hidden, choose, cells.level)
        codes = torch.where(cells.known, cells.given, codes)
        return torch.where(inside, codes, self.model.special)

    def ended(self, steps: int) -> bool:
        return steps >= self.pattern.num_steps(int(self.lengths.max()))

    def finish(self) -> Generation:
        r, lengths = self.request, self.lengths.clone()
        longest = int(lengths.max())
        steps = self.pattern.steps(torch.arange(longest, device=self.device), lengths)
        index = (steps + self.margin).expand(len(self.grid), -1, -1)
        codes = self.grid.gather(1, index.clamp(max=self.grid.shape[1] - 1))
        made = Generation.trimmed(codes, lengths, r.prompt_lengths, lengths < r.limits)
        if r.sampling.best_of > 1:
            made.likelihood = self.likelihood[0] / self.likelihood[1].clamp(min=1)
        return made


def decode(model: Autoregressive, request: Request) -> Generation:
    """Fill the cells of the pattern until every sequence has ended."""
    with torch.inference_mode():
        run = Decoding(model, request)
        _decode(run, model, request)
    return run.finish()


def _decode(run: Decoding, model: Autoregressive, r: Request) -> None:
    conditions, drop = r.conditions_of_rows()
    rows = 2 * r.batch_size if r.guided else r.batch_size
    state = model.begin(conditions, rows, run.steps, drop)
    inputs, pattern, margin = run.begin(), run.pattern, run.margin
    begin, positions, recent = inputs.shape[1] - 1, None, None
    for first in range(begin, run.steps, BLOCK):
        tables = run.tables(first, min(BLOCK, run.steps - first))
        for s, cells in enumerate(tables, first):
            if pattern.by_length:
                steps = torch.arange(s + 1 - inputs.shape[1], s + 1, device=run.device)
                positions = pattern.positions(steps, run.lengths)
                positions = positions.repeat(2, 1) if r.guided else positions
            if margin:
                recent = run.grid[:, s : s + margin : pattern.steps_per_frame]
            codes = run.step(inputs, state, positions, cells, recent)
            run.grid[:, margin + s] = codes
            inputs = codes[:, None]
            if r.progress is not None:
                r.progress(s + 1 - begin)
        if run.ended(first + len(tables)):
            break
