"""Checkpoints of models in shards (FSDP2), and the way between sharded and whole ones.

A rank writes and reads its own shards only, in a directory beside the checkpoint file
(`rvqlm.checkpoints.shards`). The directory is complete, and its files' checksums are in the file,
before that takes the place of the one before; directories that no checkpoint names are deleted
after. So a kill at any time leaves a checkpoint that loads.

torch's ``distributed.checkpoint.state_dict`` is not used: it names what optimizers keep otherwise
than ``state_dict()`` does, and sharded and whole checkpoints would differ.
"""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

from torch import Tensor

from rvqlm.checkpoints import shards
from rvqlm.checkpoints.file import EARLIER_INTACT, load_checkpoint, save_checkpoint
from rvqlm.checkpoints.shards import leaves, map_leaves, put_aside, put_back, sum_of
from rvqlm.dtensors import is_sharded
from rvqlm.errors import UserError

_DIRECTORY = re.compile(r"\w+-\d{8,}(-\d+)?\.dcp")


def save_sharded(state: dict, path: Path, world, also: Path | None = None) -> None:
    """Write a checkpoint; all ranks call it with their own `state`.

    What is not sharded is taken from rank 0. Without any sharded tensor it is `save_checkpoint` on
    rank 0.

    :param path: of the small file, such as EXP/latest.pt; the directory lies beside it.
    :param also: second name of the file.
    :raises UserError: on all ranks, if the disk refuses or is not the same for all of them;
        earlier checkpoints are untouched then.
    """
    path = Path(path)
    rest, tensors = put_aside(state)
    directory = None
    if tensors:
        directory = path.parent / world.gather_objects(_free_name(path, state.get("step", 0)))[0]
        files = _write(tensors, directory, world)
        rest |= {"sharded": directory.name, "sharded_files": files}

    def finish() -> None:
        if directory is not None:
            _require_same_disk(directory, files)
        save_checkpoint(rest, path, also=also)
        _remove_unused(path.parent)

    world.together(finish if world.main else lambda: None)


def load_sharded(path: Path, into: dict, world) -> dict:
    """A checkpoint as the ranks of this run can take it in; all of them call it.

    Sharded tensors are dealt anew among any number of ranks, whole ones are cut where this run has
    shards, and shards are put together where it has whole tensors.

    :param path: of the file.
    :param into: state of the trainer that will load it. Where it knows nothing of a tensor, as of
        an optimizer that hasn't stepped, tensors of one dimension or more are cut by their first,
        as FSDP2 does.
    :raises UserError: on all ranks, if file or directory are missing or damaged.
    """
    state = world.together(lambda: load_checkpoint(path, gather=False))
    here = {key: t for key, t in leaves(into).items() if is_sharded(t)}
    mesh = next((t.device_mesh for t in here.values()), None)
    if "sharded" not in state:
        return state if mesh is None else _cut(state, here, mesh)
    if mesh is None:
        return shards.read_whole(path, state)
    from torch.distributed.tensor import Shard, zeros

    def check() -> tuple[Path, dict[str, list[int]]]:
        directory, files = shards.directory_of(path, state), shards.files_of(path, state)
        own = dict(sorted(files.items())[world.rank :: world.size])  # each is read by one rank
        shards.require_intact(directory, own)
        return directory, files

    def read() -> dict[str, Tensor]:
        def make(size, dtype):
            return zeros(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

        with shards.errors(directory, "read"):
            return shards.read_tensors(directory, files, make, process_group=world.control)

    directory, files = world.together(check)
    return put_back(state, world.together(read))


def _free_name(path: Path, step: int) -> str:
    """Of a directory that doesn't exist: a step may be saved twice."""
    first = f"{path.stem}-{step:08d}"
    names = (f"{first}{f'-{n}' if n else ''}.dcp" for n in itertools.count())
    return next(name for name in names if not (path.parent / name).exists())


def _write(tensors: dict[str, Tensor], directory: Path, world) -> dict[str, list[int]]:
    """Write a directory; bytes and CRC-32 of each of its files."""
    import torch.distributed.checkpoint as dcp

    def write() -> dict[str, list[int]]:
        with shards.errors(directory, "written", EARLIER_INTACT):
            writer = dcp.FileSystemWriter(directory)
            dcp.save(tensors, storage_writer=writer, process_group=world.control)
            own = [*directory.glob(f"__{world.rank}_*")]
            own += [directory / ".metadata"] if world.main else []
            return {path.name: sum_of(path) for path in own}

    try:
        found = world.gather_objects(world.together(write))
    except UserError:
        if world.main:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return {name: numbers for one in found for name, numbers in one.items()}


def _require_same_disk(directory: Path, files: dict[str, list[int]]) -> None:
    for name, (size, _) in files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(
                f"{path}: written by another machine and not seen by this one: --exp-dir must be "
                "on a file system that all of them share"
            )


def _remove_unused(folder: Path) -> None:
    """Delete directories of shards that no checkpoint of `folder` names."""
    directories = [p for p in folder.glob("*.dcp") if _DIRECTORY.fullmatch(p.name)]
    if not directories:
        return
    try:
        used = {shards.named_by(path) for path in folder.glob("*.pt")}
    except Exception:  # whatever an unreadable file is, it may name one: nothing is deleted
        return
    for directory in directories:
        if directory.name not in used:
            shutil.rmtree(directory, ignore_errors=True)


def _cut(state: dict, here: dict[str, Tensor], mesh) -> dict:
    """A state of whole tensors in the shards of this rank, laid out as the tensors `here` are."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def cut(value, key: str):
        if not isinstance(value, Tensor):
            return value
        if key in here:
            layout = here[key].placements
        elif key.startswith("optimizer/") and value.ndim:
            layout = [Shard(0)]
        else:
            return value.clone()
        # every rank has the whole tensor: nothing is sent
        return distribute_tensor(value, mesh, layout, src_data_rank=None).clone()

    return map_leaves(cut, state)
