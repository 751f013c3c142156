"""Mixed precision: autocast, TF32, and the loss scale that float16 needs.

The scale is our own few lines instead of torch's GradScaler because the verdict on a step comes
from sums over all ranks, which every rank knows, shards included, and costs no second
synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rvqlm.errors import UserError


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

    @property
    def too_small(self) -> bool:
        """A gradient that overflows even so is wrong by itself."""
        return self.value < 2.0**-24

    def update(self, overflowed: bool) -> None:
        if not self.enabled:
            return
        if overflowed:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_steps:
            self.value, self.good_steps = self.value * 2, 0

    def state_dict(self) -> dict:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.good_steps = state["value"], state["good_steps"]


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Whether float32 matrices on a GPU are multiplied with TF32's ten bits of mantissa."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    elif not allowed:
        raise UserError(f"--no-tf32 means nothing on {device.type}: only NVIDIA GPUs have TF32")
