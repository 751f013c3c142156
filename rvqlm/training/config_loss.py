"""The trainer's flags of the group `loss`: what is minimised, beside what the model says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossConfig:
    """What is minimised. Only the gradient hears these: all figures in logs stay plain nats."""

    label_smoothing: float = 0.0
    """Share of each target spread over all codes, in the training loss only."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        if not 0 <= self.label_smoothing < 1:
            return [f"--label-smoothing {self.label_smoothing}: in [0, 1)"]
        return []
