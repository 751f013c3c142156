"""The trainer's flags of the group `guard`: what is done when a step goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite


@dataclass
class GuardConfig:
    """What is done when a step goes wrong."""

    # Chance: losses of batches of thousands of tokens are close to normal, with a longer upper
    # tail where data are mixed; 6 deviations skip none of them in a week, while a divergence or a
    # damaged file is tens of deviations off.
    outlier_deviations: float = 6.0
    """Skip a step whose loss is more than so many deviations above its running mean; 0: never."""
    # As many steps as a learning-rate warm-up takes to leave the steepest part of the curve.
    outlier_warmup_steps: int = 100
    """Steps that are only watched, not judged, at the start and after each return to a checkpoint.
    Losses that are not finite are always skipped."""
    # Shuffled data do not bring ten bad batches in a row: then it is the weights that are bad.
    max_skips: int = 10
    """So many skipped steps in a row mean that the weights are spoilt: back to the last good
    checkpoint."""
    # PaLM (arXiv:2204.02311, section 5.1) went back and passed by the data, without lowering the
    # rate, some 20 times in one training; a little less rate helps where the cause was the rate.
    rollback_lr: float = 0.8
    """The learning rate is multiplied by this with each return to a checkpoint."""
    # 0.8^5 = a third of the rate; what diverges again at that has another cause.
    max_rollbacks: int = 5
    """Returns to a checkpoint before training stops with an error; 0: stop at once."""
    # A batch of 150 s is 0.2 MB.
    keep_bad_batches: int = 10
    """Keep the last so many skipped steps of each rank in EXP_DIR/bad_batches, for rvqlm doctor
    --replay; 0: none."""
    # Longer than any compilation or save, shorter than anybody's patience.
    hang_minutes: float = 30.0
    """Without progress for so long, say where each rank stands, write stacks to
    EXP_DIR/hang-rank-N.txt and exit with status 75, so that a scheduler starts again. A process
    that was suspended for longer counts as hung. 0: wait for ever."""
    memory_check: bool = True
    """Before the first step, see whether the largest batch of the data fits in memory."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found: list[str] = []

        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)}: {what}")

        k = self.outlier_deviations
        need(isfinite(k) and (k == 0 or k >= 2), "outlier_deviations",
             "0, or at least 2: fewer would skip ordinary batches")  # fmt: skip
        need(self.outlier_warmup_steps >= 2, "outlier_warmup_steps", "at least 2")
        need(self.max_skips >= 1, "max_skips", "at least 1")
        need(0 < self.rollback_lr <= 1, "rollback_lr", "above 0 and at most 1")
        need(self.max_rollbacks >= 0, "max_rollbacks", "at least 0")
        need(self.keep_bad_batches >= 0, "keep_bad_batches", "at least 0")
        need(isfinite(self.hang_minutes) and self.hang_minutes >= 0, "hang_minutes", "at least 0")
        default = {f.name: f.default for f in fields(self)}
        for name, idle, without in (
            ("outlier_warmup_steps", k == 0, "--outlier-deviations 0: nothing is judged"),
            ("rollback_lr", self.max_rollbacks == 0, "--max-rollbacks 0: no return"),
        ):
            if idle and getattr(self, name) != default[name]:
                need(False, name, f"means nothing with {without}")
        return found
