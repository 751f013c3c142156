"""The trainer on two and three ranks against the trainer in one process with the same batches:
logs, weights, averages, validation, samples, and resuming with another number of ranks."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ranks import CLOSE, MODELS, batch_of, flat, same, start
from toy import ToyLoader, toy_flags

from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.dtensors import is_sharded
from rvqlm.modules import native_training
from rvqlm.training.distributed import World
from rvqlm.training.trainer import Trainer

A_STEP = 6  # batches, over ranks and accumulation
STEPS, STOP = 4, 2
FLAGS = {
    "max_steps": STEPS,
    "clip_grad_norm": 0.1,
    "eps": 1e-4,  # gradients that are zero but for rounding must not decide
    "log_every_steps": 3,
    "valid_every_steps": 2,
    "archive_every_steps": 3,
    "sample_every_steps": 3,
    "hang_minutes": 2,  # a trainer takes SIGTERM for a wish to save: ranks that wait never end
}
WAYS = ("ddp", "fsdp")
NAMES = ("toy", "codec-lm", "valle", "masked")
ACROSS = "masked"  # the model that is resumed with other numbers of ranks


class Loader(ToyLoader):
    """Batches numbered over all ranks, whatever their number; a signal comes with one of them."""

    def __init__(self, model, rank=0, size=1, stop=None):
        super().__init__(steps=2 * A_STEP // size, seed=3, rank=rank, world_size=size)
        self.model, self.stop = model, stop

    def make(self, epoch: int, step: int):
        number = (epoch * self.epoch_steps + step) * self.world_size + self.rank
        if self.stop is not None and number >= self.stop * A_STEP - self.world_size:
            os.kill(os.getpid(), signal.SIGTERM)  # in the last batch of that step
            self.stop = None
        return self.batch(number)

    def batch(self, number: int):
        batch = batch_of(self.model, number % 3, number, 0)
        batch.epoch = number
        return batch

    def epoch_batches(self, epoch=0):
        return (self.batch(1000 + n) for n in range(self.rank, A_STEP, self.world_size))

    def state_dict(self) -> dict:
        return {"batches": (self.epoch * self.epoch_steps + self.step) * self.world_size}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.step = divmod(state["batches"] // self.world_size, self.epoch_steps)


class Samples:
    """Keeps the weights that it is given to generate with."""

    def __init__(self, exp_dir: Path):
        self.exp_dir = exp_dir

    def write(self, model, step, epoch, beat) -> None:
        weights = {k: p.detach().clone() for k, p in model.named_parameters()}
        torch.save(weights, self.exp_dir / f"samples-{step}.pt")
        if hasattr(model, "generate"):
            model.generate(max_new_frames=3, seed=1, batch_size=1)


def seed_by_batch(model, args) -> None:
    """What a model draws depends on the batch, not on the process that has it."""
    torch.manual_seed(args[0].epoch)


def trainer_of(name: str, exp_dir: Path, world: World, stop=None) -> Trainer:
    model = MODELS[name]()
    model.register_forward_pre_hook(seed_by_batch)
    flags = toy_flags(exp_dir, model=model.config, accum=A_STEP // world.size, **FLAGS)
    train = Loader(model, world.rank, world.size, stop)
    return Trainer(
        model, train, Loader(model, world.rank, world.size), flags, model.info, world=world,
        make_samples=lambda log: Samples(exp_dir),
    )  # fmt: skip


def train(name: str, exp_dir: Path, parallel="ddp", stop=None) -> Trainer:
    """From latest.pt of `exp_dir`, if there is one."""
    trainer = trainer_of(name, exp_dir, World(parallel=parallel), stop)
    trainer.world.barrier()  # or one looks for latest.pt when another has saved already
    if (exp_dir / "latest.pt").exists():
        trainer.resume(exp_dir / "latest.pt")
        assert trainer.step == STOP
    assert trainer.fit() == ("SIGTERM" if stop else "finished")
    assert trainer.step == (stop or STEPS)
    return trainer


def go_on(source: Path, target: Path, parallel: str) -> None:
    world = World()
    if world.main:
        shutil.copytree(source, target)
    world.barrier()
    train(ACROSS, target, parallel)


def two_ranks(rank: int, size: int, folder: Path) -> None:
    native_training._in_use = not native_training.missing()  # of what is whole
    for name in NAMES:
        for parallel in WAYS:
            trainer = train(name, folder / f"{name}-{parallel}", parallel)
            shards = [is_sharded(p) for p in trainer.model.parameters()]
            assert all(shards) if parallel == "fsdp" else not any(shards)
    returns_to_a_checkpoint(trainer)
    train(ACROSS, folder / "2-fsdp", "fsdp", stop=STOP)
    go_on(folder / "1", folder / "1-to-2", "fsdp")


def returns_to_a_checkpoint(trainer: Trainer) -> None:
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.zero_()
    trainer.roll_back("a test")
    state = load_checkpoint(trainer.exp_dir / "latest.pt")
    same(trainer.model.state_dict(), state["model"])
    same(trainer.ema.state_dict(trainer.model), state["ema"])


def three_ranks(rank: int, size: int, folder: Path) -> None:
    train(ACROSS, folder / "3-fsdp", "fsdp", stop=STOP)
    go_on(folder / "1", folder / "1-to-3", "fsdp")
    go_on(folder / "2-fsdp", folder / "2-to-3", "fsdp")


def lines(exp_dir: Path, kind: str, *names: str) -> torch.Tensor:
    found = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [[x["step"], *(x[n] for n in names)] for x in found if x["kind"] == kind]
    return torch.tensor(rows, dtype=torch.float64)


def same_training(exp_dir: Path, expected: Path) -> None:
    note = exp_dir.name
    for kind, names in (
        ("train", ("loss", "grad_norm", "frames", "total_frames", "lr", "padding")),
        ("valid", ("loss", "frames", "bits_per_token")),
    ):
        a, b = lines(exp_dir, kind, *names), lines(expected, kind, *names)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m: f"{note}: {m}")
    for file in ("latest.pt", "best.pt"):
        a, b = load_checkpoint(exp_dir / file), load_checkpoint(expected / file)
        assert a["step"] == b["step"] and a["total_frames"] == b["total_frames"], note
        assert a["loader"] == b["loader"] and a["best"]["step"] == b["best"]["step"], note
        for part in ("model", "ema", "optimizer"):
            same(a[part], b[part], f"{note} {file} {part}", **CLOSE)
    for step in (3, STEPS):
        a, b = (torch.load(d / f"samples-{step}.pt") for d in (exp_dir, expected))
        same(a, b, f"{note} samples", **CLOSE)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """Folder of trainings of one, two and three ranks."""
    folder = tmp_path_factory.mktemp("trainings")
    train(ACROSS, folder / "1", stop=STOP)
    start(2, folder, [two_ranks])
    start(3, folder, [three_ranks])
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_as_one(ended, name):
    one = ended / f"one-{name}"
    trainer = train(name, one)
    begun = flat(MODELS[name]().state_dict())
    moved = flat(trainer.model.state_dict())
    assert all(not torch.equal(moved[f"/{k}"], begun[f"/{k}"]) for k in trainer.ema.names)
    assert lines(one, "train", "grad_norm")[:, 1].min() > FLAGS["clip_grad_norm"]
    for parallel in WAYS:
        same_training(ended / f"{name}-{parallel}", one)


def test_any_number_of_ranks_goes_on(ended):
    one = ended / "whole"
    train(ACROSS, one)
    for source, target in (("2-fsdp", "2-to-1"), ("3-fsdp", "3-to-1")):
        go_on(ended / source, ended / target, "ddp")
        same_training(ended / target, one)
    for target in ("1-to-2", "1-to-3", "2-to-3"):
        same_training(ended / target, one)
    # shards are gone when whole tensors took their place, but for those that a checkpoint has
    assert not list((ended / "2-to-1").glob("latest*.dcp"))
    assert len(list((ended / "2-to-3/archive").glob("*.dcp"))) == 1
