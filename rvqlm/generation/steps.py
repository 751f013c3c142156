"""Steps of autoregressive decoding: what is known of one beforehand, and what it does.

Steps of a pattern are made from left to right: those that every item's prompt fills completely go
through in one pass, and from there one at a time over a preallocated key-value cache. Prompts of
unequal lengths share a batch: where an item's prompt has a code for a cell, it is taken instead of
a draw. The end is decided where the next frame's level 0 would stand; what the frames before still
lack is then completed, be it the finer levels of the last few frames or of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import astuple, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import guide, row_keys, sample, uniforms_of, without_repetition
from rvqlm.modules.conditioning import ConditionedTransformer, DecoderState
from rvqlm.modules.whole_step import WholeStep
from rvqlm.patterns import Pattern

BLOCK = 16
"""Steps between two looks at whether all sequences have ended, for which a GPU would be waited
for; what is decoded in vain before the next is thrown away."""


class Autoregressive(Protocol):
    """What the loop needs of a model."""

    pattern: Pattern
    special: int
    network: ConditionedTransformer
    # and, where it has tensors that are of the request, their names as `OF_REQUEST`

    def begin(self, conditions, batch_size: int, max_steps: int, drop: Tensor | None):
        """State before the first step; ``drop`` (B,) bool: items that are given no condition."""

    def step(self, inputs: Tensor, state, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """inputs (B, n, K) columns that follow those in the cache, at positions (B, n) or one after
        the other -> hidden (B, d) and the logit (B,) of an end, or None, of the last step."""

    def fill(self, inputs: Tensor, state, positions: Tensor | None = None) -> Tensor:
        """The same of which nothing is drawn; of n = 0 too, where conditions stand in front."""

    def draw(self, hidden: Tensor, choose, level: int | None) -> Tensor:
        """Codes (B, K); ``choose(first_level, logits (B, k, V)) -> (B, k)``. Where a level is named
        those of others may be anything."""


class Cells(NamedTuple):
    """What is known beforehand of a step, which is each item's own."""

    known: Tensor
    """(B, K) bool: cells whose code a prompt gives."""
    given: Tensor
    """(B, K) these codes."""
    frames: Tensor
    """(B, K) of the cells; `NOWHERE` where a step has none."""
    noise: Tensor
    """(B, W) uniforms: of the levels, of the end (which `threshold` is made of), and of second
    draws."""
    threshold: Tensor
    """(B,) logit of an end above which the sequence ends here; inf where it may not."""
    before: Tensor
    """(B,) frames that it then has."""
    number: Tensor
    """(B,) of the step."""
    place: Tensor
    """(B,) of its column among all of the grid."""
    recent: Tensor | None = None
    """(B, W) columns in which repetition is looked for, likewise."""
    level: int | None = None
    """The only one that the step draws; None: all."""


NOWHERE = 1 << 62
"""A frame beyond all sequences."""


