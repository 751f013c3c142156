"""Optimizers on parameters that lie in shards on two ranks, as FSDP2 leaves them, against the same
on whole ones."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from toy import ToyConfig, ToyModel

from rvqlm.training.config import OptimConfig
from rvqlm.training.optim import build_optimizer


def models() -> tuple[nn.Module, nn.Module]:
    """One model, and the same with sharded parameters; 13 rows are not the same on both ranks, and
    one element is on one rank only."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    model = ToyModel(ToyConfig(width=13))
    model.twin = nn.Linear(13, 13)  # of the shape of another: they are updated together
    model.gain = nn.Parameter(torch.ones(1))
    model.muon_parameters = lambda: [model.hidden.weight, model.twin.weight]
    sharded, mesh = copy.deepcopy(model), init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(sharded.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    sharded.muon_parameters = lambda: [sharded.hidden.weight, sharded.twin.weight]
    return model, sharded


def steps(model: nn.Module, config: OptimConfig, count: int) -> list[torch.Tensor]:
    """Parameters after so many steps, the optimizer made anew from its state between two."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    state = None
    for n in range(count):
        optimizers = build_optimizer(model, config)
        if state is not None:
            optimizers.load_state_dict(state)
        optimizers.set_factor(1.0)
        torch.manual_seed(n)
        for p in model.parameters():
            grad = torch.randn(p.shape)
            if isinstance(p, DTensor):
                grad = distribute_tensor(grad, p.device_mesh, p.placements)
            p.grad = grad
        optimizers.step()
        state = optimizers.state_dict()
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]


def rank_main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in ("adamw", "muon", "scaled_adam"):
        config = OptimConfig(optimizer=name, base_lr=0.05, embedding_lr=0.02)
        model, sharded = models()
        before = [p.detach().clone() for p in model.parameters()]
        results = zip(before, steps(model, config, 3), steps(sharded, config, 3))
        for start, expected, actual in results:
            assert not torch.allclose(start, expected)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, msg=name)
    dist.barrier()
    os._exit(0)  # see helpers/ranks.py


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_shards_are_updated_as_the_whole(tmp_path):
    mp.start_processes(rank_main, (str(tmp_path / "store"),), nprocs=2, start_method="fork")
