"""Checkpoints of models in shards (FSDP2), and the way between sharded and whole ones.

    EXP/latest.pt                    everything but sharded tensors; names the directory of those
    EXP/latest-00000120.dcp/         one file a rank and a table of contents, written by
                                     torch.distributed.checkpoint

A rank writes and reads its own shards only. The directory is complete, and its files' checksums are
in latest.pt, before that takes the place of the one before; directories that no checkpoint names
are deleted after. So a kill at any time leaves a checkpoint that loads. In the file a sharded
tensor is represented by the name under which the directory has it.
"""

from __future__ import annotations

import re
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.checkpoints.file import save_checkpoint
from rvqlm.dtensors import is_sharded
from rvqlm.errors import UserError

_DIRECTORY = re.compile(r"\w+-\d{8,}(-\d+)?\.dcp")
_MARK = "sharded:"
_BLOCK = 1 << 24


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
    shards: dict[str, Tensor] = {}

    def put_aside(value, key: str):
        if not is_sharded(value):
            return value
        shards[key] = value
        return _MARK + key

    rest = _map(put_aside, state)
    if shards:
        name = world.gather_objects(_free_name(path, state.get("step", 0)))[0]
        files = _write(shards, path.parent / name, world)
        rest |= {"sharded": name, "sharded_files": files}
    error = None
    if world.main:
        try:
            if shards:
                _require_same_disk(path.parent / name, files)
            save_checkpoint(rest, path, also=also)
            _remove_unused(path.parent)
        except UserError as e:
            error = str(e)
    world.raise_together(error)


def read_sharded(path: Path, state: dict) -> dict:
    """The state with whole tensors on the CPU, in one process.

    :param path: of the small file; `state` is what it holds.
    :raises UserError: the directory is missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    directory = _directory(path, state)
    if error := _damage(directory, state["sharded_files"]):
        raise UserError(error)

    def read() -> dict:
        reader = dcp.FileSystemReader(directory)
        known = reader.read_metadata().state_dict_metadata
        found = {k: torch.empty(m.size, dtype=m.properties.dtype) for k, m in known.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is meant
            dcp.load(found, storage_reader=reader, no_dist=True)
        return found

    return _put_back(state, _or_error(read, directory, "read"))


def load_sharded(path: Path, state: dict, into: dict, world) -> dict:
    """A checkpoint as the ranks of this run can take it in; all of them call it.

    Sharded tensors are dealt anew among any number of ranks, whole ones are cut where this run has
    shards, and shards are put together where it has whole tensors.

    :param path: of the file; `state` is what it holds (`load_checkpoint` with ``gather=False``).
    :param into: state of the trainer that will load it. Where it knows nothing of a tensor, as of
        an optimizer that hasn't stepped, tensors of one dimension or more are cut by their first,
        as FSDP2 does.
    :raises UserError: on all ranks, if the directory is missing or damaged.
    """
    mesh = next((t.device_mesh for t in _tensors(into) if is_sharded(t)), None)
    if "sharded" not in state:
        return state if mesh is None else _cut(state, into, mesh)
    if mesh is None:
        return read_sharded(path, state)
    import torch.distributed.checkpoint as dcp

    error, directory = None, Path(path).parent / state["sharded"]
    try:
        directory = _directory(path, state)
        # each file is read by one rank
        names = sorted(state["sharded_files"])[world.rank :: world.size]
        error = _damage(directory, {n: state["sharded_files"][n] for n in names})
    except UserError as e:
        error = str(e)
    world.raise_together(error)

    def read() -> dict:
        reader = dcp.FileSystemReader(directory)
        known = reader.read_metadata().state_dict_metadata
        found = {k: _empty(m.size, m.properties.dtype, mesh) for k, m in known.items()}
        dcp.load(found, storage_reader=reader, process_group=world.control)
        return found

    return _put_back(state, _together(read, directory, "read", world))


# ------------------------------------------------------------------------------------- writing


def _free_name(path: Path, step: int) -> str:
    """Of a directory that doesn't exist: a step may be saved twice."""
    name, number = f"{path.stem}-{step:08d}", 0
    while (path.parent / f"{name}{f'-{number}' if number else ''}.dcp").exists():
        number += 1
    return f"{name}{f'-{number}' if number else ''}.dcp"