class Decoding:
    """Sequences on their way: the grid of the pattern, and how far each reaches.

    `take` is what follows the network in a step, as a function of tensors of always the same
    shapes. All that depends on where a sequence stands lies in tables, made for `BLOCK` steps at
    once. They stand at steps of their own, ``next``; several of the same `kind` can go on as one.

    :param steps: room of the grid; by default what the longest needs.
    :param offset: number of the first step in the random stream.
    """

    EACH = ("canvas", "prompt_lengths", "limits", "least", "keys", "offset", "bias", "lengths",
            "grid", "likelihood", "column")  # fmt: skip
    """What there is of each sequence, along the first axis."""
    CHANGED = ("lengths", "grid", "likelihood", "column")
    """What a step changes of it."""

    def __init__(
        self, model: Autoregressive, request: Request, steps: int | None = None, offset: int = 0
    ):
        self.model, self.pattern, r = model, model.pattern, request
        (B, P, K), self.device = r.prompt_codes.shape, r.prompt_codes.device
        self.sampling, self.guided = replace(r.sampling, ban=()), r.guided
        self.steps = self.pattern.num_steps(r.max_frames) if steps is None else steps
        self.next = [0] * B
        """Step of each that comes next."""
        self.canvas = r.canvas(max(P, 1), model.special)
        self.prompt_lengths, self.limits = r.prompt_lengths, r.limits
        self.least = torch.maximum(r.prompt_lengths, r.min_frames).clamp(min=1)
        self.keys = row_keys(r.seed, r.rows, self.device)
        self.offset = torch.full_like(self.keys, offset)
        self.bias = None if r.logit_bias is None else r.logit_bias.expand(B, -1, -1)
        self.lengths = r.limits.clone()
        self.temperature = self.sampling.temperature_of(0, K, self.device)
        # in front what repetition is looked for in, which is nothing yet
        self.margin = r.sampling.repetition_window * self.pattern.steps_per_frame
        self.grid = self.canvas.new_full((B, self.margin + self.steps, K), model.special)
        self.likelihood = torch.zeros(B, 2, device=self.device)
        """Sum of log p of the codes drawn, and their number."""
        self.column = self.canvas.new_full((B, K), model.special)
        """The last of the grid that is known."""
        self.follows: Tensor | None = None
        """(B,) the sequence, itself or another, that gives what is known of a column while it is
        made."""

    # ------------------------------------------------------------- sequences that come and go

    @property
    def kind(self) -> tuple:
        """Those of the same draw in the same way."""
        return astuple(self.sampling), self.guided, self.bias is None

    @classmethod
    def joined(cls, parts: Sequence[Decoding]) -> Decoding:
        """Several of one kind, with grids of one size, as one."""
        one = copy(parts[0])
        longest = max(part.canvas.shape[1] for part in parts)
        for name in cls.EACH:
            each = [getattr(part, name) for part in parts]
            if name == "canvas":
                each = [torch.nn.functional.pad(c, (0, 0, 0, longest - c.shape[1])) for c in each]
            setattr(one, name, None if each[0] is None else torch.cat(each))
        one.next = [step for part in parts for step in part.next]
        return one

    def widen(self, steps: int) -> None:
        """Room for so many steps."""
        more = self.margin + steps - self.grid.shape[1]
        self.grid = torch.nn.functional.pad(self.grid, (0, 0, 0, more), value=self.model.special)

    def without(self, row: int) -> Decoding:
        one, keep = copy(self), [n for n in range(len(self.next)) if n != row]
        index = torch.tensor(keep, device=self.device, dtype=torch.int64)
        for name in self.EACH:
            each = getattr(self, name)
            setattr(one, name, None if each is None else each[index])
        one.next = [self.next[n] for n in keep]
        return one

    # ------------------------------------------------------------------------------ the steps

    def laid_out(self, steps: Tensor) -> dict[str, Tensor]:
        """The fields of `Cells` that a layout gives, of steps (n,) or (B, n) by the lengths so far:
        (B, n, K) each."""
        frames = self.pattern.cells(steps, self.lengths).expand(len(self.canvas), -1, -1)
        index = frames.clamp(0, self.canvas.shape[1] - 1)
        return {
            "known": (frames >= 0) & (frames < self.prompt_lengths[:, None, None]),
            "given": self.canvas.gather(1, index),
            "frames": frames.masked_fill(frames < 0, NOWHERE),
        }

    def follow(self, columns: Tensor) -> Tensor:
        """`begin` with the first columns (B, n, K) of a prompt of which no more is known yet."""
        frames = self.laid_out(torch.arange(columns.shape[1], device=self.device))["frames"]
        return self._laid_down(columns.masked_fill(frames == NOWHERE, self.model.special))

    def begin(self) -> Tensor:
        """Lay the steps down that all prompts fill; inputs (B, n, K) up to the first that is drawn,
        which is step n - 1."""
        steps = self.pattern.num_steps(int(self.limits.max()))
        known, given, frames = self.laid_out(torch.arange(steps, device=self.device)).values()
        complete = (known | (frames == NOWHERE)).all(2).all(0)  # (S,)
        count = int(complete.int().cumprod(0).sum())
        return self._laid_down(given[:, :count].masked_fill(~known[:, :count], self.model.special))

    def _laid_down(self, columns: Tensor) -> Tensor:
        count = columns.shape[1]
        self.grid[:, self.margin : self.margin + count] = columns
        inputs = torch.cat([self.column[:, None], columns], 1)
        self.column.copy_(inputs[:, -1])
        self.next = [count] * len(inputs)
        return inputs

    def tables(self, count: int) -> list[Cells]:
        """Of the next steps in turn."""
        tables, levels = self.table(count), self.levels(count)
        each = zip(*(x.unbind(1) for x in tables.values()))
        return [Cells(**dict(zip(tables, x)), level=level) for x, level in zip(each, levels)]

    def levels(self, count: int) -> list[int | None]:
        """`Cells.level` of the next steps."""
        if not self.pattern.one_code_a_step:
            return [None] * count
        return [s % self.grid.shape[2] for s in range(self.next[0], self.next[0] + count)]

    def table(self, count: int) -> dict[str, Tensor]:
        """All other fields of `Cells` of the next steps, with an axis for these, (B, n, ...)."""
        B, W, K = self.grid.shape
        window, stride = self.sampling.repetition_window, self.pattern.steps_per_frame
        first = torch.tensor(self.next).to(self.device, non_blocking=True)
        steps = first[:, None] + torch.arange(count, device=self.device)  # (B, n)
        width = 2 * K + 1 if window else K + 1
        noise = uniforms_of(self.keys, steps + self.offset[:, None], width)
        before = self.pattern.cells(steps, torch.full_like(first, NOWHERE))[..., 0]
        may = (before >= self.least[:, None]) & (before < self.limits[:, None])
        draws = noise[..., K] if self.sampling.temperature else torch.full_like(noise[..., K], 0.5)
        place = steps + torch.arange(self.margin, B * W, W, device=self.device)[:, None]
        found = {
            **self.laid_out(steps),
            "noise": noise,
            "threshold": draws.logit().masked_fill(~may, torch.inf),
            "before": before,
            "number": steps,
            "place": place,
        }
        if window:
            back = torch.arange(window, 0, -1, device=self.device) * stride
            found["recent"] = place[..., None] - back
        return found

    def take(self, hidden: Tensor, end: Tensor | None, cells: Cells) -> None:
        """Draw the next column from what the network says of it; ``hidden`` (B, d) and ``end``
        (B,), twice as many rows under guidance. What there is of the sequences changes in place;
        who asks counts the step, in `next`."""
        columns, K = self.grid.flatten(0, 1), self.grid.shape[2]
        if end is not None:
            end = guide(end, self.sampling.cfg_scale) if self.guided else end.float()
            # the first end counts: later ones are of more frames
            ends = torch.where(end > cells.threshold, cells.before, NOWHERE)
            self.lengths.copy_(torch.minimum(self.lengths, ends))
            if self.pattern.by_length:
                now = self.laid_out(cells.number[:, None])
                cells = cells._replace(**{name: part[:, 0] for name, part in now.items()})
        inside = cells.frames < self.lengths[:, None]
        counted = inside & ~cells.known
        recent = None
        if cells.recent is not None:
            recent = columns.index_select(0, cells.recent.flatten()).unflatten(0, (len(inside), -1))

        def choose(level: int, logits: Tensor) -> Tensor:
            levels = slice(level, level + logits.shape[1])
            if self.guided:
                logits = guide(logits, self.sampling.cfg_scale)
            if self.bias is not None:
                logits = logits + self.bias[:, levels]
            temperature = self.temperature
            if isinstance(temperature, Tensor):
                temperature = temperature[levels]
            drawn = sample(logits, cells.noise[:, levels], self.sampling, level, temperature)
            if recent is not None:
                again = cells.noise[:, K + 1 :][:, levels]
                drawn = without_repetition(drawn, logits, again, recent[..., levels], self.sampling)
            if self.sampling.best_of > 1:
                nats = logits.float().log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
                self.likelihood[:, 0] += (nats * counted[:, levels]).sum(1)
                self.likelihood[:, 1] += counted[:, levels].sum(1)
            return drawn

        codes = self.model.draw(hidden, choose, cells.level)
        codes = torch.where(cells.known, cells.given, codes)
        column = torch.where(inside, codes, self.model.special)
        if self.follows is not None:
            others = column.index_select(0, self.follows)
            column = torch.where(cells.known & inside, others, column)
        self.column.copy_(column)
        columns.index_copy_(0, cells.place, self.column)

    def whole_step(self, state: DecoderState) -> WholeStep | None:
        """The network and `take` as one call, for `take_whole`; None where this model, or what is
        asked of it, or the machine has none."""
        make, s = getattr(self.model, "whole_step", None), self.sampling
        plain = self.bias is None and not s.repetition_window and s.best_of == 1
        plain = plain and not (self.pattern.by_length or self.pattern.one_code_a_step)
        return make(state) if make is not None and plain else None

    def take_whole(self, step: WholeStep, cells: Cells) -> None:
        """`take` with what comes before it, where the cache holds all but the last column."""
        s, temperatures = self.sampling, None
        if not s.greedy:
            temperatures = s.temperatures(0, self.grid.shape[2], self.device)
        filters, guidance = (s.top_k, s.top_p, s.min_p), s.cfg_scale if self.guided else None
        changed = self.column, self.lengths, self.grid
        step(*changed, cells, temperatures, filters, guidance, self.follows)

    def codes(self, frames: Tensor) -> Tensor:
        """(B, n, K) of frames (n,) or (B, n), as far as they are made."""
        index = self.pattern.steps(frames, self.lengths) + self.margin
        index = index.expand(len(self.grid), -1, -1)
        return self.grid.gather(1, index.clamp(max=self.grid.shape[1] - 1))

    def finish(self) -> Generation:
        lengths = self.lengths.clone()
        codes = self.codes(torch.arange(int(lengths.max()), device=self.device))
        made = Generation.trimmed(codes, lengths, self.prompt_lengths, lengths < self.limits)
        if self.sampling.best_of > 1:
            made.likelihood = self.likelihood[:, 0] / self.likelihood[:, 1].clamp(min=1)
        return made


