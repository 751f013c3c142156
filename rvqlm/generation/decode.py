"""The decoding loop of all autoregressive models.

Steps of a pattern are made from left to right: those that every item's prompt fills completely go
through in one pass, and from there one at a time over a preallocated key-value cache. Prompts of
unequal lengths share a batch: where an item's prompt has a code for a cell, it is taken instead of
a draw. The end is decided where the next frame's level 0 would stand; what the frames before still
lack is then completed, be it the finer levels of the last few frames or of all.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import guide, sample, uniforms
from rvqlm.patterns import Pattern


class Autoregressive(Protocol):
    """What the loop needs of a model."""

    pattern: Pattern
    special: int

    def begin(self, conditions, batch_size: int, max_steps: int, drop: Tensor | None):
        """State before the first step; ``drop`` (B,) bool: items that are given no condition."""

    def step(self, inputs: Tensor, state, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """inputs (B, n, K) columns that follow those in the cache, at positions (B, n) or one after
        the other -> hidden (B, d) and the logit (B,) of an end, or None, of the last step."""

    def draw(self, hidden: Tensor, choose) -> Tensor:
        """Codes (B, K); ``choose(first_level, logits (B, k, V)) -> (B, k)``."""


def decode(model: Autoregressive, request: Request) -> Generation:
    """Fill the cells of the pattern until every sequence has ended."""
    r, pattern, special = request, model.pattern, model.special
    (B, _, K), device, T = r.prompt_codes.shape, r.prompt_codes.device, r.max_frames
    S = pattern.num_steps(T)
    lengths, stopped = r.limits.clone(), torch.zeros(B, dtype=torch.bool, device=device)
    codes = r.canvas(T, special)

    def column(steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of steps (n,), each (B, n, K): frames, whether they are in the sequence, and in a prompt,
        the grid."""
        frames = pattern.cells(steps, lengths).expand(B, len(steps), K)
        inside = (frames >= 0) & (frames < lengths[:, None, None])
        known = (frames >= 0) & (frames < r.prompt_lengths[:, None, None])
        grid = codes.gather(1, frames.clamp(0, T - 1)).masked_fill(~inside, special)
        return frames, inside, known, grid

    frames, _, known, grid = column(torch.arange(S, device=device))
    complete = (known | (frames < 0)).all(2).all(0)  # (S,)
    begin = int(complete.int().cumprod(0).sum())
    endless = torch.full((1,), torch.iinfo(torch.int64).max, device=device)
    # step of an end decision -> frames before it, -1 for other steps
    decisions = pattern.cells(torch.arange(S, device=device), endless)[0, :, 0].tolist()

    noise = uniforms(r.seed, r.rows, S, K + 1).to(device)
    guided, scale = r.guided, r.sampling.cfg_scale
    conditions, drop = r.conditions_of_rows()
    state = model.begin(conditions, 2 * B if guided else B, S, drop)
    start = torch.full((B, 1, K), special, device=device)
    inputs = torch.cat([start, grid[:, :begin]], 1)
    for s in range(begin, S):
        steps = torch.arange(s + 1 - inputs.shape[1], s + 1, device=device)
        positions = pattern.positions(steps, lengths)
        if guided:
            inputs = inputs.repeat(2, 1, 1)
            positions = None if positions is None else positions.repeat(2, 1)
        hidden, end = model.step(inputs, state, positions)
        if end is not None and (n := decisions[s]) > 0:
            if guided:
                end = guide(end, scale)
            may = ~stopped & (n >= r.prompt_lengths) & (n >= r.min_frames) & (n < lengths)
            draw = noise[:, s, K] if r.sampling.temperature else 0.5
            ends = may & (end.float().sigmoid() > draw)
            lengths = torch.where(ends, n, lengths)
            stopped |= ends

        def choose(level: int, logits: Tensor, s=s) -> Tensor:
            if guided:
                logits = guide(logits, scale)
            return sample(logits, noise[:, s, level : level + logits.shape[1]], r.sampling)

        drawn = model.draw(hidden, choose)
        frames, inside, known, grid = column(torch.arange(s, s + 1, device=device))  # (B, 1, K)
        grid = torch.where(known & inside, grid, drawn[:, None]).masked_fill(~inside, special)
        # cells outside the sequence are written back as they were
        index = frames.clamp(0, T - 1)
        codes.scatter_(1, index, torch.where(inside, grid, codes.gather(1, index)))
        inputs = grid
        if r.progress is not None:
            r.progress(s + 1 - begin)
        if s + 1 >= pattern.num_steps(int(lengths.max())):
            break
    return Generation.trimmed(codes, lengths, r.prompt_lengths, stopped)
