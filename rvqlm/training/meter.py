"""Sums over a stretch of training, saved with checkpoints so that log lines survive a kill."""

from __future__ import annotations

import torch

from rvqlm.evaluation.losses import Totals
from rvqlm.training.distributed import World


class Meter:
    """Token sums, gradient norms, steps and seconds since the last line of the log."""

    def __init__(self, num_codebooks: int, device: torch.device):
        self.totals = Totals(num_codebooks, device)
        self.grad_norm = torch.zeros((), device=device)
        """Sum over steps; the same on all ranks."""
        self.steps = 0
        self.seconds = 0.0

    def merge(self, other: Meter) -> None:
        self.totals.merge(other.totals)
        self.grad_norm += other.grad_norm
        self.steps += other.steps
        self.seconds += other.seconds

    def reduce(self, world: World) -> None:
        """Token sums over all ranks, known to all."""
        self.totals.reduce(world.all_reduce)

    def gather(self, world: World) -> None:
        """Move the token sums of all ranks to the main one, before it saves them. (Meters that were
        merged from reduced ones hold all ranks' sums already.)"""
        if world.size > 1:
            self.reduce(world)
            if not world.main:
                self.totals = Totals(self.totals.sums.shape[1], self.totals.sums.device)

    def state_dict(self) -> dict:
        return {
            "totals": self.totals.state_dict(),
            "grad_norm": self.grad_norm.cpu().clone(),
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        self.totals.load_state_dict(state["totals"])
        self.grad_norm.copy_(state["grad_norm"])
        self.steps, self.seconds = state["steps"], state["seconds"]