class Group:
    """Sequences that draw in the same way, all at once."""

    def __init__(self, run: Decoding, rows: Tensor | None = None):
        self.run, self.rows = run, rows
        """Rows of the cache, under guidance those with conditions first; None: all in order."""
        self.tables: list[Cells] = []

    def next_cells(self) -> Cells:
        if not self.tables:
            self.tables = self.run.tables(BLOCK)[::-1]
        return self.tables.pop()

    def count(self) -> None:
        """After each step."""
        self.run.next = [step + 1 for step in self.run.next]


def advance(
    way: Autoregressive,
    state: DecoderState,
    groups: Sequence[Group],
    cells: Sequence[Cells],
    owners: Tensor | None,
    inputs: Tensor | None = None,
) -> None:
    """One step: from the last codes, the places and the caches to the next codes. A function of
    tensors, which change in place: nothing else of it is different from step to step.

    :param cells: of each group.
    :param owners: (rows,) number of each row's sequence among those of all groups; None: in order.
    :param inputs: (B, n, K) columns, where those before the last are not in the cache either.
    """
    runs, positions = [group.run for group in groups], None
    if inputs is None:
        columns = [run.column for run in runs]
        inputs = (columns[0] if len(columns) == 1 else torch.cat(columns))[:, None]
    if way.pattern.by_length:  # of one group
        back = torch.arange(1 - inputs.shape[1], 1, device=inputs.device)
        positions = way.pattern.positions(cells[0].number[:, None] + back, runs[0].lengths)
    if owners is not None:
        inputs = inputs.index_select(0, owners)
        positions = None if positions is None else positions.index_select(0, owners)
    hidden, end = way.step(inputs, state, positions)
    for group, now in zip(groups, cells):
        mine = [
            x if x is None or group.rows is None else x.index_select(0, group.rows)
            for x in (hidden, end)
        ]
        group.run.take(*mine, now)
