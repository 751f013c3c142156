"""Ranks: one process alone, several of torchrun or srun, behind the same few calls.

With ``ddp`` every rank has the whole model, and gradients are averaged. With ``fsdp`` parameters,
gradients, moments and averages lie in shards over the ranks (FSDP2: Zhao et al., 2023,
arXiv:2304.11277): each transformer block is put together shortly before it computes, and what is no
block for the whole of a step. Both give the same gradients.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rvqlm.dtensors import local
from rvqlm.errors import UserError, reason_of
from rvqlm.modules import native_training
from rvqlm.modules.transformer import Block
from rvqlm.remote.session import is_copy, named, share
from rvqlm.slurm import started_by_srun

MEETING = timedelta(minutes=10)
"""How long ranks that are there wait for those that are not."""

T = TypeVar("T")


class World:
    """This process among those of a run.

    Started by torchrun, or by srun (`rvqlm.slurm.join_step`), it joins the group (nccl on GPUs,
    gloo on CPUs). Small control messages always go over gloo, so that they never wait for a GPU.

    :param device: what the training runs on.
    :param parallel: ``ddp`` or ``fsdp``.
    :raises UserError: more processes than GPUs on this machine, ranks that don't come.
    """

    def __init__(self, device: torch.device | None = None, parallel: str = "ddp"):
        self.parallel = parallel
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.control: dist.ProcessGroup | None = None
        """Group of all ranks over gloo; None: this process alone."""
        self.gpu: int | None = None
        """Number of this rank's GPU among those that this process sees; None: on CPUs, or alone."""
        self._own = False
        if self.size > 1:
            timeout = timedelta(hours=1)  # what the main rank does alone (samples) has to fit in
            if not dist.is_initialized():
                cuda = device is not None and device.type == "cuda"
                self._join("nccl" if cuda else "gloo", timeout)
                self._own = True
            self.control = dist.new_group(backend="gloo", timeout=timeout)

    def _join(self, backend: str, timeout: timedelta) -> None:
        try:
            store = next(dist.rendezvous("env://", timeout=MEETING))[0]
        except dist.DistError as e:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise UserError(
                f"rank {self.rank} of {self.size} did not meet all others at {place} within "
                f"{MEETING} ({reason_of(e)}); WORLD_SIZE=1 before a command makes it one process"
            ) from None
        store.set_timeout(timeout)
        if backend == "nccl":
            self.gpu = self._pick_gpu(store)
            torch.cuda.set_device(self.gpu)
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout,
            device_id=None if self.gpu is None else torch.device("cuda", self.gpu),
        )  # fmt: skip

    def _pick_gpu(self, store: dist.Store) -> int:
        """Each rank of a machine its own, or all would meet on the first. Tasks of srun may be
        shown one GPU each, which all of them call 0.

        :param store: by which they tell each other which one that is.
        """
        count, here, srun = torch.cuda.device_count(), self.local_size, started_by_srun()
        if srun and count == 1 < here:
            key = f"gpu/{platform.node()}"
            store.set(f"{key}/{self.local_rank}", str(torch.cuda.get_device_properties(0).uuid))
            if len({store.get(f"{key}/{rank}") for rank in range(here)}) < here:
                raise UserError(
                    f"srun started {here} tasks on {platform.node()} that share a GPU: give "
                    f"--gpus-per-node {here}, or fewer --ntasks-per-node"
                )
            return 0
        if self.local_rank >= count:
            started, flag = (
                ("srun", "--ntasks-per-node") if srun else ("torchrun", "--nproc-per-node")
            )
            raise UserError(
                f"{started} started {here} processes on a machine with {count} GPUs: "
                f"give {flag} {count}"
            )
        return self.local_rank

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether a model that was wrapped lies in shards."""
        return self.size > 1 and self.parallel == "fsdp"

    # ------------------------------------------------------------------------------- messages

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, *values: float) -> list[float]:
        """Largest of each value over the ranks: all then decide alike."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.control)
        return message.tolist()

    def gather_objects(self, value) -> list:
        """What each rank has, in the order of ranks, known to all; anything that pickles."""
        if self.size == 1:
            return [value]
        found: list = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank. Its `UserError` on one rank is raised on all, the first
        rank's: none is left waiting for another that has given up."""
        result = error = None
        try:
            result = work()
        except UserError as e:
            error = str(e)
        for rank, found in enumerate(self.gather_objects(error)):
            if found is not None:
                raise UserError(found if rank == 0 else f"rank {rank}: {found}")
        return result

    def barrier(self) -> None:
        self.agree(0.0)  # torch's own would ask the GPU that the ranks are bound to

    def share(self, path: Path) -> None:
        """Of an experiment in a bucket, let ranks on other machines have what the main rank has.
        All ranks call it.

        :raises UserError: under fsdp, whose shards each machine would have a part of.
        """
        first, several = self.local_rank == 0, self.size > self.local_size
        if several and self.parallel == "fsdp" and is_copy(path):
            raise UserError(
                f"{named(str(path))}: --parallel fsdp on several machines needs an --exp-dir on a "
                "file system that they share; give one, or --parallel ddp"
            )
        share(path, self.main, first, several, self.together)

    # ------------------------------------------------------------------------------ the model

    def wrap(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module to call, whose backward leaves the mean over ranks as gradient; its first
        weights are those of rank 0 on all.

        With ``fsdp`` it is the model itself, whose parameters are other tensors then: optimizer and
        average are made after this. Parameters of ``model`` are on this rank's device.

        :param dtype: of autocast. In bf16 what blocks multiply with travels in bf16 to where it is
            put together, as autocast would make it; shards, sums of gradients and norms stay in
            float32.
        """
        if self.size == 1:
            return model
        if self.parallel == "fsdp":
            self._shard(model, dtype)
            return model
        ddp = nn.parallel.DistributedDataParallel
        known = inspect.signature(ddp).parameters  # the option has a new name since torch 2.13
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return ddp(model, gradient_as_bucket_view=True, **{buffers: False})

    def _shard(self, model: nn.Module, dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if not hasattr(FSDPModule, "reset_iter_state"):
            raise UserError(
                f"--parallel fsdp: torch {torch.__version__} is too old for it, 2.13 is not: "
                "update torch, or give --parallel ddp"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.size,))
        mixed = dtype == torch.bfloat16 and not (device.type == "cpu" and native_training.usable())
        policy = MixedPrecisionPolicy()
        if mixed:  # inputs stay: angles of positions are float32, and autocast sees to the rest
            policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        blocks = [m for m in model.modules() if isinstance(m, Block)]
        of_blocks = {p for block in blocks for p in block.parameters()}
        # what is in no block stays together from forward to backward: heads and tables are used
        # outside of any forward but the model's own. So do the gains of norms where the rest of
        # their block travels in bf16: they stay in float32, and a group has one dtype. It is made
        # first, or would find them taken
        gains = _gains(blocks) if mixed else set()
        fully_shard(model, mesh=mesh, ignored_params=of_blocks - gains)
        gains = _gains(blocks) if mixed else set()  # others now: shards
        for block in blocks:
            if block.cross is not None:  # used before the block is: the memory is read first
                fully_shard(block.cross.key_value, mesh=mesh, mp_policy=policy)
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=gains)
            block.register_forward_hook(_forget_casts)
        model._mixed = mixed
        model._keep_whole = False
        model.register_forward_hook(_reshard_without_grad)

    def no_sync(self, module: nn.Module, skip: bool):
        """Context of a forward and backward that keep their gradients to this rank if `skip`."""
        if self.size == 1:
            return nullcontext()
        if self.sharded:
            module.set_requires_gradient_sync(not skip)
            return nullcontext()
        return module.no_sync() if skip else nullcontext()

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """2-norm of all gradients together, those on other ranks included."""
        grads = [local(g) for g in grads]
        if native_training.steps(grads):
            norm = torch.tensor(native_training.sum_of_squares(grads), dtype=torch.float64).sqrt()
        else:
            norm = torch.nn.utils.get_total_norm(grads)
        if self.sharded:  # squared in float64: in float32 they overflow from 2e19 on
            norm = self.all_reduce(norm.double().square()).sqrt()
        return norm

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """All ranks enter; inside, each has all weights of the wrapped `model`, so that one of them
        can generate with it while the others wait at the end. Not for gradients, nor for
        ``state_dict()``, which takes the model apart again."""
        if not self.sharded:
            yield model
            return
        from torch.distributed.fsdp import FSDPModule

        parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
        # generation is not under autocast
        full = [
            (module, name, p.full_tensor())
            for block in model.modules() if model._mixed and isinstance(block, Block)
            for module in block.modules() for name, p in module._parameters.items() if p is not None
        ]  # fmt: skip
        # or the first use of a block would declare it a root of its own
        model._get_fsdp_state()._lazy_init()
        for part in parts:
            if part is not model:
                part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        for module, name, tensor in full:  # until the parts are sharded again
            module._parameters[name] = nn.Parameter(tensor)
        model._keep_whole = True
        try:
            yield model
        finally:
            model._keep_whole = False
            model.reset_iter_state()
            for part in parts:
                if part is not model:
                    part.set_reshard_after_forward(True, recurse=False)
            self.barrier()

    def close(self) -> None:
        """Leave the group that this has joined.

        The threads behind the control messages end with the last reference to their group: one that
        is still putting the last message away when the interpreter is gone aborts the process.
        """
        if self._own and dist.is_initialized():
            self.control = None
            dist.destroy_process_group()


def _gains(blocks: list[Block]) -> set[nn.Parameter]:
    """Of the norms of blocks."""
    modules = (m for block in blocks for m in block.modules())
    return {m.weight for m in modules if isinstance(m, (nn.LayerNorm, nn.RMSNorm))}


def _forget_casts(block: nn.Module, args, output) -> None:
    """Under autocast, weights in bf16 are remembered by the parameter they were made of. Under
    FSDP2 a pass without gradients (scheduled sampling) would leave such for the pass with them,
    which would then end there: no weight of the block would learn."""
    torch.clear_autocast_cache()


def _reshard_without_grad(model: nn.Module, args, output) -> None:
    """After validation. What is no block would stay put together until the next backward, and the
    next forward would use these weights whatever they have become in the meantime. The order of
    blocks, from which the next backward knows what to fetch ahead, is forgotten too."""
    if not torch.is_grad_enabled() and not model._keep_whole:
        model.reset_iter_state()
