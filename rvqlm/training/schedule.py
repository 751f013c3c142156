"""How far training is, and the learning rate there.

Nearly everything depends on the step and on the *progress*, the used share of the budget (epochs,
steps or minutes), so a run whose budget is minutes of a machine of unknown speed still ends at the
schedule's end. Only plateau remembers something: the validation losses.

A schedule is a function in this file and its row in `SCHEDULES`. It takes a `Moment` and, by name,
the flags of the group `optim` that it depends on (these are refused with the other schedules), and
returns a share of the peak learning rate. Its docstring is its part of ``--help``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from math import cos, inf, pi

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
class Moment:
    """Where a training is when a step begins."""

    step: int
    """Steps done."""
    epochs: float
    """Passes over the data done, fractional."""
    progress: float
    """Used share of the budget, 0 to 1."""
    stalls: int = 0
    """How often the validation loss stalled, by --plateau-patience."""


def cosine(at: Moment, eta_min_ratio: float) -> float:
    """half a cosine from --base-lr to --eta-min-ratio of it over the budget"""
    return eta_min_ratio + (1 - eta_min_ratio) * 0.5 * (1 + cos(pi * at.progress))


def linear(at: Moment, eta_min_ratio: float) -> float:
    """a line from --base-lr to --eta-min-ratio of it over the budget"""
    return eta_min_ratio + (1 - eta_min_ratio) * (1 - at.progress)


def step(at: Moment, eta_min_ratio: float, lr_gamma: float, lr_step_epochs: float) -> float:
    """times --lr-gamma every --lr-step-epochs epochs, never below --eta-min-ratio"""
    return max(lr_gamma ** int(at.epochs / lr_step_epochs), eta_min_ratio)


def plateau(at: Moment, eta_min_ratio: float, lr_gamma: float, plateau_patience: int) -> float:
    """times --lr-gamma after more than --plateau-patience validations without a new lowest loss,
    never below --eta-min-ratio"""
    # the patience is in `at.stalls`: see Schedule.observe
    return max(lr_gamma**at.stalls, eta_min_ratio)


def eden(at: Moment, lr_batches: float, lr_epochs: float) -> float:
    """((n^2 + N^2) / N^2)^-1/4 ((e^2 + E^2) / E^2)^-1/4 at step n and epoch e, with N --lr-batches
    and E --lr-epochs (Yao et al., 2023, arXiv:2310.11230)"""
    by_step = (1 + (at.step / lr_batches) ** 2) ** -0.25
    return by_step * (1 + (at.epochs / lr_epochs) ** 2) ** -0.25


def constant(at: Moment) -> float:
    """stays at --base-lr"""
    return 1.0


SCHEDULES = {
    "cosine": cosine,
    "linear": linear,
    "step": step,
    "plateau": plateau,
    "eden": eden,
    "constant": constant,
}
"""Choices of --schedule."""


def schedule_flags(name: str) -> tuple[str, ...]:
    """Fields of the group `optim` that a schedule depends on.

    >>> schedule_flags("linear")
    ('eta_min_ratio',)
    """
    return tuple(inspect.signature(SCHEDULES[name]).parameters)[1:]


class Schedule:
    """Learning rate as a share of its peak: warm-up times one of `SCHEDULES`.

    >>> from rvqlm.training.config import OptimConfig
    >>> s = Schedule(OptimConfig(schedule="cosine", warmup_ratio=0.1))
    >>> [round(s.factor(0, 0.0, p), 3) for p in (0.0, 0.05, 0.5, 1.0)]
    [0.0, 0.497, 0.5, 0.0]

    :param config: `OptimConfig`.
    """

    def __init__(self, config):
        self.config, self._share = config, SCHEDULES[config.schedule]
        self._flags = {flag: getattr(config, flag) for flag in schedule_flags(config.schedule)}
        # of plateau: lowest validation loss, validations since, times that the rate fell
        self.best, self.waited, self.drops = inf, 0, 0

    def factor(self, step: int, epochs: float, progress: float) -> float:
        """Factor, 0 to 1, of the step after `step` others, at `epochs` passes over the data
        (fractional) and `progress` of the budget (0 to 1)."""
        at = Moment(step, epochs, progress, self.drops)
        return self._warmup(at) * self._share(at, **self._flags)

    def _warmup(self, at: Moment) -> float:
        c = self.config
        if c.warmup_steps is not None:
            return min(1.0, (at.step + 1) / c.warmup_steps) if c.warmup_steps else 1.0
        ratio = DEFAULT_WARMUP_RATIO if c.warmup_ratio is None else c.warmup_ratio
        return min(1.0, at.progress / ratio) if ratio else 1.0

    def observe(self, valid_loss: float) -> None:
        """Take in a validation loss, which only plateau depends on; NaN is no new lowest."""
        if "plateau_patience" not in self._flags:
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
        """Continue from `state_dict`; a state that lacks these entries, of a checkpoint made before
        there was plateau, begins anew, and further ones are passed over."""
        self.best = state.get("best", inf)
        self.waited, self.drops = state.get("waited", 0), state.get("drops", 0)
