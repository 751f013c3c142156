"""Two and three ranks against one process with the same batches: losses, gradients, weights,
averages, generation."""

import os
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import CLIP, CLOSE, MODELS, Run, batch_of, flat, same, start
from toy import ToyModel, toy_flags

from rvqlm.dtensors import is_sharded
from rvqlm.errors import UserError
from rvqlm.modules import native_training
from rvqlm.slurm import join_step
from rvqlm.training import distributed
from rvqlm.training.distributed import World
from rvqlm.training.run import lock_folder


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
            everything_moved(many.model, MODELS[name](), note)
            same(many.model.state_dict(), one.model.state_dict(), note, **CLOSE)
            average = many.ema.state_dict(many.model)
            same(average, one.ema.state_dict(one.model), note, **CLOSE)


def everything_moved(model, before, note: str) -> None:
    values = flat(model.state_dict())
    for key, begun in before.named_parameters():
        if begun.requires_grad:
            assert not torch.equal(values[f"/{key}"], begun), f"{note}: {key} has not moved"


def equals_one_process_in_bf16(rank: int, size: int, folder: Path) -> None:
    """First losses and norms; later ones hang on roundings."""
    for name in ("codec-lm", "masked"):
        expected = Run(MODELS[name](), range(size), size, mixed=True).train(1)
        for parallel in ("ddp", "fsdp"):
            many = Run(MODELS[name](), [rank], size, World(parallel=parallel), mixed=True)
            note = f"{name} {parallel}"
            same(torch.tensor(many.train(1)), torch.tensor(expected), note, rtol=1e-3, atol=0)
            everything_moved(many.model, MODELS[name](), note)


def blocks_travel_in_bf16(rank: int, size: int, folder: Path) -> None:
    """Half the bytes; else all is as where autocast makes bf16 of what comes, bit for bit."""
    gather, sent = dist.all_gather_single, Counter()

    def counting(output_tensor, *arguments, **named):
        sent[output_tensor.dtype] += output_tensor.nbytes
        return gather(output_tensor, *arguments, **named)

    def train(travels: bool) -> tuple:
        run = Run(MODELS[name](), [rank], size, World(parallel="fsdp"), mixed=travels)
        run.mixed = True
        sent.clear()
        losses, bytes_sent = run.train(1), dict(sent)
        state = flat(run.model.state_dict())
        with run.world.whole(run.model) as model:
            same(dict(model.named_parameters()), {k: state[f"/{k}"] for k in names})
            if run.world.main:
                model.generate(max_new_frames=2, seed=1, batch_size=1)
        return bytes_sent, losses + run.train(1), run.state()

    name = "codec-lm"
    names = [k for k, _ in MODELS[name]().named_parameters()]
    with native_training.without(), patch.object(dist, "all_gather_single", counting):
        (before, *there), (now, *here) = train(False), train(True)
    same(here, there)
    of_blocks = before[torch.float32] - now[torch.float32]  # and gains, more than once
    assert 2 <= of_blocks / now[torch.bfloat16] < 2.1