def _write(shards: dict[str, Tensor], directory: Path, world) -> dict[str, list[int]]:
    """Write a directory; bytes and CRC-32 of each of its files."""
    import torch.distributed.checkpoint as dcp

    def write() -> None:
        writer = dcp.FileSystemWriter(directory)
        dcp.save(shards, storage_writer=writer, process_group=world.control)

    def own() -> dict[str, list[int]]:
        mine = [*directory.glob(f"__{world.rank}_*"), *directory.glob(".metadata")]
        return {p.name: _sum_of(p) for p in mine if p.name != ".metadata" or world.main}

    try:
        _together(write, directory, "written", world)
        found = world.gather_objects(_together(own, directory, "written", world))
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
    used = set()
    for path in folder.glob("*.pt"):
        try:
            # mapped: tensors are not read
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # whatever it is, it may name one: nothing is deleted
            return
        if isinstance(state, dict) and "sharded" in state:
            used.add(state["sharded"])
    for directory in directories:
        if directory.name not in used:
            shutil.rmtree(directory, ignore_errors=True)


# ------------------------------------------------------------------------------------- reading


def _directory(path: Path, state: dict) -> Path:
    directory = Path(path).parent / state["sharded"]
    if not directory.is_dir():
        raise UserError(
            f"{directory}: the tensors of {path} are gone; a sharded checkpoint is the file and "
            "this directory: copy both, or give another checkpoint"
        )
    return directory


def _damage(directory: Path, files: dict[str, list[int]]) -> str | None:
    """What is wrong with files that were written with so many bytes and this CRC-32."""
    for name, expected in files.items():
        path = directory / name
        try:
            size, checksum = _sum_of(path)
        except OSError as e:
            return f"{path}: {e.strerror}; give another checkpoint"
        if size != expected[0]:
            return f"{path}: {size:,} bytes, {expected[0]:,} were written; give another checkpoint"
        if checksum != expected[1]:
            return f"{path}: damaged, its checksum is another one; give another checkpoint"
    return None


def _sum_of(path: Path) -> list[int]:
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def _empty(size, dtype: torch.dtype, mesh):
    from torch.distributed.tensor import Shard, zeros

    return zeros(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])


def _cut(state: dict, into: dict, mesh) -> dict:
    """A state of whole tensors in the shards of this rank."""
    from torch.distributed.tensor import Shard, distribute_tensor

    layouts: dict[str, list] = {}

    def look(value, key: str):
        if is_sharded(value):
            layouts[key] = value.placements
        return value

    _map(look, into)

    def cut(value, key: str):
        if not isinstance(value, Tensor):
            return value
        of_optimizer = key.startswith("optimizer/") and value.ndim
        layout = layouts.get(key, [Shard(0)] if of_optimizer else None)
        if layout is None:
            return value.clone()
        # every rank has the whole tensor: nothing is sent
        return distribute_tensor(value, mesh, layout, src_data_rank=None).clone()

    return _map(cut, state)


def _put_back(state: dict, tensors: dict[str, Tensor]) -> dict:
    def fetch(value, key: str):
        return tensors[key] if value == _MARK + key else value

    rest = {k: v for k, v in state.items() if k not in ("sharded", "sharded_files")}
    return _map(lambda v, k: fetch(v, k) if isinstance(v, str) else v, rest)


# --------------------------------------------------------------------------------------- trees


def _map(function: Callable, value, key: str = ""):
    """The same dicts, lists and tuples with ``function(leaf, key)`` for what is none of these."""
    if isinstance(value, dict):
        start = f"{key}/" if key else ""
        return {k: _map(function, v, f"{start}{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, v, f"{key}/{n}") for n, v in enumerate(value))
    return function(value, key)


def _tensors(state: dict) -> list[Tensor]:
    found: list[Tensor] = []
    _map(lambda value, key: found.append(value) if isinstance(value, Tensor) else None, state)
    return found


def _or_error(work: Callable, directory: Path, done: str):
    """What `work` returns; a `UserError` for what torch and the disk raise."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        return work()
    except UserError:
        raise
    except (Exception, CheckpointException) as e:  # the latter is no Exception
        if isinstance(e, CheckpointException):  # one of the ranks' reasons
            e = next(iter(e.failures.values()))[0]
        reason = getattr(e, "strerror", None) or (str(e).splitlines() or [type(e).__name__])[0]
        remedy = "give another checkpoint"
        if done == "written":
            remedy = (
                "any earlier one is intact: free space or fix permissions, then run the same "
                "command again"
            )
        raise UserError(
            f"{directory}: the checkpoint could not be {done} ({reason}); {remedy}"
        ) from e


def _together(work: Callable, directory: Path, done: str, world):
    """`_or_error`, on all ranks if on one."""
    result = error = None
    try:
        result = _or_error(work, directory, done)
    except UserError as e:
        error = str(e)
    world.raise_together(error)
    return result
