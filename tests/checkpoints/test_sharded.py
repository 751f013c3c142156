"""Checkpoints of shards: between two ranks, three and one, and to and from whole ones."""

import shutil
from pathlib import Path

import pytest
import torch
from ranks import CLOSE, MODELS, Run, copied_whole, same, start
from toy import ToyModel

from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.checkpoints.sharded import _remove_unused, save_sharded
from rvqlm.errors import UserError
from rvqlm.training.distributed import World

OPTIMIZERS = ("adamw", "muon", "scaled_adam")


def saves(rank: int, size: int, folder: Path) -> None:
    """Shards of this many ranks, and a whole checkpoint of the same, with each optimizer."""
    for optimizer in OPTIMIZERS:
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


def loads(rank: int, size: int, folder: Path) -> None:
    """What two ranks saved, in shards or whole, under both ways; the next step is the same."""
    for optimizer in OPTIMIZERS:
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folder that two ranks have left, after their checks."""
    folder = tmp_path_factory.mktemp("ranks")
    start(2, folder, [saves, directories_come_and_go])
    return folder


def test_three_ranks_go_on_from_two_and_one_from_three(saved):
    start(3, saved, [loads, saves])
    for optimizer in OPTIMIZERS:
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
    (tmp_path / "latest-00000007.dcp").mkdir()
    (tmp_path / "mine.dcp").mkdir()
    (tmp_path / "best.pt").write_bytes(b"torn")
    _remove_unused(tmp_path)
    assert (tmp_path / "latest-00000007.dcp").is_dir()
    (tmp_path / "best.pt").unlink()
    _remove_unused(tmp_path)
    assert [p.name for p in tmp_path.glob("*.dcp")] == ["mine.dcp"]
