"""The decoding loop of masked models: all codes hidden at first, filled in within a few passes.

Each pass predicts every hidden code at once, keeps those that it is surest of, and hides the rest
again; how many stay hidden falls along a quarter of a cosine (MaskGIT: Chang et al., 2022,
arXiv:2202.04200). Codes kept in one pass are drawn independently of each other, so more passes make
better sequences; with as many as there are codes it is decoding in a random order. A prompt, and
what follows a gap, are known from the start.

A model that works from level to level (``coarse_first``) fills level 0 within ``steps`` passes and
each other level within ``fine_steps`` (SoundStorm: Borsos et al., 2023, arXiv:2305.09636).

In chunks, each is filled in completely before the next, and sees so much of the codes before it as
the overlap says: what a pass costs is bounded, however long the sequence. Conditions are those of
the whole, and lie where they lie.

Random numbers are a function of the seed, the item, the pass, the frame and the level, so that no
item depends on those beside it; and the shapes of a pass are those of its window, whatever is
hidden, so that nothing waits for a number to come back from a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import cos, pi
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import guide, row_keys, sample, uniforms_of
from rvqlm.modules.masking import lowest

LOGITS_AT_ONCE = 1 << 23
"""Logits of a level that are held at once: 32 MiB."""


class FillsIn(Protocol):
    """What the loop needs of a model."""

    masking: str
    special: int
    frame_rate: float

    def choose_lengths(self, request: Request, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) frames, prompt included and suffix not, and (B,) whether the model chose them."""

    def encode_conditions(self, conditions, frames: Tensor, drop: Tensor | None):
        """Context of items of so many frames (B,); ``drop`` (B,) bool: those without conditions."""

    def hidden(self, codes: Tensor, frames: Tensor, context, positions: Tensor | None) -> Tensor:
        """(B, T, K) codes with `special` where hidden, at positions (B, T) or 0, 1, ... ->
        (B, T, d)."""

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """(n, d) -> (n, V) of one level."""


class Pass(NamedTuple):
    """One pass over the sequence."""

    levels: slice
    """Levels that it fills in."""
    left: float
    """Share of their units that stay hidden after it."""
    noise: float
    """Factor of the noise on the scores."""


def plan_passes(masking: str, num_codebooks: int, steps: int, fine_steps: int) -> list[Pass]:
    """All passes of a decoding.

    >>> [round(p.left, 2) for p in plan_passes("frame", 8, 4, 1)]
    [0.92, 0.71, 0.38, 0.0]
    """

    def over(levels: slice, number: int) -> list[Pass]:
        done = [(i + 1) / number for i in range(number)]
        return [Pass(levels, cos(pi / 2 * d) if d < 1 else 0.0, 1 - d) for d in done]

    if masking != "coarse_first":
        return over(slice(0, num_codebooks), steps)
    found = []
    for level in range(num_codebooks):
        found += over(slice(level, level + 1), fine_steps if level else steps)
    return found


def demask(model: FillsIn, request: Request) -> Generation:
    """Fill in what lies between prompt and end, or between prompt and suffix, at once or in
    chunks."""
    for made in demask_chunks(model, request):  # noqa: B007 - the last is all
        pass
    return made


