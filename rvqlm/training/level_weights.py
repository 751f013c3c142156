"""How much each level counts in the loss: `LossConfig`, its flags, and `LevelWeights`.

Coarse levels are learnt first and fine ones are hard: a loss that stresses either is common for
codec language models; how strongly is a flag here, and may change from epoch to epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from rvqlm.batch import to_device
from rvqlm.errors import UserError
from rvqlm.flags import Problems, flag, parse_schedule, value_at

NAMED_WEIGHTS = ("equal", "normal", "auto")
"""Words that --level-weights takes instead of numbers."""
_MEMORY = 0.98
"""Decay per step of the running losses of ``auto``."""


def _named(words: tuple[str, ...]) -> bool:
    return len(words) == 1 and words[0] in NAMED_WEIGHTS


def _words_of_weights(text: str) -> tuple[str, ...]:
    """``normal`` or ``2,1,1`` as words of --level-weights; ValueError for anything else."""
    words = tuple(text.split(","))
    if not _are_weights(words):
        raise ValueError
    return words


def _are_weights(words: tuple[str, ...]) -> bool:
    if _named(words):
        return True
    try:
        numbers = [float(w) for w in words]
    except ValueError:
        return False
    return bool(numbers) and min(numbers) >= 0 and 0 < sum(numbers) < inf


def _whole(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


_SCHEDULES = {
    "level_weights": ("level_weights_schedule", _words_of_weights),
    "levels_per_batch": ("levels_per_batch_schedule", _whole),
}
"""By the field that a schedule sets: the one it is given by, and how its values are read."""


@dataclass
class LossConfig:
    """What is minimised. Only the gradient is changed: all figures in logs stay plain nats."""

    label_smoothing: float = 0.0
    """Share of each target spread over all codes, in the training loss only."""
    level_weights: tuple[str, ...] = ("equal",)
    """Weight of each level's nats in the loss, brought to a mean of 1. equal; normal: falling from
    the coarse to the fine levels as a Gaussian; auto: a level counts as its running loss to the
    power of --level-weights-alpha, so that the hard, fine levels count more; or K numbers."""
    level_weights_alpha: float = 0.5
    """Power of auto: 0 is equal, 0.3 to 0.7 lift the fine levels a little."""
    level_weights_schedule: tuple[str, ...] = ()
    """--level-weights by epoch, such as 0:normal 20:equal; numbers with commas: 0:3,2,1,1."""
    levels_per_batch: int = 0
    """Score only so many levels of each micro-batch, drawn anew each time, likelier the heavier
    their weight; 0: all. Levels that were not drawn get no gradient."""
    levels_per_batch_schedule: tuple[str, ...] = ()
    """--levels-per-batch by epoch, such as 0:1 20:0: one random level first, later all."""

    def phases(self) -> list[tuple[int, LossConfig]]:
        """The flags, without schedules, that hold from each epoch on; `UserError` for a schedule
        that cannot be read."""
        schedules = {
            name: parse_schedule(words, flag(of), convert)
            for name, (of, convert) in _SCHEDULES.items()
            if (words := getattr(self, of))
        }
        plain = replace(self, **{of: () for of, _ in _SCHEDULES.values()})
        epochs = sorted({0} | {epoch for s in schedules.values() for epoch, _ in s})
        return [
            (epoch, replace(plain, **{name: value_at(s, epoch) for name, s in schedules.items()}))
            for epoch in epochs
        ]

    def examine(self, found: Problems, config) -> None:
        """Add everything wrong with the group; `config` is the whole of the flags."""
        found.need_of("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        found.need(
            _are_weights(self.level_weights),
            f"--level-weights {' '.join(self.level_weights)}: {', '.join(NAMED_WEIGHTS)}, or a "
            "number per level, none negative, not all 0",
        )
        found.at_least(0, "level_weights_alpha", "levels_per_batch")
        for name, (of, _) in _SCHEDULES.items():
            found.excludes(name, of)
        try:
            phases = [phase for _, phase in self.phases()]
        except UserError as e:
            found.append(str(e))
            return
        found.need(
            not found.changed("level_weights_alpha")
            or any(phase.level_weights == ("auto",) for phase in phases),
            "--level-weights-alpha means nothing without --level-weights auto",
        )
        for name in ("label_smoothing", *_SCHEDULES, *(of for of, _ in _SCHEDULES.values())):
            found.need(
                config.model_name != "recognizer" or not found.changed(name),
                f"{flag(name)} means nothing for the recognizer, which predicts no codes",
            )


class LevelWeights:
    """Gives the weights of each micro-batch, None where all levels count alike.

    >>> weights = LevelWeights(LossConfig(level_weights=("3", "1")), num_codebooks=2)
    >>> weights.draw(torch.device("cpu")).tolist()
    [1.5, 0.5]

    :raises UserError: a number of weights or of drawn levels that does not fit the codec.
    """

    def __init__(self, config: LossConfig, num_codebooks: int):
        self.num_levels = num_codebooks
        self.phases = config.phases()
        self.epoch = 0
        """Which of the phases holds; the trainer sets it before each step."""
        self.running: Tensor | None = None
        """(K,) float64 running nats per level, of ``auto``."""
        found = []
        for _, phase in self.phases:
            words, levels = phase.level_weights, phase.levels_per_batch
            if not _named(words) and len(words) != num_codebooks:
                found.append(f"--level-weights has {len(words)} numbers for {num_codebooks} levels")
            if levels > num_codebooks:
                found.append(f"--levels-per-batch {levels}: {num_codebooks} levels")
        if found:
            raise UserError("; ".join(dict.fromkeys(found)))
        self.watches = any(phase.level_weights == ("auto",) for _, phase in self.phases)

    def current(self) -> Tensor:
        """(K,) float64 with a mean of 1."""
        K, config = self.num_levels, value_at(self.phases, self.epoch)
        words = config.level_weights
        weights = torch.ones(K, dtype=torch.float64)
        if not _named(words):
            weights = torch.tensor([float(w) for w in words]).double()
        elif words == ("normal",):  # half a bell over the levels, two deviations wide
            weights = torch.exp(-0.5 * (torch.arange(K).double() * 2 / K) ** 2)
        elif words == ("auto",) and self.running is not None:
            weights = self.running.clamp(min=1e-3) ** config.level_weights_alpha
        return weights * (K / weights.sum())

    def draw(self, device: torch.device) -> Tensor | None:
        """(K,) float32 for a micro-batch. Draws levels from torch's random state where asked to,
        without replacement; those drawn count alike, since they were drawn by their weights."""
        config = value_at(self.phases, self.epoch)
        number = config.levels_per_batch
        if not number and config.level_weights == ("equal",):
            return None
        weights = self.current()
        if number:
            likely = weights.clamp(min=1e-12)
            drawn = torch.multinomial(likely, number)
            weights = torch.zeros_like(weights).index_fill(0, drawn, 1.0)
        return to_device(weights.float(), device)

    def observe(self, nats: list[float], counts: list[float]) -> None:
        """Take in a step: summed nats and counts of each level, over all ranks."""
        if not self.watches:
            return
        counts = torch.tensor(counts, dtype=torch.float64)
        means = torch.tensor(nats, dtype=torch.float64) / counts.clamp(min=1)
        if self.running is None:
            self.running = torch.where(counts > 0, means, means.sum() / (counts > 0).sum().clamp(1))
        else:
            self.running = torch.where(
                counts > 0, _MEMORY * self.running + (1 - _MEMORY) * means, self.running
            )

    def state_dict(self) -> dict:
        return {"running": None if self.running is None else self.running.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.running = None if state["running"] is None else state["running"].clone()
