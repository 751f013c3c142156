"""`LossGuard`: which steps are taken, which are skipped, and when the weights have diverged
(docs/debugging.md). `LossScale` keeps float16 gradients in range.

An outlier is a loss above mean + k * deviation, over about the last 200 steps, and is taken into
these as that: it widens the deviation by a known step (8 % for k = 6), whatever its size. Rolling
back and passing by the data of a spike is from PaLM (arXiv:2204.02311, section 5.1).

All ranks judge the same sums, so all decide alike without a word between them. That is also why the
loss scale is our own few lines instead of torch's GradScaler: the verdict on a step comes from sums
over all ranks, shards included, and costs no second synchronisation.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.errors import UserError
from rvqlm.flags import Problems

_MEMORY = 200
"""Steps of the running statistics."""
_FLOOR = 0.01
"""The deviation counts as at least this share of the mean: very large batches hardly vary, and a
loss 2 % above the mean is no spike."""
_LEAST = 1e-3
"""Nor as less than so many nats, for losses near zero: memorised data."""
_WARMUP = 20.0
"""Deviations above the mean that a loss counts as at most while losses are not judged."""
_STATE = ("mean", "variance", "seen", "in_a_row", "rollbacks", "counts")
"""What a checkpoint has of a `LossGuard`."""


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
    """Steps that are only watched, not judged, at the start and after each rollback. Losses that
    are not finite are always skipped."""
    # Shuffled data do not bring ten bad batches in a row: then it is the weights that are bad.
    max_skips: int = 10
    """So many skipped steps in a row mean that the weights have diverged: roll back to the last
    good checkpoint."""
    # PaLM (arXiv:2204.02311, section 5.1) went back and passed by the data, without lowering the
    # rate, some 20 times in one training; a little less rate helps where the cause was the rate.
    rollback_lr: float = 0.8
    """The learning rate is multiplied by this with each rollback."""
    # 0.8^5 = a third of the rate; what diverges again at that has another cause.
    max_rollbacks: int = 5
    """Rollbacks before training stops with an error; 0: stop at once."""
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

    def examine(self, found: Problems, config) -> None:
        """Add everything wrong with the group; `config` is the whole of the flags."""
        k = self.outlier_deviations
        found.need_of(
            "outlier_deviations",
            isfinite(k) and (k == 0 or k >= 2),
            "0, or at least 2: fewer would skip ordinary batches",
        )
        found.at_least(2, "outlier_warmup_steps")
        found.at_least(1, "max_skips")
        found.need_of("rollback_lr", 0 < self.rollback_lr <= 1, "above 0 and at most 1")
        found.at_least(0, "max_rollbacks", "keep_bad_batches", "hang_minutes")
        for name, idle, why in (
            ("outlier_warmup_steps", k == 0, "--outlier-deviations 0: nothing is judged"),
            ("rollback_lr", self.max_rollbacks == 0, "--max-rollbacks 0: no rollback"),
        ):
            found.need_of(name, not (idle and found.changed(name)), f"means nothing with {why}")


class LossGuard:
    """Judges every step by its loss and the norm of its gradient.

    >>> guard = LossGuard(GuardConfig(outlier_warmup_steps=4))
    >>> [guard.judge(loss, 1.0) for loss in (4.0, 4.1, 3.9, 4.0, 4.1, 9.0, float("nan"))]
    ['good', 'good', 'good', 'good', 'good', 'outlier', 'nonfinite']
    >>> guard.in_a_row, guard.must_roll_back
    (2, False)
    """

    def __init__(self, config: GuardConfig):
        self.config = config
        self.counts = {"nonfinite": 0, "outlier": 0}
        """Skipped steps since the start of training, by reason."""
        self.in_a_row = 0
        """Skipped steps since the last good one."""
        self.rollbacks = 0
        self._start_anew()

    def _start_anew(self) -> None:
        self.mean, self.variance, self.seen = 0.0, 0.0, 0

    @property
    def threshold(self) -> float:
        """Losses above are outliers; infinite while they are not judged."""
        k = self.config.outlier_deviations
        if not k or self.seen < self.config.outlier_warmup_steps:
            return float("inf")
        return self._above(k)

    def _above(self, k: float) -> float:
        return self.mean + k * max(sqrt(self.variance), _FLOOR * abs(self.mean), _LEAST)

    def judge(self, loss: float, grad_norm: float) -> str:
        """``good``, ``nonfinite`` or ``outlier``.

        :param loss: of the step, a mean over tokens.
        :param grad_norm: before clipping; only whether it is finite counts, since clipping deals
            with the rest.
        """
        if not (isfinite(loss) and isfinite(grad_norm)):
            return self._skip("nonfinite")
        threshold = self.threshold
        # a spike among the first steps must not blind the rule for the thousands to come
        most = threshold if isfinite(threshold) else self._above(_WARMUP)
        self._take_in(min(loss, most) if self.seen else loss)
        if loss > threshold:
            return self._skip("outlier")
        self.in_a_row = 0
        return "good"

    def _take_in(self, loss: float) -> None:
        self.seen += 1
        share = 1 / min(self.seen, _MEMORY)  # a plain mean at first
        off = loss - self.mean
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off * off)

    def _skip(self, why: str) -> str:
        self.counts[why] += 1
        self.in_a_row += 1
        return why

    @property
    def must_roll_back(self) -> bool:
        """So many steps in a row were skipped that the weights must be at fault."""
        return self.in_a_row >= self.config.max_skips

    @property
    def exhausted(self) -> bool:
        """Another rollback would be one too many."""
        allowed = self.config.max_rollbacks
        return self.rollbacks > allowed or (self.must_roll_back and self.rollbacks == allowed)

    def rollback_target(self, exp_dir: Path, step: int, why: str) -> Path:
        """The checkpoint to roll back to: latest.pt, and the second time in a run best.pt where
        there is one, since latest.pt may have been written when it was too late already.

        :raises UserError: no checkpoint, or rolled back often enough.
        """
        latest, best = exp_dir / "latest.pt", exp_dir / "best.pt"
        path = best if self.rollbacks and best.exists() else latest
        if path.exists() and not self.exhausted:
            return path
        found = "; no checkpoint was saved yet"
        if path.exists():
            found = f" after {self.rollbacks} rollbacks; the checkpoints in {exp_dir} are good"
        raise UserError(
            f"training diverged at step {step}: {why}{found}: lower --base-lr or "
            "--clip-grad-norm, or lengthen the warm-up, and start again; "
            f"`rvqlm doctor {exp_dir}` says more"
        )

    def rolled_back(self) -> None:
        """The weights are those of a checkpoint again. The statistics start anew: they may be what
        was wrong, and the data continue from where they are."""
        self.rollbacks += 1
        self.in_a_row = 0
        self._start_anew()

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return self.config.rollback_lr**self.rollbacks

    def state_dict(self) -> dict:
        return {name: copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: dict) -> None:
        for name in _STATE:
            setattr(self, name, copy(state[name]))


class LossScale:
    """Dynamic loss scale (Micikevicius et al., 2017, arXiv:1710.03740): halved when a gradient
    overflows, doubled after `growth_steps` steps without.

    Losses are sums over tokens, thousands of times a mean, so the scale begins at 1. Other
    precisions than float16 have the range of float32 and no scale.
    """

    def __init__(self, dtype: torch.dtype, initial: float = 1.0, growth_steps: int = 1000):
        self.enabled = dtype == torch.float16
        self.value, self.growth_steps, self.good_steps = initial, growth_steps, 0

    def apply(self, loss: Tensor) -> Tensor:
        return loss * self.value if self.enabled else loss

    def overflowed(self, loss: float, grad_norm: float) -> bool:
        """Whether the scale is why the norm of a gradient isn't finite; adapts the scale. Below
        2^-24 a gradient that overflows even so is wrong by itself."""
        if not self.enabled:
            return False
        if isfinite(grad_norm):
            self.good_steps += 1
            if self.good_steps >= self.growth_steps:
                self.value, self.good_steps = self.value * 2, 0
        elif isfinite(loss) and self.value >= 2.0**-24:
            self.value, self.good_steps = self.value / 2, 0
            return True
        return False

    def state_dict(self) -> dict:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.good_steps = state["value"], state["good_steps"]
