"""How far training is, and the learning rate there.

Everything depends on the step and on the *progress*, the used share of the budget (epochs, steps
or minutes), so the schedule has no state of its own and a run whose budget is minutes of a
machine of unknown speed still ends at the schedule's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

DEFAULT_WARMUP_RATIO = 0.02


@dataclass(frozen=True)
class Budget:
    """Limits of a run; 0 means no such limit."""

    num_epochs: int = 0
    max_steps: int = 0
    max_minutes: float = 0.0

    def progress(self, step: int, epochs: float, elapsed: float) -> float:
        """Used share in [0, 1] of the budget nearest its end.

        :param step: optimizer steps done.
        :param epochs: passes over the data done, fractional.
        :param elapsed: seconds of training.
        """
        shares = [0.0]
        if self.num_epochs:
            shares.append(epochs / self.num_epochs)
        if self.max_steps:
            shares.append(step / self.max_steps)
        if self.max_minutes:
            shares.append(elapsed / (60 * self.max_minutes))
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a multiple of ``--base-lr``: warm-up times decay.

    >>> s = Schedule("cosine", warmup_ratio=0.1)
    >>> [round(s.factor(0, p), 3) for p in (0.0, 0.05, 0.5, 1.0)]
    [0.0, 0.497, 0.5, 0.0]
    """

    name: str = "cosine"
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    eta_min_ratio: float = 0.0

    def factor(self, step: int, progress: float) -> float:
        """Factor of the step after `step` others, at `progress` of the budget."""
        if self.warmup_steps is not None:
            warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        else:
            ratio = DEFAULT_WARMUP_RATIO if self.warmup_ratio is None else self.warmup_ratio
            warm = progress / ratio if ratio else 1.0
        decay = 1.0
        if self.name == "cosine":
            decay = self.eta_min_ratio + (1 - self.eta_min_ratio) * 0.5 * (1 + cos(pi * progress))
        return min(1.0, warm) * decay