def demask_chunks(model: FillsIn, request: Request) -> Iterator[Generation]:
    """What there is after each chunk, the last time all of it."""
    r, special, config = request, model.special, request.demask
    K, device = r.prompt_codes.shape[2], r.prompt_codes.device
    keys = row_keys(r.seed, r.rows, device)
    first = uniforms_of(keys, keys.new_zeros(1, 1), 1)[:, 0, 0]
    ends, chosen = model.choose_lengths(r, first)  # (B,) where the gap ends
    frames = ends
    if r.suffix_codes is not None:
        frames = ends + r.suffix_codes.shape[1]
    # waited for a device once: what shapes depend on is the host's from here
    known = torch.stack([r.prompt_lengths, ends, frames]).cpu()
    T = int(known[2].max())
    codes = r.canvas(T + 1, special)  # and a frame to spare
    if r.suffix_codes is not None:
        places = ends[:, None] + torch.arange(r.suffix_codes.shape[1], device=device)
        codes.scatter_(1, places[..., None].expand(-1, -1, K), r.suffix_codes)

    conditions, drop = r.conditions_of_rows()
    context = model.encode_conditions(conditions, frames.repeat(2) if r.guided else frames, drop)
    size, overlap = T, T
    if config.chunk_seconds is not None:
        size, overlap = (
            round((config.chunk_seconds if seconds is None else seconds) * model.frame_rate)
            for seconds in (config.chunk_seconds, config.overlap_seconds)
        )
        size = max(1, size)
    passes, chunks = itertools.count(1), plan_chunks(*known, size, overlap)
    bounds = torch.stack([torch.stack(chunk) for chunk in chunks]).to(device, non_blocking=True)
    for number, (chunk, (made, until, begin, stop)) in enumerate(zip(chunks, bounds)):
        at = begin[:, None] + torch.arange(int((chunk.stop - chunk.begin).max()), device=device)
        at = at.masked_fill(at >= stop[:, None], T)  # (B, W)
        cells = at[..., None].expand(-1, -1, K)
        window = Window(
            codes.gather(1, cells),
            (at >= made[:, None]) & (at < until[:, None]),
            int((chunk.until - chunk.made).max()),
            begin,
            stop - begin,
            bool(chunk.begin.any()),
        )
        codes.scatter_(1, cells, _fill_in(model, window, context, keys, r, passes))
        if number + 1 < len(chunks):
            ended = chosen & (until >= ends)
            yield Generation.trimmed(codes[:, :T], until, r.prompt_lengths, ended)
    yield Generation.trimmed(codes[:, :T], frames, r.prompt_lengths, chosen)


class Chunk(NamedTuple):
    """(B,) frames of each item, on the host."""

    made: Tensor
    """The first to fill in, ..."""
    until: Tensor
    """... and where that ends."""
    begin: Tensor
    """The first that is seen, ..."""
    stop: Tensor
    """... and where that ends."""


def plan_chunks(
    prompt_lengths: Tensor, ends: Tensor, frames: Tensor, size: int, overlap: int
) -> list[Chunk]:
    """Chunks of so many frames at most, which see so many others, from the prompts to the ends of
    the gaps (B,).

    >>> plan = plan_chunks(*torch.tensor([[1], [6], [8]]), 4, 2)
    >>> [[int(x) for x in chunk] for chunk in plan]
    [[1, 5, 0, 5], [5, 6, 3, 8]]
    """
    made, found = prompt_lengths, []
    while bool((made < ends).any()):
        until = torch.minimum(made + size, ends)
        begin = (made - overlap).clamp(min=0)
        # once the gap is closed what follows it is seen, and an item that is done sees a frame
        stop = torch.where(until < ends, until, torch.minimum(frames, ends + overlap))
        found.append(Chunk(made, until, torch.minimum(begin, stop - 1), stop))
        made = until
    return found


class Window(NamedTuple):
    """A stretch of each item."""

    codes: Tensor
    """(B, W, K)"""
    gap: Tensor
    """(B, W) bool: frames to fill in."""
    most: int
    """Of these in an item."""
    begin: Tensor
    """(B,) first frames."""
    frames: Tensor
    """(B,) how many there are."""
    late: bool
    """Whether any begins after the first."""


