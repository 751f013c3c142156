"""Sums over a stretch of training, saved with checkpoints so that log lines survive a kill."""

from __future__ import annotations

import torch

from rvqlm.metrics.losses import Totals
from rvqlm.training.distributed import World

SKIPS = ("nonfinite", "outlier", "overflow")
"""Why a step was not taken."""


class Meter:
    """Token sums, gradient norms, steps, skips and seconds since the last line of the log.

    Steps that were not taken are counted and leave no other trace: one loss that is no number
    would hide all the others of a line.
    """

    def __init__(self, num_codebooks: int, device: torch.device):
        self.totals = Totals(num_codebooks, device)
        self.grad_norm = 0.0
        """Sum over steps taken; the same on all ranks, like all that follows but `seconds`."""
        self.steps = 0
        """Taken."""
        self.skipped = dict.fromkeys(SKIPS, 0)
        self.rollbacks = 0
        self.seconds = 0.0

    @property
    def empty(self) -> bool:
        return not (self.steps or self.rollbacks or any(self.skipped.values()))

    def add(self, outcome) -> None:
        """Count the `Outcome` of a step."""
        if outcome.verdict != "good":
            self.skipped[outcome.verdict] += 1
            return
        self.totals.merge(outcome.totals)
        self.grad_norm += outcome.grad_norm
        self.steps += 1

    def merge(self, other: Meter) -> None:
        self.totals.merge(other.totals)
        self.grad_norm += other.grad_norm
        self.steps += other.steps
        self.rollbacks += other.rollbacks
        self.seconds += other.seconds
        for reason, count in other.skipped.items():
            self.skipped[reason] += count

    def reduce(self, world: World) -> None:
        """Token sums over all ranks, known to all."""
        self.totals.reduce(world.all_reduce)

    def gather(self, world: World) -> None:
        """Move the token sums of all ranks to the main one, before it saves them. (Meters that were
        merged from reduced ones hold all ranks' sums already.)"""
        if world.size > 1:
            self.reduce(world)
            if not world.main:  # names stay: sums are reduced name by name
                empty = Totals(self.totals.sums.shape[1], self.totals.sums.device)
                empty.extra = {k: torch.zeros_like(v) for k, v in self.totals.extra.items()}
                self.totals = empty

    def state_dict(self) -> dict:
        return {
            "totals": self.totals.state_dict(),
            "grad_norm": self.grad_norm,
            "steps": self.steps,
            "skipped": dict(self.skipped),
            "rollbacks": self.rollbacks,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        self.totals.load_state_dict(state["totals"])
        self.grad_norm, self.steps = state["grad_norm"], state["steps"]
        self.skipped, self.rollbacks = dict(state["skipped"]), state["rollbacks"]
        self.seconds = state["seconds"]
