"""Two and three ranks against one process with the same batches: losses, gradients, weights,
averages, generation."""

from pathlib import Path

import pytest
import torch
from ranks import CLIP, CLOSE, MODELS, Run, flat, same, start
from toy import ToyModel

from rvqlm.errors import UserError
from rvqlm.training.distributed import World
from rvqlm.training.dtensors import is_sharded


def equals_one_process(rank: int, size: int, folder: Path) -> None:
    """Losses, norms, weights and averages, under both ways; 3 ranks: the small model only."""
    for name in MODELS if size == 2 else ("toy",):
        for parallel in ("ddp", "fsdp"):
            one = Run(MODELS[name](), range(size), size)
            many = Run(MODELS[name](), [rank], size, World(parallel=parallel))
            assert any(is_sharded(p) for p in many.model.parameters()) == (parallel == "fsdp")
            expected, actual = torch.tensor(one.train()), torch.tensor(many.train())
            note = f"{name} {parallel}"
            same(actual, expected, note, **CLOSE)
            assert expected[0, 1] > CLIP  # the norm was clipped
            begun = dict(MODELS[name]().named_parameters())
            for key, value in flat(many.model.state_dict()).items():
                start = begun.get(key[1:])
                if start is not None and start.requires_grad:
                    assert not torch.equal(value, start), f"{note}: {key} has not moved"
            same(many.model.state_dict(), one.model.state_dict(), note, **CLOSE)
            same(many.ema.state_dict(many.model), one.ema.state_dict(one.model), note, **CLOSE)


def first_weights_are_those_of_rank_0(rank: int, size: int, folder: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        torch.manual_seed(rank)
        model = ToyModel()
        World(parallel=parallel).wrap(model)
        torch.manual_seed(0)
        same(model.state_dict(), ToyModel().state_dict())


def one_rank_generates(rank: int, size: int, folder: Path) -> None:
    """With the averaged weights, alone; the others wait. Training goes on as if nothing was."""
    world = World(parallel="fsdp")
    for name in ("codec-lm", "depth"):
        one, run = Run(MODELS[name](), range(size), size), Run(MODELS[name](), [rank], size, world)
        one.train(1)
        how = {"max_new_frames": 5, "seed": 1, "batch_size": 1}
        with run.ema.swapped(), world.whole(run.model):  # before any step too
            if world.main:
                with one.ema.swapped():
                    run.model.generate(**how)
        run.train(1)
        with run.ema.swapped(), world.whole(run.model) as model:
            if world.main:
                weights = {k: p.detach().clone() for k, p in model.named_parameters()}
                made = model.generate(**how)
                plain = MODELS[name]()
                plain.load_state_dict(weights)
                assert torch.equal(made.codes, plain.generate(**how).codes)
        expected, actual = torch.tensor(one.train(2)), torch.tensor(run.train(2))
        same(actual, expected, name, **CLOSE)


def errors_are_raised_together(rank: int, size: int, folder: Path) -> None:
    world = World()
    world.raise_together(None)
    with pytest.raises(UserError, match=r"^rank 1: no space$"):
        world.raise_together("no space" if rank == 1 else None)
    assert world.gather_objects(rank) == list(range(size))
    assert world.agree(float(rank), 5.0) == [size - 1, 5.0]


def test_two_ranks(tmp_path):
    checks = [
        equals_one_process,
        first_weights_are_those_of_rank_0,
        one_rank_generates,
        errors_are_raised_together,
    ]
    start(2, tmp_path, checks)


def test_three_ranks(tmp_path):
    start(3, tmp_path, [equals_one_process])


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 4), ("RANK", 3), ("LOCAL_RANK", 3)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"4 processes on a machine with 2 GPUs.*node 2"):
        World(torch.device("cuda"))
