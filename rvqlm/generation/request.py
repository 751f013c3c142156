"""What generation is asked for and what it gives back, the same for every family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rvqlm.batch import PAD, Padded, mask_of
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig

BOUND_TO_TIME = ("text", "midi")
"""Conditions that lie at times of the whole sequence."""


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
    """Per item ``eos`` (the model chose the end) or ``length`` (it reached its limit)."""
    times: Tensor | None = None
    """(B, S, 2) frames at which the symbols of a text begin and end, by models that say so; NaN
    past its length."""
    likelihood: Tensor | None = None
    """(B,) mean log probability of a drawn code, where the best of several is wanted."""

    def best(self, several: int) -> Generation:
        """Of every ``several`` items that follow one another the likeliest."""
        if several == 1:
            return self
        best = self.likelihood.view(-1, several).argmax(1)
        index = torch.arange(len(best), device=best.device) * several + best
        lengths = self.lengths[index]
        return replace(
            self,
            codes=self.codes[index, : int(lengths.max())],
            lengths=lengths,
            prompt_lengths=self.prompt_lengths[index],
            stop=[self.stop[i] for i in index.tolist()],
            times=None if self.times is None else self.times[index],
            likelihood=self.likelihood[index],
        )

    def items(self) -> list[Tensor]:
        return [c[:n] for c, n in zip(self.codes, self.lengths.tolist())]

    @classmethod
    def trimmed(
        cls, codes: Tensor, lengths: Tensor, prompt_lengths: Tensor, ended: Tensor
    ) -> Generation:
        """From codes (B, T, K) that are long enough and ``ended`` (B,) bool."""
        longest = int(lengths.max())
        past = ~mask_of(lengths, longest)
        return cls(
            codes[:, :longest].masked_fill(past[:, :, None], PAD),
            lengths,
            prompt_lengths,
            ["eos" if e else "length" for e in ended.tolist()],
        )


@dataclass
class Request:
    """A checked order: tensors on the model's device, one entry an item throughout."""

    prompt_codes: Tensor
    """(B, P, K) int64; P may be 0."""
    prompt_lengths: Tensor
    """(B,) int64"""
    limits: Tensor
    """(B,) longest sequences in frames, prompts included."""
    min_frames: Tensor
    """(B,) no end before these, prompts included."""
    sampling: SamplingConfig
    demask: DemaskConfig
    conditions: Mapping[str, Padded] = field(default_factory=dict)
    seed: int = 0
    rows: list[int] = field(default_factory=list)
    """Number of each item in the random stream: an item draws the same in any batch that gives it
    the same number."""
    progress: Callable[[int], None] | None = None
    """Called after each step with the number of steps made."""
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    durations: Tensor | None = None
    """(B, 1 + S) frames of the silence before the text and of each of its symbols; NaN: the model's
    choice. None: all are."""
    suffix_codes: Tensor | None = None
    """(B, A, K) codes that follow the gap, for infilling."""
    logit_bias: Tensor | None = None
    """(K, V) added to the logits; -inf bans a code."""
    context_frames: int | None = None
    """Longest sequence that a model which writes from left to right is shown: a longer one goes on
    in windows, `overlap_frames` of the last one being the prompt of the next. None: all of it."""
    overlap_frames: int = 0
    shared: bool = False
    """Whether others begin with the same prompt, so that what is computed of it alone is worth
    keeping (`rvqlm.generation.kept`)."""

    @property
    def batch_size(self) -> int:
        return len(self.prompt_lengths)

    @property
    def max_frames(self) -> int:
        return int(self.limits.max())

    @property
    def guided(self) -> bool:
        """Whether the unconditional half has to be computed at all."""
        return bool(self.conditions) and self.sampling.cfg_scale != 1.0

    def conditions_of_rows(self) -> tuple[Mapping[str, Padded], Tensor | None]:
        """Conditions of all rows to compute, and under guidance, where each item has two, which of
        them (2 B,) are given none: the second half."""
        if not self.guided:
            return self.conditions, None
        twice = {kind: padded.repeat(2) for kind, padded in self.conditions.items()}
        rows = torch.arange(2 * self.batch_size, device=self.limits.device)
        return twice, rows >= self.batch_size

    def several(self) -> Request:
        """Each item ``best_of`` times, one after the other, as rows of their own in the random
        stream, the first as if it were alone."""
        n = self.sampling.best_of
        if n == 1:
            return self

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(n, 0)

        names = ("prompt_codes", "prompt_lengths", "limits", "min_frames", "suffix_codes")
        return replace(
            self,
            **{name: repeat(getattr(self, name)) for name in names},
            conditions={k: Padded(*map(repeat, p)) for k, p in self.conditions.items()},
            rows=[row + (i << 32) for row in self.rows for i in range(n)],
        )

    def in_windows(self, context_frames: int, overlap_frames: int | None = None) -> Request:
        """The same in windows of so many frames, of which the next is given half by default; as it
        is where it does not reach beyond one.

        :raises UserError: windows that lead nowhere, or conditions that they cannot carry on.
        """
        overlap = context_frames // 2 if overlap_frames is None else overlap_frames
        if not 0 <= overlap < context_frames:
            raise UserError(
                f"a context of {context_frames} frames of which {overlap} are those of the window "
                "before leads nowhere: --overlap-seconds must be less than --context-seconds"
            )
        if self.max_frames <= context_frames:
            return self
        if bound := [kind for kind in self.conditions if kind in BOUND_TO_TIME]:
            raise UserError(
                f"{', '.join(bound)}: cannot be carried on beyond a context of {context_frames} "
                f"frames, and up to {self.max_frames} are asked for; ask for less, or a longer "
                "--context-seconds"
            )
        return replace(self, context_frames=context_frames, overlap_frames=overlap)

    def window(self, prompt: Tensor, base: int, limit: int) -> Request:
        """Of one item the sequence from frame ``base`` on, of at most ``limit`` frames, continuing
        a prompt (1, P, K)."""
        found = dict(self.conditions)
        if self.context_frames is not None and "source" in found:
            values, lengths, *_ = found["source"]
            lengths = (lengths - base).clamp(0, limit)
            found["source"] = Padded(values[:, base : base + limit], lengths)
        return replace(
            self,
            prompt_codes=prompt,
            prompt_lengths=torch.full_like(self.prompt_lengths, prompt.shape[1]),
            limits=torch.full_like(self.limits, limit),
            min_frames=self.min_frames - base,
            conditions=found,
        )

    def item(self, n: int) -> Request:
        """One of them."""

        def only(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[n : n + 1]

        names = ("prompt_codes", "prompt_lengths", "limits", "min_frames", "suffix_codes")
        return replace(
            self,
            **{name: only(getattr(self, name)) for name in (*names, "durations")},
            conditions={kind: given.map(only) for kind, given in self.conditions.items()},
            rows=self.rows[n : n + 1],
        )

    def canvas(self, num_frames: int, special: int) -> Tensor:
        """(B, T, K) codes: the prompts, and ``special`` elsewhere."""
        prompts = self.prompt_codes[:, :num_frames]
        B, P, K = prompts.shape
        known = mask_of(self.prompt_lengths, P)
        codes = prompts.new_full((B, num_frames, K), special)
        codes[:, :P] = prompts.masked_fill(~known[..., None], special)
        return codes


def make_request(
    info: CodecInfo,
    device: torch.device,
    prompt_codes: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    max_new_frames: int | None = None,
    *,
    max_frames: int | None = None,
    limits: Tensor | None = None,
    min_frames: int | Tensor = 0,
    min_new_frames: int = 0,
    sampling: SamplingConfig | None = None,
    demask: DemaskConfig | None = None,
    speech: SpeechConfig | None = None,
    durations: Tensor | None = None,
    logit_bias: Tensor | None = None,
    conditions: Mapping[str, Padded] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    rows: list[int] | None = None,
    progress: Callable[[int], None] | None = None,
    context_frames: int | None = None,
    overlap_frames: int | None = None,
) -> Request:
    """Check what a caller gave; see `TokenModel.generate` for the parameters.

    :raises UserError: a prompt that leaves no room, codes out of range, bad sampling options,
        batches of different sizes.
    """
    sampling, demask = sampling or SamplingConfig(), demask or DemaskConfig()
    speech = speech or SpeechConfig()
    if problems := [*sampling.problems(), *demask.problems(), *speech.problems()]:
        raise UserError("; ".join(problems))
    K, V = info.num_codebooks, info.codebook_size
    conditions = {k: p.to(device) for k, p in (conditions or {}).items()}
    sizes = {len(p.lengths) for p in conditions.values()}
    if prompt_codes is not None:
        sizes.add(len(prompt_codes))
    if batch_size is not None:
        sizes.add(batch_size)
    if len(sizes) > 1:
        raise UserError(f"prompts and conditions are for {sorted(sizes)} items: give one for each")
    B = sizes.pop() if sizes else 1
    if prompt_codes is None:
        prompt_codes = torch.empty(B, 0, K, dtype=torch.int64)
    if prompt_codes.ndim != 3 or prompt_codes.shape[2] != K:
        raise UserError(f"the prompt has shape {tuple(prompt_codes.shape)}, wanted (B, P, {K})")
    P = prompt_codes.shape[1]
    if prompt_lengths is None:
        prompt_lengths = torch.full((B,), P)
    prompt_lengths = prompt_lengths.to(device)
    prompt_codes = prompt_codes.to(device).long()
    if P and int(prompt_lengths.max()) > P:
        raise UserError(f"a prompt length of {int(prompt_lengths.max())} exceeds its {P} frames")
    if not 0 <= min_new_frames <= (max_new_frames or min_new_frames):
        raise UserError(
            f"min_new_frames {min_new_frames}: give at least 0 and at most max_new_frames"
        )
    if limits is None:
        if (max_frames is None) == (max_new_frames is None):
            raise UserError("give max_new_frames or max_frames, one of them")
        limits = prompt_lengths + max_new_frames if max_frames is None else max_frames
    limits = torch.as_tensor(limits, device=device).expand(B).clone()
    if max_frames is not None:
        limits = limits.clamp(max=max_frames)
    if bool((limits <= prompt_lengths).any()):
        worst = int((prompt_lengths - limits).argmax())
        raise UserError(
            f"a prompt of {int(prompt_lengths[worst])} frames leaves nothing to generate within "
            f"{int(limits[worst])} frames; shorten it or ask for more"
        )
    given = prompt_codes[mask_of(prompt_lengths, P)]
    if given.numel() and not (int(given.min()) >= 0 and int(given.max()) < V):
        raise UserError(f"prompt codes must lie in 0 ... {V - 1}")
    if (banned := sampling.bias(K, V)) is not None:
        logit_bias = banned if logit_bias is None else logit_bias.cpu() + banned
    if logit_bias is not None:
        logit_bias = logit_bias.to(device)
        if logit_bias.shape != (K, V) or not bool((logit_bias > -torch.inf).any(1).all()):
            raise UserError(f"--ban, logit_bias ({K}, {V}): a code must be left at every level")
    shortest = torch.as_tensor(min_frames, device=device).expand(B)
    made = Request(
        prompt_codes=prompt_codes,
        prompt_lengths=prompt_lengths,
        limits=limits,
        min_frames=torch.maximum(shortest, prompt_lengths + min_new_frames),
        sampling=sampling,
        demask=demask,
        speech=speech,
        durations=None if durations is None else durations.to(device).float(),
        logit_bias=logit_bias,
        conditions=conditions,
        seed=seed,
        rows=list(range(B)) if rows is None else list(rows),
        progress=progress,
    )
    return made if context_frames is None else made.in_windows(context_frames, overlap_frames)
