"""Exponential moving average of the weights, for validation, samples and the best checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of the parameters; buffers are the model's own.

    With `warmup` the decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run
    doesn't average over its random start.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [p for _, p in model.named_parameters()]
        self.average = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        self.updates += 1
        torch._foreach_lerp_(self.average, self.params, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model computes with the average inside the block; no copies are made."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, p in enumerate(self.params):
            p.data, self.average[i] = self.average[i], p.data

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters."""
        return {**model.state_dict(), **dict(zip(self.names, self.average))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        torch._foreach_copy_(self.average, [state[n] for n in self.names])
        self.updates = updates