def _fill_in(
    model: FillsIn,
    window: Window,
    context,
    keys: Tensor,
    request: Request,
    passes: Iterator[int],
) -> Tensor:
    """Codes (B, W, K) of a window, filled in.

    :param keys: (B,) random streams of the items.
    :param passes: numbers of those made, from 1.
    """
    r, config, special = request, request.demask, model.special
    codes, gap, most, begin, frames, late = window
    B, W, K = codes.shape
    twice = 2 if r.guided else 1
    frames_of_rows, positions = frames.repeat(twice), None
    at = begin[:, None] + torch.arange(W, device=codes.device)
    if late:
        positions = at.repeat(twice, 1)
    # frames of the gap, (B, G); of items with fewer of them some others, which stay as they are
    open_ = gap.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    hidden_cells = gap[..., None].repeat(1, 1, K)
    scores = torch.zeros(B, W, K, device=codes.device)
    for step in plan_passes(model.masking, K, config.steps or 16, config.fine_steps or 1):
        levels, number = step.levels, next(passes)
        random = uniforms_of(keys, (number << 32) + at, 2 * K)
        uniform, noise = random[..., levels], random[..., K:][..., levels]
        masked = hidden_cells[..., levels]  # (B, W, k)
        states = model.hidden(codes.repeat(twice, 1, 1), frames_of_rows, context, positions)
        new, score = _predict(model, states, open_, levels, uniform, r)
        codes[..., levels] = torch.where(masked, new, codes[..., levels])
        scores[..., levels] = torch.where(masked, score, scores[..., levels])
        sure = noise
        if config.score != "random":
            gumbel = -(-noise.clamp(1e-9, 1 - 1e-7).log()).log()
            scale = 1.0 if config.score_noise is None else config.score_noise
            sure = scores[..., levels] + scale * step.noise * gumbel
        again = _hide_again(model.masking, sure, masked, gap, step.left, bool(config.remask))
        codes[..., levels] = codes[..., levels].masked_fill(again, special)
        hidden_cells[..., levels] = again
        if r.progress is not None:
            r.progress(number)
    return codes


def _predict(
    model: FillsIn, states: Tensor, frames: Tensor, levels: slice, uniform: Tensor, request: Request
) -> tuple[Tensor, Tensor]:
    """Draw all cells of some frames: codes and the log probability of each, (B, W, k), elsewhere 0.

    :param states: (B, W, d), twice as many rows under guidance.
    :param frames: (B, G).
    :param uniform: (B, W, k).
    """
    B, W, count = uniform.shape
    index = (torch.arange(B, device=frames.device)[:, None] * W + frames).flatten()  # (B * G)
    new = torch.zeros(B * W, count, dtype=torch.int64, device=frames.device)
    score, uniform = torch.zeros_like(new, dtype=torch.float32), uniform.flatten(0, 1)
    states = states.flatten(0, 1)
    for part in index.split(max(1, LOGITS_AT_ONCE // model.special)):
        both = torch.cat([part, part + B * W]) if request.guided else part
        inputs, random = states[both], uniform[part]
        for column in range(count):
            level = levels.start + column
            logits = model.logits(inputs, level).float()
            if request.guided:
                logits = guide(logits, request.sampling.cfg_scale)
            drawn = sample(logits, random[:, column], request.sampling, level)
            new[part, column] = drawn
            score[part, column] = logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    return new.view(B, W, count), score.view(B, W, count)


def _hide_again(
    masking: str, keys: Tensor, masked: Tensor, gap: Tensor, left: float, remask: bool
) -> Tensor:
    """(B, T, k) bool: cells that stay hidden after a pass, those of least key.

    :param masked: (B, T, k): those hidden before it; with ``remask`` any in the gap can be.
    """
    B, T, count = keys.shape
    everything = gap[..., None].expand(B, T, count)
    if masking == "frame":
        keys, everything, masked = keys.sum(2), gap, masked.any(2)
    keys, everything, masked = (x.flatten(1) for x in (keys, everything, masked))
    # at least one unit is kept for good, however few there are for so many passes
    number = torch.minimum((left * everything.sum(1)).floor(), masked.sum(1) - 1)
    again = lowest(keys, everything if remask else masked, number)
    return again.view(B, T, -1).expand(B, T, count)
