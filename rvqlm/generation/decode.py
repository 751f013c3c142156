"""The decoding loop of all autoregressive models.

A pattern's step grid is filled from left to right: the prompt is laid out, the steps that it
fills completely are heard in one pass, and from there one step is made at a time over a
preallocated key-value cache. Prompts of unequal lengths share a batch: where an item's prompt
still has a code, it is taken instead of a draw. The end is decided where the next frame's level
0 would stand; the finer levels of the frames before are still completed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rvqlm.data.batch import PAD
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig, sample, uniforms


@dataclass
class Generation:
    """Codes of a batch, prompts included."""

    codes: Tensor
    """(B, T, K) int64, `PAD` past lengths."""
    lengths: Tensor
    """(B,) int64 frames."""
    prompt_lengths: Tensor
    """(B,) int64 leading frames that came from the prompt."""
    stop: list[str]
    """Per item ``eos`` (the model ended it) or ``length`` (it reached max_frames)."""

    def items(self) -> list[Tensor]:
        return [c[:n] for c, n in zip(self.codes, self.lengths.tolist())]


@torch.no_grad()
def generate(
    model,
    prompt_codes: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    *,
    max_frames: int,
    min_frames: int | Tensor = 0,
    limits: Tensor | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int = 1,
    seed: int = 0,
    rows: list[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generation:
    """Continue prompts, or make sequences from nothing.

    :param prompt_codes: (B, P, K) integers; None generates ``batch_size`` items unprompted.
    :param prompt_lengths: (B,) valid frames of the prompts; all P by default.
    :param max_frames: longest sequence, prompt included.
    :param min_frames: no end before this many frames, prompt included; one number or (B,).
    :param limits: (B,) longest sequence of each item, where it differs from ``max_frames``.
    :param seed: of the draws.
    :param rows: number of each item in the random stream, 0 ... B - 1 by default: an item draws
        the same in any batch that gives it the same number.
    :param progress: called after each step with the number of steps made.
    :raises UserError: a prompt that leaves no room, codes out of range, bad sampling options.
    """
    sampling = sampling or SamplingConfig()
    sampling.check()
    pattern, special = model.pattern, model.special
    K, V = model.info.num_codebooks, model.info.codebook_size
    device = next(model.parameters()).device
    if prompt_codes is None:
        prompt_codes = torch.empty(batch_size, 0, K, dtype=torch.int64)
    B, P, _ = prompt_codes.shape
    if prompt_codes.shape[2] != K:
        raise UserError(f"the prompt has {prompt_codes.shape[2]} codebooks, the model {K}")
    if prompt_lengths is None:
        prompt_lengths = torch.full((B,), P)
    if max_frames < 1 or (P and int(prompt_lengths.max()) >= max_frames):
        longest = int(prompt_lengths.max()) if P else 0
        raise UserError(
            f"a prompt of {longest} frames leaves nothing to generate within {max_frames} frames; "
            "shorten it or ask for more"
        )
    prompt_lengths = prompt_lengths.to(device)
    prompt_codes = prompt_codes.to(device).long()
    real = torch.arange(P, device=device)[None, :] < prompt_lengths[:, None]
    heard = prompt_codes[real]
    if heard.numel() and not (int(heard.min()) >= 0 and int(heard.max()) < V):
        raise UserError(f"prompt codes must lie in 0 ... {V - 1}")

    S = pattern.num_steps(max_frames)
    full = torch.full((B,), max_frames, device=device)
    frames = pattern.frames(max_frames, S).to(device)  # (S, K)
    padded = prompt_codes.new_zeros(B, max_frames, K)
    padded[:, :P] = prompt_codes
    grid, _ = pattern.interleave(padded, full, special, S)  # (B, S, K)
    known = (frames[None] >= 0) & (frames[None] < prompt_lengths[:, None, None])  # (B, S, K)
    # steps that every item's prompt fills: heard in one pass
    complete = (known | (frames < 0)[None]).all(2).all(0)
    begin = int(complete.int().cumprod(0).sum())
    counts = torch.arange(max_frames)
    ends_at = pattern.steps(counts, full[:1].cpu())[0, :, 0].tolist()
    frames_before = dict(zip(ends_at, range(max_frames)))  # step of an end decision -> frames

    noise = uniforms(seed, range(B) if rows is None else rows, S, K + 1).to(device)
    lengths = full.clone() if limits is None else limits.to(device).clamp(max=max_frames)
    min_frames = torch.as_tensor(min_frames, device=device)
    stopped = torch.zeros(B, dtype=torch.bool, device=device)
    cache = model.transformer.make_cache(B, S)
    was_training = model.training
    model.eval()
    try:
        inputs = model.shift(grid)[:, : begin + 1]
        for s in range(begin, S):
            logits, end_logit = model.step(inputs, cache)
            n = frames_before.get(s, 0)
            if end_logit is not None and n > 0:
                may = ~stopped & (n >= prompt_lengths) & (n >= min_frames) & (n < lengths)
                p_end = end_logit.float().sigmoid()
                draw = noise[:, s, K] if sampling.temperature else 0.5
                ends = may & (p_end > draw)
                lengths = torch.where(ends, n, lengths)
                stopped |= ends
            drawn = sample(logits, noise[:, s, :K], sampling)
            inside = (frames[s] >= 0)[None] & (frames[s][None] < lengths[:, None])
            column = torch.where(known[:, s], grid[:, s], drawn)
            grid[:, s] = torch.where(inside, column, special)
            inputs = grid[:, s : s + 1]
            if progress is not None:
                progress(s + 1 - begin)
            if s + 1 >= pattern.num_steps(int(lengths.max())):
                break
    finally:
        model.train(was_training)
    longest = int(lengths.max())
    codes = pattern.deinterleave(grid, full, max_frames, PAD)[:, :longest]
    past = torch.arange(longest, device=device)[None, :] >= lengths[:, None]
    return Generation(
        codes.masked_fill(past[:, :, None], PAD),
        lengths,
        prompt_lengths,
        ["eos" if s else "length" for s in stopped.tolist()],
    )
