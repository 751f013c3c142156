"""The directory beside a sharded checkpoint, which holds its tensors.

    EXP/latest.pt                    everything but sharded tensors; names the directory of those
    EXP/latest-00000120.dcp/         one file a rank and a table of contents, written by
                                     torch.distributed.checkpoint

In the file a sharded tensor is represented by the name under which the directory has it, and every
file of the directory by its size and CRC-32; no other file is read. `rvqlm.checkpoints.sharded` is
how ranks write and read both.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.dtensors import is_sharded
from rvqlm.errors import UserError, reason_of
from rvqlm.files import blocks

_MARK = "sharded:"
_CONTENTS = ".metadata"


def read_whole(path: Path, state: dict) -> dict:
    """The state with whole tensors on the CPU, in one process.

    :param path: of the small file; `state` is what it holds.
    :raises UserError: the directory is missing or damaged.
    """
    directory, files = directory_of(path, state), files_of(path, state)
    require_intact(directory, files)

    def make(size: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype)

    with errors(directory, "read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is meant
        return put_back(state, read_tensors(directory, files, make, no_dist=True))


def read_tensors(
    directory: Path,
    files: dict[str, list[int]],
    make: Callable[[torch.Size, torch.dtype], Tensor],
    **how,
) -> dict[str, Tensor]:
    """All tensors of a directory by name, each read into what `make` returns for its size and type.

    :param files: the files that may be read, which `require_intact` has seen.
    :param how: further arguments of ``torch.distributed.checkpoint.load``.
    """
    import torch.distributed.checkpoint as dcp

    from rvqlm.checkpoints.contents import read_contents

    contents = read_contents(directory / _CONTENTS, files)

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args, **kwargs):
            """Not torch's, which would run what the file says."""
            return contents

    known = contents.state_dict_metadata
    found = {k: make(m.size, m.properties.dtype) for k, m in known.items()}
    dcp.load(found, storage_reader=Reader(directory), **how)
    return found


def directory_of(path: Path, state: dict) -> Path:
    """Where the tensors of the checkpoint `path` are; `UserError` if they are gone, or anywhere but
    beside it."""
    name = state["sharded"]
    if not is_plain(name):
        raise UserError(
            f"{path}: damaged, {str(name)[:80]!r} is no folder beside it; give another checkpoint"
        )
    directory = Path(path).parent / name
    if not directory.is_dir():
        raise UserError(
            f"{directory}: the tensors of {path} are gone; a sharded checkpoint is the file and "
            "this directory: copy both, or give another checkpoint"
        )
    return directory


def files_of(path: Path, state: dict) -> dict[str, list[int]]:
    """Size and CRC-32 of each file of the directory; `UserError` if `path` does not tell them."""
    files = state.get("sharded_files")
    if (
        not isinstance(files, dict)
        or _CONTENTS not in files
        or not all(is_plain(name) for name in files)
        or not all(isinstance(v, list) and [*map(type, v)] == [int, int] for v in files.values())
    ):
        raise UserError(
            f"{path}: damaged, it does not tell the files of its directory and their checksums; "
            "give another checkpoint"
        )
    return files


def is_plain(name) -> bool:
    """Whether something is the name of a file or folder, without a way to elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {*"/\\\0"} & {*name}


def named_by(path: Path) -> str | None:
    """Name of the directory that a checkpoint file refers to; None if the checkpoint is whole.

    Raises what torch does for damaged files, ValueError for a name of what is not beside it.
    """
    # mapped: the tensors are not read
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    name = state.get("sharded") if isinstance(state, dict) else None
    if not (name is None or is_plain(name)):
        raise ValueError(f"{str(name)[:80]!r} is no folder beside it")
    return name


def require_intact(directory: Path, files: dict[str, list[int]]) -> None:
    """Raise `UserError` unless `files` have the size and CRC-32 that they were written with."""
    for name, (size, checksum) in files.items():
        reason = None
        try:
            found = sum_of(directory / name)
            if found[0] != size:
                reason = f"{found[0]:,} bytes, {size:,} were written"
            elif found[1] != checksum:
                reason = "damaged, its checksum is another one"
        except OSError as e:
            reason = e.strerror
        if reason is not None:
            raise UserError(f"{directory / name}: {reason}; give another checkpoint")


def sum_of(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = checksum = 0
    for block in blocks(path):
        size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def put_aside(state: dict) -> tuple[dict, dict[str, Tensor]]:
    """The state with names in place of sharded tensors, and these tensors by name."""
    shards = {key: value for key, value in leaves(state).items() if is_sharded(value)}
    return map_leaves(lambda v, key: _MARK + key if key in shards else v, state), shards


def put_back(state: dict, tensors: dict[str, Tensor]) -> dict:
    """The inverse of `put_aside`."""

    def fetch(value, key: str):
        return tensors[key] if isinstance(value, str) and value == _MARK + key else value

    rest = {k: v for k, v in state.items() if k not in ("sharded", "sharded_files")}
    return map_leaves(fetch, rest)


def leaves(value) -> dict:
    """What is no dict, list or tuple in nested ones of these, by path: ``optimizer/0/state``."""
    found = {}
    map_leaves(lambda leaf, key: found.update({key: leaf}), value)
    return found


def map_leaves(function: Callable, value, key: str = ""):
    """The same dicts, lists and tuples with ``function(leaf, path)`` for every leaf."""
    if isinstance(value, dict):
        start = f"{key}/" if key else ""
        return {k: map_leaves(function, v, f"{start}{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, v, f"{key}/{n}") for n, v in enumerate(value))
    return function(value, key)


@contextlib.contextmanager
def errors(directory: Path, done: str, remedy: str = "give another checkpoint"):
    """What torch and the disk raise, as a `UserError`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except UserError:
        raise
    except (Exception, CheckpointException) as e:  # the latter is no Exception
        if isinstance(e, CheckpointException):  # one of the ranks' reasons
            e = next(iter(e.failures.values()))[0]
        raise UserError(
            f"{directory}: the checkpoint could not be {done} ({reason_of(e)}); {remedy}"
        ) from e
