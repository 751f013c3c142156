"""Exponential moving average of the weights, for validation, samples and the best checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rvqlm.dtensors import is_sharded, local


class EMA:
    """Average of the parameters; buffers are the model's own.

    Parameters may be DTensors (FSDP2), then the average lies in the same shards. Make it after
    `World.wrap`.

    :param decay: of the average, in an update.
    :param warmup: the decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run
        doesn't average over its random start; else `decay` from the beginning.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [p for _, p in model.named_parameters()]
        self.average = [local(p.detach()).clone() for p in self.params]
        """Of each parameter, or of this rank's shard of it."""

    def next_share(self) -> float:
        """Share of the weights in the average after the next update, which this begins."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        return 1 - decay

    @torch.no_grad()
    def update(self, share: float, but: Collection[int] = ()) -> None:
        """All averages, ``but`` those of parameters with these ids, towards the weights."""
        left = [
            (average, local(p.detach()))
            for p, average in zip(self.params, self.average)
            if id(p) not in but
        ]
        if left:
            torch._foreach_lerp_(*map(list, zip(*left)), share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model computes with the average inside the block; no copies are made, but of
        shards, one parameter at a time."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for i, p in enumerate(self.params):
            if is_sharded(p):  # FSDP2 gathers from the memory that it knows
                shard = local(p.detach())
                aside = shard.clone()
                shard.copy_(self.average[i])
                self.average[i].copy_(aside)
            else:
                p.data, self.average[i] = self.average[i], p.data

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters, sharded where those are."""
        averages = [_like(p, t) for p, t in zip(self.params, self.average)]
        return {**model.state_dict(), **dict(zip(self.names, averages))}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """:param state: of `state_dict`, laid out as the model is."""
        torch._foreach_copy_(self.average, [local(state[n]) for n in self.names])
        self.updates = updates


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """`part`, this rank's share of a tensor laid out as `parameter`, as that tensor."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
