"""Two and three ranks against one process with the same batches: losses, gradients, weights;
checkpoints of shards between them.

A start of processes makes many checks, in the order of `RANK_CHECKS`; each rank's errors are its
own traceback.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from families import make, random_batch
from toy import ToyConfig, ToyLoader, ToyModel

from rvqlm.errors import UserError
from rvqlm.training.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from rvqlm.training.config_optim import OptimConfig
from rvqlm.training.distributed import World
from rvqlm.training.dtensors import is_sharded
from rvqlm.training.ema import EMA
from rvqlm.training.optim import build_optimizer
from rvqlm.training.sharded import load_sharded, save_sharded

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

    `world`: of a rank; None: one process.
    """

    def __init__(self, model, ranks, size, world=None, optimizer="adamw"):
        self.model, self.ranks, self.size, self.world = model, ranks, size, world
        self.module = world.wrap(model) if world else model
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
                    out = self.module(batch)
                    out.loss.backward()
                else:
                    with self.world.no_sync(self.module, skip=micro < ACCUM - 1):
                        out = self.module(batch)
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
        self.optimizers.step()
        self.ema.update()
        self.step += 1
        return [float(sums[0] / sums[1]), norm, self.held_out()]

    def held_out(self) -> float:
        """Of the averaged weights, over batches of all ranks."""
        self.model.eval()
        sums = torch.zeros(2)
        with self.ema.swapped(), torch.no_grad():
            for rank in self.ranks:
                out = self.model(batch_of(self.model, rank, 99, 0))
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
        state = load_checkpoint(path, gather=False)
        self.load(load_sharded(path, state, self.state(), self.world))


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


# ------------------------------------------------------------------------------------ on ranks


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


def saves(rank: int, size: int, folder: Path) -> None:
    """Shards of this many ranks, and a whole checkpoint of the same, with each optimizer."""
    for optimizer in ("adamw", "muon", "scaled_adam"):
        world = World(parallel="fsdp")
        run = Run(MODELS["toy"](), [rank], size, world, optimizer)
        run.train(2)
        here = folder / optimizer
        here.mkdir(exist_ok=True)
        state = run.state()
        save_sharded(state, here / f"shards-{size}.pt", world)
        whole = copied_whole(state)
        if world.main:
            save_checkpoint(whole, here / f"whole-{size}.pt")
        world.barrier()
        # averages and weights in one process are what they are in shards
        same(load_checkpoint(here / f"shards-{size}.pt"), whole)


