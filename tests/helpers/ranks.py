"""Processes that train together, and one that does all of their work: what they are compared with.

`Run` is the loop of the trainer, in few lines; `start` runs checks on ranks.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from families import make, random_batch
from toy import ToyConfig, ToyLoader, ToyModel

from rvqlm.checkpoints.file import FORMAT
from rvqlm.checkpoints.sharded import load_sharded
from rvqlm.dtensors import is_sharded
from rvqlm.training.config import OptimConfig
from rvqlm.training.ema import EMA
from rvqlm.training.optim import build_optimizer

ACCUM, STEPS, CLIP = 2, 3, 0.1


def toy() -> ToyModel:
    torch.manual_seed(0)
    return ToyModel(ToyConfig(width=13))  # rows that no number of ranks divides


MODELS = {
    "toy": toy,
    "codec-lm": lambda: make(
        "text-prompt-cross", scheduled_sampling=0.5, activation_checkpointing=True
    ),
    "depth": lambda: make("depth"),
    "valle": lambda: make("valle-text", share_embedding=True),
    "valle-ar": lambda: make("valle", train_stage=1),
    "masked": lambda: make("masked-text-spread"),
}


def batch_of(model, rank: int, step: int, micro: int):
    number = (step * ACCUM + micro) * 7 + rank
    if isinstance(model, ToyModel):
        return ToyLoader(seed=3).make(0, number)
    return random_batch(model, [3 + rank, 6, 4 + number % 3], seed=number)


class Run:
    """The trainer's steps, for some of the ranks: all of them make one process, one makes a rank.

    `world`: of a rank; None: one process. `mixed`: bf16 autocast.
    """

    def __init__(self, model, ranks, size, world=None, optimizer="adamw", mixed=False):
        self.mixed = mixed
        self.model, self.ranks, self.size, self.world = model, ranks, size, world
        dtype = torch.bfloat16 if mixed else torch.float32
        self.module = world.wrap(model, dtype) if world else model
        # eps: gradients that are zero but for rounding must not decide
        config = OptimConfig(optimizer=optimizer, base_lr=0.01, eps=1e-4)
        self.optimizers = build_optimizer(model, config)
        self.ema = EMA(model, 0.9)
        self.step = 0

    def train(self, steps=STEPS) -> list[list[float]]:
        return [self.train_step() for _ in range(steps)]

    def train_step(self) -> list[float]:
        """Loss per token, norm before clipping, held-out loss of the average."""
        self.model.train()
        self.model.progress = 0.5
        self.optimizers.zero_grad()
        sums = torch.zeros(2)
        for rank in self.ranks:
            torch.manual_seed(100 * self.step + rank)
            for micro in range(ACCUM):
                batch = batch_of(self.model, rank, self.step, micro)
                if self.world is None:
                    out = self.forward(batch)
                    out.loss.backward()
                else:
                    with self.world.no_sync(self.module, skip=micro < ACCUM - 1):
                        out = self.forward(batch)
                        out.loss.backward()
                sums += torch.stack([out.loss.detach(), out.normalizer])
        grads = [p.grad for p in self.optimizers.params if p.grad is not None]
        with torch.no_grad():
            if self.world is None:
                scale, norm = 1 / sums[1], torch.nn.utils.get_total_norm(grads)
            else:
                self.world.all_reduce(sums)
                scale, norm = self.size / sums[1], self.world.grad_norm(grads)
            norm = float(norm * scale)
            torch._foreach_mul_(grads, float(scale) * min(1.0, CLIP / norm))
        self.optimizers.set_factor(1.0)
        self.optimizers.step(ema=self.ema)
        self.step += 1
        return [float(sums[0] / sums[1]), norm, self.held_out()]

    def forward(self, batch, module=None):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return (module or self.module)(batch)

    def held_out(self) -> float:
        """Of the averaged weights, over batches of all ranks."""
        self.model.eval()
        sums = torch.zeros(2)
        with self.ema.swapped(), torch.no_grad():
            for rank in self.ranks:
                out = self.forward(batch_of(self.model, rank, 99, 0), self.model)
                sums += torch.stack([out.nats.sum(), out.count.sum()])
        if self.world is not None:
            self.world.all_reduce(sums)
        return float(sums[0] / sums[1])

    def state(self) -> dict:
        return {
            "format": FORMAT,
            "model_name": "toy",
            **{key: {} for key in ("model_config", "codec", "conditions", "loader")},
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(self.model),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizers.state_dict(),
            "step": self.step,
        }

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"], state["ema_updates"])
        self.optimizers.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def load_from(self, path: Path) -> None:
        self.load(load_sharded(path, self.state(), self.world))


def flat(value, key="") -> dict:
    """Leaves of nested containers by name, shards put together."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {key: value.full_tensor() if is_sharded(value) else value}
    return {k: v for name, one in items for k, v in flat(one, f"{key}/{name}").items()}


def same(a, b, note="", **tolerance) -> None:
    """Equal in all leaves; bit for bit without `tolerance`."""
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            exact = tolerance or {"rtol": 0, "atol": 0}
            where = f"{note} {name}"
            torch.testing.assert_close(value, b[name], msg=lambda m, w=where: f"{w}: {m}", **exact)
        else:
            assert value == b[name], (note, name)


CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def copied_whole(value):
    """A copy of nested containers, with shards put together."""
    if isinstance(value, dict):
        return {k: copied_whole(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied_whole(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.full_tensor() if is_sharded(value) else value.clone()
    return value


def start(size: int, folder: Path, checks: list[Callable]) -> None:
    """``check(rank, size, folder)``, one after the other, on each of `size` ranks."""
    import torch._dynamo  # optimizers do, which takes seconds: once, here
    import torch.distributed.checkpoint
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):  # as `World` refuses
        pytest.skip(f"fsdp of torch {torch.__version__} is too old")
    arguments = size, str(folder / f"store-{size}"), folder, checks
    mp.start_processes(_rank_main, arguments, nprocs=size, start_method="fork")


def _rank_main(rank: int, size: int, store: str, folder: Path, checks: list[Callable]) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # ranks that wait for one another
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for check in checks:
        check(rank, size, folder)
    dist.barrier()
    faulthandler.cancel_dump_traceback_later()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may put a message away when the interpreter is gone, and abort
