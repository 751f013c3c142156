"""How far training is, and the learning rate there.

Nearly everything depends on the step and on the *progress*, the used share of the budget (epochs,
steps or minutes), so a run whose budget is minutes of a machine of unknown speed still ends at the
schedule's end. Only plateau remembers something: the validation losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi

from rvqlm.training.config_optim import OptimConfig

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


class Schedule:
    """Learning rate as a multiple of its peak: warm-up times decay.

    ======== =====================================================================================
    cosine   half a cosine from 1 to --eta-min-ratio over the budget
    linear   a line from 1 to --eta-min-ratio over the budget
    step     times --lr-gamma every --lr-step-epochs epochs, never below --eta-min-ratio
    plateau  times --lr-gamma after more than --plateau-patience validations without a new lowest
             loss, never below --eta-min-ratio
    eden     ((n^2 + N^2) / N^2)^-1/4 ((e^2 + E^2) / E^2)^-1/4 at step n and epoch e, with N
             --lr-batches and E --lr-epochs (Yao et al., 2023, arXiv:2310.11230)
    constant 1
    ======== =====================================================================================

    >>> s = Schedule(OptimConfig(schedule="cosine", warmup_ratio=0.1))
    >>> [round(s.factor(0, 0.0, p), 3) for p in (0.0, 0.05, 0.5, 1.0)]
    [0.0, 0.497, 0.5, 0.0]
    """

    def __init__(self, config: OptimConfig):
        self.config = config
        # of plateau: lowest validation loss, validations since, times that the rate fell
        self.best, self.waited, self.drops = inf, 0, 0

    def factor(self, step: int, epochs: float, progress: float) -> float:
        """Factor, 0 to 1, of the step after `step` others, at `epochs` passes over the data
        (fractional) and `progress` of the budget (0 to 1)."""
        return self._warmup(step, progress) * self._decay(step, epochs, progress)

    def _warmup(self, step: int, progress: float) -> float:
        c = self.config
        if c.warmup_steps is not None:
            return min(1.0, (step + 1) / c.warmup_steps) if c.warmup_steps else 1.0
        ratio = DEFAULT_WARMUP_RATIO if c.warmup_ratio is None else c.warmup_ratio
        return min(1.0, progress / ratio) if ratio else 1.0

    def _decay(self, step: int, epochs: float, progress: float) -> float:
        c = self.config
        if c.schedule == "cosine":
            return c.eta_min_ratio + (1 - c.eta_min_ratio) * 0.5 * (1 + cos(pi * progress))
        if c.schedule == "linear":
            return c.eta_min_ratio + (1 - c.eta_min_ratio) * (1 - progress)
        if c.schedule == "step":
            return max(c.lr_gamma ** int(epochs / c.lr_step_epochs), c.eta_min_ratio)
        if c.schedule == "plateau":
            return max(c.lr_gamma**self.drops, c.eta_min_ratio)
        if c.schedule == "eden":
            by_step = (1 + (step / c.lr_batches) ** 2) ** -0.25
            return by_step * (1 + (epochs / c.lr_epochs) ** 2) ** -0.25
        return 1.0

    def observe(self, valid_loss: float) -> None:
        """Take in a validation loss, of which only plateau takes notice; NaN is no new lowest."""
        if self.config.schedule != "plateau":
            return
        if valid_loss < self.best:
            self.best, self.waited = valid_loss, 0
            return
        self.waited += 1
        if self.waited > self.config.plateau_patience:
            self.drops, self.waited = self.drops + 1, 0

    def state_dict(self) -> dict:
        return {"best": self.best, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`; a state that lacks these entries, of a checkpoint made before
        there was plateau, begins anew, and further ones are passed over."""
        self.best = state.get("best", inf)
        self.waited, self.drops = state.get("waited", 0), state.get("drops", 0)