def first_weights_are_those_of_rank_0(rank: int, size: int, folder: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        torch.manual_seed(rank)
        model = ToyModel()
        World(parallel=parallel).wrap(model)
        torch.manual_seed(0)
        same(model.state_dict(), ToyModel().state_dict())


def one_rank_generates(rank: int, size: int, folder: Path) -> None:
    """With the averaged weights, alone; the others wait. Training continues as if nothing was."""
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


def skipped_gradients_stay_here(rank: int, size: int, folder: Path) -> None:
    """What a backward leaves that is not the last of a step: the rank's own, or nothing yet."""
    for parallel in ("ddp", "fsdp"):
        world, alone = World(parallel=parallel), MODELS["toy"]()
        run = Run(MODELS["toy"](), [rank], size, world)
        batch = batch_of(alone, rank, 0, 0)
        alone(batch).loss.backward()
        with world.no_sync(run.module, skip=True):
            run.module(batch).loss.backward()
        for own, p in zip(alone.parameters(), run.model.parameters()):
            if parallel == "ddp":
                torch.testing.assert_close(p.grad, own.grad)
            else:
                assert p.grad is None


def errors_are_raised_together(rank: int, size: int, folder: Path) -> None:
    world = World()
    assert world.together(lambda: rank) == rank

    def fail():
        if rank == 1:
            raise UserError("no space")

    with pytest.raises(UserError, match=r"^rank 1: no space$"):
        world.together(fail)
    assert world.gather_objects(rank) == list(range(size))
    assert world.agree(float(rank), 5.0) == [size - 1, 5.0]


def ranks_share_one_lock(rank: int, size: int, folder: Path) -> None:
    """The main rank holds it; a refusal is one on all ranks, and nothing was touched."""
    world, flags = World(), toy_flags(folder / "experiment")
    with ExitStack() as stack:
        assert lock_folder(flags, world, stack) is False
        assert [p.name for p in (folder / "experiment").iterdir()] == [".rvqlm.lock"]
        world.barrier()
        with pytest.raises(UserError, match=r"rvqlm train .*--lock-minutes"), ExitStack() as other:
            lock_folder(flags, world, other)
        world.barrier()
    world.barrier()
    assert not [*(folder / "experiment").iterdir()]


def test_two_ranks(tmp_path):
    checks = [
        equals_one_process,
        equals_one_process_in_bf16,
        blocks_travel_in_bf16,
        first_weights_are_those_of_rank_0,
        one_rank_generates,
        skipped_gradients_stay_here,
        errors_are_raised_together,
        ranks_share_one_lock,
    ]
    start(2, tmp_path, checks)


def test_three_ranks(tmp_path):
    start(3, tmp_path, [equals_one_process])


def task_of_slurm(rank: int) -> None:
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    join_step()
    world = World()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (rank, 2, rank, 2)
    one, many = Run(MODELS["toy"](), range(2), 2), Run(MODELS["toy"](), [rank], 2, world)
    same(torch.tensor(many.train(1)), torch.tensor(one.train(1)), **CLOSE)
    world.close()
    os._exit(0)  # as the helper does


@pytest.fixture
def step(monkeypatch):
    """Variables of two tasks on this machine, but for which of them it is."""
    values = {"JOB_ID": os.getpid(), "STEP_ID": 0, "NODEID": 0, "STEP_NUM_TASKS": 2}
    for name, value in (values | {"STEP_NODELIST": "localhost"}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # to be taken away again, whoever sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", "")
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setattr(os, "isatty", lambda number: False)


def test_tasks_of_slurm_train(step):
    import torch._dynamo  # noqa: F401 - optimizers do, which takes seconds: once, here

    mp.start_processes(task_of_slurm, nprocs=2, start_method="fork")


def test_a_task_that_does_not_come(step, monkeypatch):
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=0.1))
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    join_step()
    with pytest.raises(
        UserError, match=r"rank 0 of 2 did not meet all others at localhost:\d+ within"
    ):
        World()


def test_tasks_that_see_one_gpu(step, monkeypatch):
    """Each its own, or all the same one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    store, cards = dist.HashStore(), ["GPU-a", "GPU-b", "GPU-a"]

    class Task(World):
        def __init__(self, rank: int, size: int):
            self.local_rank, self.local_size = rank, size

    def number(rank: int, size: int) -> int:
        card = type("Card", (), {"uuid": cards[rank]})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
        return Task(rank, size)._pick_gpu(store)

    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    host = distributed.platform.node()
    for rank, card in enumerate(cards):
        store.set(f"gpu/{host}/{rank}", card)
    assert number(1, 2) == 0
    with pytest.raises(
        UserError, match=r"srun started 3 tasks on .* share a GPU.*--gpus-per-node 3"
    ):
        number(2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"srun started 3 .* with 2 GPUs: give --ntasks-per-node 2"):
        number(2, 3)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 4), ("RANK", 3), ("LOCAL_RANK", 3)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(dist, "rendezvous", lambda *a, **k: iter([(dist.HashStore(), 3, 4)]))
    with pytest.raises(UserError, match=r"4 processes on a machine with 2 GPUs.*node 2"):
        World(torch.device("cuda"))
