"""From logits to one code per level: temperature, filters, and draws that are reproducible.

Randomness comes in as uniform numbers, a function of seed, item, step and level: what an item
becomes depends neither on the batch around it nor on how long it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from rvqlm.errors import UserError
from rvqlm.modules import native

COLDEST = 1e-6
"""Temperature that stands for 0 where only some levels are greedy."""


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
    min_p: float = 0.0
    """Leave out codes that are less than so many times as likely as the likeliest; 0: none."""
    level_temperatures: tuple[float, ...] = ()
    """Temperatures of the levels in turn, the last for all further ones, instead of
    --temperature (which then is that of the end decision)."""
    repetition_window: int = 0
    """Repetition-aware sampling: a code that is more than --repetition-threshold of the so many
    last ones of its level is drawn again among all codes. VALL-E 2 has 10; 0: no."""
    repetition_threshold: float = 0.1
    """Largest share of a code among the last ones of its level."""
    ban: tuple[str, ...] = ()
    """Codes that are never drawn, LEVEL:CODE each, levels from 0; such as 0:17 3:255."""
    best_of: int = 1
    """Make so many of each sample and keep the one that the model finds likeliest, by the mean log
    probability of a code."""
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
        if not 0 <= self.min_p <= 1:
            found.append(f"--min-p {self.min_p} must be in [0, 1]")
        if not all(0 <= t < float("inf") for t in self.level_temperatures):
            found.append(f"--level-temperatures {self.level_temperatures} must not be negative")
        if self.repetition_window < 0:
            found.append(f"--repetition-window {self.repetition_window} must not be negative")
        if not 0 <= self.repetition_threshold <= 1:
            found.append(f"--repetition-threshold {self.repetition_threshold} must be in [0, 1]")
        for given in self.ban:
            if not re.fullmatch(r"\d+:\d+", given, re.ASCII):
                found.append(f"--ban {given}: give LEVEL:CODE, such as 0:17")
        if self.best_of < 1:
            found.append(f"--best-of {self.best_of} must be at least 1")
        if not 0 <= self.cfg_scale < float("inf"):
            found.append(f"--cfg-scale {self.cfg_scale} must not be negative")
        return found

    def bias(self, num_codebooks: int, codebook_size: int) -> Tensor | None:
        """(K, V), -inf for banned codes; None without any.

        :raises UserError: there are no such codes.
        """
        if not self.ban:
            return None
        bias = torch.zeros(num_codebooks, codebook_size)
        for given in self.ban:
            level, code = map(int, given.split(":"))
            if level >= num_codebooks or code >= codebook_size:
                raise UserError(
                    f"--ban {given}: levels are 0 ... {num_codebooks - 1}, codes 0 ... "
                    f"{codebook_size - 1}"
                )
            bias[level, code] = -torch.inf
        return bias

    @property
    def greedy(self) -> bool:
        return not any(self.level_temperatures or (self.temperature,))

    def temperature_of(self, first: int, count: int, device: torch.device) -> float | Tensor:
        """Of levels first ... first + count - 1: one for all, or (count, 1)."""
        return (
            self.temperatures(first, count, device) if self.level_temperatures else self.temperature
        )

    def temperatures(self, first: int, count: int, device: torch.device) -> Tensor:
        """(count, 1) of the same levels, above 0."""
        given = self.level_temperatures or (self.temperature,)
        return _temperatures(given, first, count, device)


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
    much as --chunk-seconds. Or what a window of --context-seconds is: half of it."""
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
            found.append(
                f"--overlap-seconds {self.overlap_seconds} goes with --chunk-seconds or "
                "--context-seconds"
            )
        if self.score_noise is not None and self.score == "random":
            found.append("--score-noise goes with --score confidence; random is all noise")
        return found

    def settings(self) -> dict:
        """What is set, by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    def given(self) -> list[str]:
        """Flags that are set."""
        return ["--" + name.replace("_", "-") for name in self.settings()]


@lru_cache(64)
def _temperatures(given: tuple[float, ...], first: int, count: int, device) -> Tensor:
    levels = range(first, first + count)
    of_levels = [max(given[min(level, len(given) - 1)], COLDEST) for level in levels]
    return torch.tensor(of_levels, device=device)[:, None]


def guide(logits: Tensor, scale: float) -> Tensor:
    """(2 B, ...) logits, the conditional half first, to (B, ...): u + scale * (c - u) (Ho &
    Salimans, 2022, arXiv:2207.12598)."""
    conditional, unconditional = logits.float().chunk(2)
    return unconditional + scale * (conditional - unconditional)


def sample(
    logits: Tensor,
    uniform: Tensor,
    config: SamplingConfig,
    first_level: int = 0,
    temperature: float | Tensor | None = None,
) -> Tensor:
    """Draw codes by inverting the cumulative distribution.

    Top-k keeps the k most likely codes; top-p of these the smallest set of most likely ones whose
    probability reaches it (Holtzman et al., 2020, arXiv:1904.09751), at least one; min-p those that
    are at least so many times as likely as the likeliest (Nguyen et al., 2024, arXiv:2407.01082).

    :param logits: (..., V), of one level; or (N, k, V) of levels first_level ... in turn.
    :param uniform: (...) in [0, 1); not looked at when the temperature is 0.
    :param temperature: `SamplingConfig.temperature_of` these levels, where it is at hand.
    :return: (...) int64.
    """
    logits = logits.float()
    if config.greedy:
        return logits.argmax(-1)
    compiling = torch.compiler.is_compiling()
    if logits.device.type == "cpu" and not compiling and native.usable():
        return _sample_natively(logits, uniform, config, first_level)
    order, V = None, logits.shape[-1]
    if 0 < config.top_k < V:
        logits, order = logits.topk(config.top_k)
    elif config.top_p < 1:
        logits, order = logits.sort(descending=True)
    if temperature is None:
        count = logits.shape[1] if logits.ndim == 3 else 1
        temperature = config.temperature_of(first_level, count, logits.device)
    p = (logits / temperature).softmax(-1)
    if config.top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= config.top_p, 0)  # what all likelier ones hold
    if config.min_p:
        p = p.masked_fill(p < config.min_p * p.amax(-1, keepdim=True), 0)
    cumulative = p.cumsum(-1, dtype=torch.float64)
    point = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, point, right=True).clamp(max=p.shape[-1] - 1)
    return (drawn if order is None else order.gather(-1, drawn)).squeeze(-1)


def _sample_natively(logits, uniform, config: SamplingConfig, first_level: int) -> Tensor:
    levels = logits.shape[1] if logits.ndim == 3 else 1
    temperatures = config.temperatures(first_level, levels, logits.device)
    rows = logits.reshape(-1, levels, logits.shape[-1])
    filters = config.top_k, config.top_p, config.min_p
    drawn = native.sample(rows, uniform.reshape(-1, levels), temperatures, *filters)
    return drawn.view(logits.shape[:-1])


def without_repetition(
    drawn: Tensor, logits: Tensor, uniform: Tensor, recent: Tensor, config: SamplingConfig
) -> Tensor:
    """Repetition-aware sampling (VALL-E 2: Chen et al., 2024, arXiv:2406.05370): a code whose share
    of the recent ones is above the threshold is drawn again, from all codes.

    :param drawn: (N, k) with their logits (N, k, V), guidance done.
    :param uniform: (N, k), others than those of the first draw.
    :param recent: (N, W, k) codes of the W frames before; any negative or special id: none.
    """
    share = (recent == drawn[:, None]).float().mean(1)
    plain = replace(config, top_k=0, top_p=1.0, min_p=0.0, level_temperatures=(), temperature=1.0)
    again = sample(logits, uniform, plain)
    return torch.where(share > config.repetition_threshold, again, drawn)


_GOLDEN, _FIRST, _SECOND = (
    n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mixed(x: Tensor) -> Tensor:
    """The next state and output of splitmix64 (Steele et al., 2014) of int64 numbers."""
    x = x + _GOLDEN
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FIRST  # shifts of signed numbers, made logical
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)


def row_keys(seed: int, rows: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """(len(rows),) int64: each row's random stream, of the seed and its number."""

    def signed(n: int) -> int:
        return (n + (1 << 63)) % (1 << 64) - (1 << 63)

    numbers = torch.tensor([signed(row) for row in rows], device=device)
    return _mixed(_mixed(torch.tensor(signed(seed), device=device)) + numbers)


def uniforms_of(keys: Tensor, steps: Tensor, width: int) -> Tensor:
    """(B, n, width) float32 in [0, 1) of the streams ``keys`` (B,) at steps (B or 1, n).

    A number is a function of its stream, step and column alone: it does not depend on what else is
    drawn, before or beside it, nor on the device.
    """
    x = _mixed(keys[:, None] + steps)
    x = _mixed(x[..., None] + torch.arange(width, device=keys.device))
    return (x >> 40 & (1 << 24) - 1).float() * 2**-24


def uniforms(
    seed: int,
    rows: Iterable[int],
    num_steps: int,
    width: int,
    first: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`uniforms_of` the rows' streams (`row_keys`) at steps ``first``, ``first`` + 1, ..."""
    steps = torch.arange(first, first + num_steps, device=device)
    return uniforms_of(row_keys(seed, rows, device), steps[None], width)


def generators(seed: int, rows: Iterable[int]) -> list[torch.Generator]:
    """One for each row, which depends on ``seed`` and the row's number alone."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]
