"""Ranks: one process without torchrun, several with it, behind the same few calls."""

from __future__ import annotations

import inspect
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World:
    """This process among those of a run.

    Started by torchrun it joins the group (nccl on GPUs, gloo on CPUs). Small control messages
    always go over gloo, so that they never wait for a GPU.
    """

    def __init__(self, device: torch.device | None = None, parallel: str = "ddp"):
        self.parallel = parallel
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._control = None
        self._own = False
        if self.size > 1:
            if not dist.is_initialized():
                cuda = device is not None and device.type == "cuda"
                dist.init_process_group("nccl" if cuda else "gloo")
                self._own = True
            self._control = dist.new_group(backend="gloo")

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def grad_norm(self, grads) -> Tensor:
        """2-norm of all gradients together."""
        return torch.nn.utils.get_total_norm(grads)

    def agree(self, *values: float) -> list[float]:
        """Largest of each value over the ranks: all then decide alike."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self._control)
        return message.tolist()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self._control)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module whose backward adds gradients up over ranks (as a mean)."""
        if self.size == 1:
            return model
        ddp = nn.parallel.DistributedDataParallel
        known = inspect.signature(ddp).parameters  # the option has a new name since torch 2.13
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return ddp(model, gradient_as_bucket_view=True, **{buffers: False})

    def no_sync(self, module: nn.Module, skip: bool):
        """Context of a backward that keeps its gradients to this rank if `skip`."""
        return module.no_sync() if skip and self.size > 1 else nullcontext()

    def close(self) -> None:
        if self._own and dist.is_initialized():
            dist.destroy_process_group()
