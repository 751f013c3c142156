"""The trainer's flags of the group `loss`: what is minimised, beside what the model says."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

NAMED_WEIGHTS = ("equal", "normal", "auto")


@dataclass
class LossConfig:
    """What is minimised. Only the gradient hears these: all figures in logs stay plain nats."""

    label_smoothing: float = 0.0
    """Share of each target spread over all codes, in the training loss only."""
    level_weights: tuple[str, ...] = ("equal",)
    """Weight of each level's nats in the loss, brought to a mean of 1. equal; normal: falling from
    the coarse to the fine levels as a Gaussian; auto: a level counts as its running loss to the
    power of --level-weights-alpha, so that the hard, fine levels count more; or K numbers."""
    level_weights_alpha: float = 0.5
    """Power of auto: 0 is equal, 0.3 to 0.7 lift the fine levels a little."""
    levels_per_batch: int = 0
    """Score only so many levels of each micro-batch, drawn anew each time, likelier the heavier
    their weight; 0: all. Levels that were not drawn get no gradient."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found = []
        if not 0 <= self.label_smoothing < 1:
            found.append(f"--label-smoothing {self.label_smoothing}: in [0, 1)")
        given = " ".join(self.level_weights)
        if not (len(self.level_weights) == 1 and given in NAMED_WEIGHTS):
            try:
                numbers = [float(w) for w in self.level_weights]
            except ValueError:
                numbers = []
            if not numbers or min(numbers) < 0 or not 0 < sum(numbers) < float("inf"):
                found.append(
                    f"--level-weights {given}: {', '.join(NAMED_WEIGHTS)}, or a number per level, "
                    "none negative, not all 0"
                )
        if not (isfinite(self.level_weights_alpha) and self.level_weights_alpha >= 0):
            found.append(f"--level-weights-alpha {self.level_weights_alpha}: at least 0")
        elif self.level_weights_alpha != LossConfig.level_weights_alpha and given != "auto":
            found.append("--level-weights-alpha means nothing without --level-weights auto")
        if self.levels_per_batch < 0:
            found.append(f"--levels-per-batch {self.levels_per_batch}: at least 0")
        if config.model_name == "recognizer":
            default = LossConfig()
            found += [
                f"--{n.replace('_', '-')} means nothing for the recognizer, which predicts no codes"
                for n in ("label_smoothing", "level_weights", "levels_per_batch")
                if getattr(self, n) != getattr(default, n)
            ]
        return found