def copied_whole(value):
    """A copy of nested containers, with shards put together."""
    if isinstance(value, dict):
        return {k: copied_whole(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied_whole(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.full_tensor() if is_sharded(value) else value.clone()
    return value


def loads(rank: int, size: int, folder: Path) -> None:
    """What two ranks saved, in shards or whole, under both ways; the next step is the same."""
    for optimizer in ("adamw", "muon", "scaled_adam"):
        whole = load_checkpoint(folder / optimizer / "whole-2.pt")
        one = Run(MODELS["toy"](), range(size), size, None, optimizer)
        one.load(copied_whole(whole))
        expected = torch.tensor(one.train(1))
        for parallel in ("ddp", "fsdp"):
            for name in ("shards-2.pt", "whole-2.pt"):
                world = World(parallel=parallel)
                run = Run(MODELS["toy"](), [rank], size, world, optimizer)
                run.load_from(folder / optimizer / name)
                same(run.state(), whole)
                same(torch.tensor(run.train(1)), expected, **CLOSE)
                same(run.model.state_dict(), one.model.state_dict(), **CLOSE)


def directories_come_and_go(rank: int, size: int, folder: Path) -> None:
    """Two names of one checkpoint; a directory stays while any names it; a disk that refuses."""
    world, here = World(parallel="fsdp"), folder / "experiment"
    here.mkdir(exist_ok=True)
    world.barrier()
    run = Run(MODELS["toy"](), [rank], size, world)
    latest, best = here / "latest.pt", here / "best.pt"

    def directories() -> list[str]:
        world.barrier()
        found = sorted(p.name for p in here.glob("*.dcp"))
        world.barrier()
        return found

    save_sharded(run.state(), latest, world)
    save_sharded(run.state(), latest, world)  # the same step once more, before the old one goes
    assert directories() == ["latest-00000000-1.dcp"]
    run.train(1)
    save_sharded(run.state(), best, world, also=latest)
    assert directories() == ["best-00000001.dcp"]
    at_best = copied_whole(run.state())
    run.train(1)
    save_sharded(run.state(), latest, world)
    assert directories() == ["best-00000001.dcp", "latest-00000002.dcp"]
    same(load_checkpoint(best), at_best)

    at_latest = copied_whole(run.state())
    run.train(1)
    import torch.distributed.checkpoint as dcp

    class Full(dcp.FileSystemWriter):
        def write_data(self, *args):
            if rank == size - 1:
                raise OSError(28, "No space left on device")
            return super().write_data(*args)

    real, dcp.FileSystemWriter = dcp.FileSystemWriter, Full
    with pytest.raises(UserError, match=r"latest-00000003.dcp.*No space left"):
        save_sharded(run.state(), latest, world)
    dcp.FileSystemWriter = real
    assert directories() == ["best-00000001.dcp", "latest-00000002.dcp"]
    same(load_checkpoint(latest), at_latest)
    world.barrier()
    # damage is told on all ranks, whichever of them found it
    if world.main:
        file = next((here / "latest-00000002.dcp").glob(f"__{size - 1}_*"))
        file.write_bytes(file.read_bytes()[:-1])
    world.barrier()
    with pytest.raises(UserError, match=r"bytes, .* were written"):
        run.load_from(latest)


def errors_are_raised_together(rank: int, size: int, folder: Path) -> None:
    world = World()
    world.raise_together(None)
    with pytest.raises(UserError, match=r"^rank 1: no space$"):
        world.raise_together("no space" if rank == 1 else None)
    assert world.gather_objects(rank) == list(range(size))
    assert world.agree(float(rank), 5.0) == [size - 1, 5.0]


RANK_CHECKS = {
    2: [
        equals_one_process,
        first_weights_are_those_of_rank_0,
        one_rank_generates,
        saves,
        directories_come_and_go,
        errors_are_raised_together,
    ],
    3: [equals_one_process, loads, saves],
}


def rank_main(rank: int, size: int, store: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for check in RANK_CHECKS[size]:
        check(rank, size, folder)
    dist.destroy_process_group()


def start(size: int, folder: Path) -> None:
    arguments = size, str(folder / f"store-{size}"), folder
    mp.start_processes(rank_main, arguments, nprocs=size, start_method="fork")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folder that two ranks have left, after their checks."""
    folder = tmp_path_factory.mktemp("ranks")
    start(2, folder)
    return folder


def test_two_ranks(saved):
    assert (saved / "adamw" / "shards-2.pt").is_file()


def test_three_ranks_go_on_from_two_and_one_from_three(saved):
    start(3, saved)
    for optimizer in ("adamw", "muon", "scaled_adam"):
        state = load_checkpoint(saved / optimizer / "shards-3.pt")
        same(state, load_checkpoint(saved / optimizer / "whole-3.pt"))
        run = Run(MODELS["toy"](), range(3), 3, None, optimizer)
        run.load(state)
        same(run.state(), state)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "no directory"])
def test_damaged_shards_are_refused(saved, tmp_path, damage):
    shutil.copytree(saved / "adamw", tmp_path / "exp")
    path = tmp_path / "exp" / "shards-2.pt"
    directory = path.parent / load_checkpoint(path, gather=False)["sharded"]
    file = directory / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        directory.rename(tmp_path / "elsewhere")
    words = {"flip": "checksum", "cut": "bytes", "gone": "No such file", "no directory": "gone"}
    with pytest.raises(UserError, match=words[damage]):
        load_checkpoint(path)


def test_one_process_needs_no_shards(tmp_path):
    """The same calls as with several ranks."""
    world = World(parallel="fsdp")
    run = Run(ToyModel(), [0], 1, world)
    assert run.module is run.model and not world.sharded
    run.train(1)
    save_sharded(run.state(), tmp_path / "latest.pt", world, also=tmp_path / "best.pt")
    other = Run(ToyModel(), [0], 1, world)
    other.load_from(tmp_path / "best.pt")
    same(other.state(), run.state())
    with world.whole(run.model) as model:
        assert model is run.model


def test_a_directory_that_an_unreadable_checkpoint_may_name_stays(tmp_path):
    from rvqlm.training.sharded import _remove_unused

    (tmp_path / "latest-00000007.dcp").mkdir()
    (tmp_path / "mine.dcp").mkdir()
    (tmp_path / "best.pt").write_bytes(b"torn")
    _remove_unused(tmp_path)
    assert (tmp_path / "latest-00000007.dcp").is_dir()
    (tmp_path / "best.pt").unlink()
    _remove_unused(tmp_path)
    assert [p.name for p in tmp_path.glob("*.dcp")] == ["mine.dcp"]
