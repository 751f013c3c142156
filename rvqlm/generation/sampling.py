"""From logits to one code per level: temperature, top-k, top-p, and draws that are reproducible.

Randomness comes in as uniform numbers, one per item, step and level, drawn from a generator per
item before decoding begins: what an item becomes does not depend on the batch around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor


@dataclass
class SamplingConfig:
    """How codes are drawn."""

    temperature: float = 1.0
    """Divides the logits: below 1 safer, above 1 more varied, 0 takes the most likely code."""
    top_k: int = 0
    """Top-k sampling: draw among the k most likely codes of each level only; 0: all."""
    top_p: float = 1.0
    """Nucleus sampling: draw among the most likely codes that together hold this probability; 1:
    all."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: how far to go from what the model would say without its conditions
    to what it says with them. 1: no guidance, at half the cost; 2 to 4 follow a text more
    closely."""

    def problems(self) -> list[str]:
        found = []
        if self.temperature < 0:
            found.append(f"--temperature {self.temperature} must not be negative")
        if self.top_k < 0:
            found.append(f"--top-k {self.top_k} must not be negative")
        if not 0 < self.top_p <= 1:
            found.append(f"--top-p {self.top_p} must be in (0, 1]")
        if not 0 <= self.cfg_scale < float("inf"):
            found.append(f"--cfg-scale {self.cfg_scale} must not be negative")
        return found


@dataclass
class SpeechConfig:
    """How long the symbols of a text are said, by models that learned it (texts with rvqlm
    align)."""

    speed: float = 1.0
    """Speak so many times as fast."""
    duration_temperature: float = 0.0
    """0: each symbol as long as is most typical of it (the median); 1: drawn from what the model
    learned; between, nearer to the likely."""

    def problems(self) -> list[str]:
        found = []
        if not 0.1 <= self.speed <= 10:
            found.append(f"--speed {self.speed:g} must lie between 0.1 and 10")
        if not 0 <= self.duration_temperature <= 10:
            found.append(f"--duration-temperature {self.duration_temperature:g} must be in [0, 10]")
        return found


@dataclass
class DemaskConfig:
    """How masked models fill in (for others these must stay unset)."""

    steps: int | None = None
    """Passes over the sequence; more are better and slower. Unset: 16."""
    fine_steps: int | None = None
    """Passes for each level but the first, where a model fills in level after level (--masking
    coarse_first); --steps are those for the first. Unset: 1."""
    score: Literal["confidence", "random"] | None = None
    """Which masked codes a pass keeps: those that the model is most sure of, or any. Unset:
    confidence."""
    score_noise: float | None = None
    """Gumbel noise on the confidence, falling to 0 by the last pass; more varied results. Unset:
    1."""
    remask: bool | None = None
    """Later passes may take back codes that earlier ones kept. Unset: no."""
    chunk_seconds: float | None = None
    """Fill in stretches of so many seconds, one after the other, so that time and memory of a pass
    do not grow with the length. Unset: all at once."""
    overlap_seconds: float | None = None
    """What a stretch is shown of the codes before it, and of those that follow a gap. Unset: as
    much as --chunk-seconds."""
    frame_by_frame: bool = False
    """Write frame after frame, as autoregressive models do; for models that were trained in both
    ways, with --ar-share."""

    def problems(self) -> list[str]:
        found = []
        for name in ("steps", "fine_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.score_noise is not None and not 0 <= self.score_noise < float("inf"):
            found.append(f"--score-noise {self.score_noise} must not be negative")
        if self.chunk_seconds is not None and not 0 < self.chunk_seconds < float("inf"):
            found.append(f"--chunk-seconds {self.chunk_seconds} must be more than 0")
        if self.overlap_seconds is not None and not 0 <= self.overlap_seconds < float("inf"):
            found.append(f"--overlap-seconds {self.overlap_seconds} must not be negative")
        if self.overlap_seconds is not None and self.chunk_seconds is None:
            found.append(f"--overlap-seconds {self.overlap_seconds} goes with --chunk-seconds")
        if self.score_noise is not None and self.score == "random":
            found.append("--score-noise goes with --score confidence; random is all noise")
        return found

    def settings(self) -> dict:
        """What is set, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    def given(self) -> list[str]:
        """Flags that are set."""
        return ["--" + name.replace("_", "-") for name in self.settings()]


def guide(logits: Tensor, scale: float) -> Tensor:
    """(2 B, ...) logits, the conditional half first, to (B, ...): u + scale * (c - u) (Ho &
    Salimans, 2022, arXiv:2207.12598)."""
    conditional, unconditional = logits.float().chunk(2)
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(..., V) logits with all but the allowed codes at -inf.

    top-p keeps the smallest set of most likely codes whose probability reaches ``top_p`` (Holtzman
    et al., 2020, arXiv:1904.09751), at least one; where both are given, of those left by top-k.
    """
    V = logits.shape[-1]
    if 0 < top_k < V:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p  # probability of all more likely codes
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def sample(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Draw codes by inverting the cumulative distribution.

    :param logits: (..., V).
    :param uniform: (...) in [0, 1); not looked at when the temperature is 0.
    :return: (...) int64.
    """
    logits = logits.float()
    if config.temperature == 0:
        return logits.argmax(-1)
    p = filter_logits(logits / config.temperature, config.top_k, config.top_p).softmax(-1)
    cumulative = p.double().cumsum(-1)
    point = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    drawn = (cumulative <= point).sum(-1)
    # rounding could land past the last code that has any probability
    last = p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.uint8).argmax(-1)
    return torch.minimum(drawn, last)


def uniforms(seed: int, rows: Iterable[int], num_steps: int, width: int) -> Tensor:
    """(len(rows), num_steps, width) float32 uniforms, each row from its own generator.

    A row depends on ``seed`` and its number alone, and its first steps do not change with
    ``num_steps``.
    """
    drawn = [torch.rand(num_steps, width, generator=g) for g in generators(seed, rows)]
    return torch.stack(drawn)


def generators(seed: int, rows: Iterable[int]) -> list[torch.Generator]:
    """One for each row, which depends on ``seed`` and the row's number alone."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]
