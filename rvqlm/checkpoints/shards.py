"""The directory beside a sharded checkpoint, which holds its tensors.

    EXP/latest.pt                    everything but sharded tensors; names the directory of those
    EXP/latest-00000120.dcp/         one file a rank and a table of contents, written by
                                     torch.distributed.checkpoint

In the file a sharded tensor is represented by the name under which the directory has it, and every
file of the directory by its size and CRC-32. `rvqlm.checkpoints.sharded` is how ranks write and
read both.
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


def read_whole(path: Path, state: dict) -> dict:
    """The state with whole tensors on the CPU, in one process.

    :param path: of the small file; `state` is what it holds.
    :raises UserError: the directory is missing or damaged.
    """
    directory = directory_of(path, state)
    require_intact(directory, state["sharded_files"])

    def make(size: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype)

    with errors(directory, "read"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is meant
        return put_back(state, read_tensors(directory, make, no_dist=True))


def read_tensors(
    directory: Path, make: Callable[[torch.Size, torch.dtype], Tensor], **how
) -> dict[str, Tensor]:
    """All tensors of a directory by name, each read into what `make` returns for its size and type.

    The one place that reads the table of contents, which is a pickle: `require_intact` has found
    it to be the one that was written.

    :param how: further arguments of ``torch.distributed.checkpoint.load``.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(directory)
    known = reader.read_metadata().state_dict_metadata
    found = {k: make(m.size, m.properties.dtype) for k, m in known.items()}
    dcp.load(found, storage_reader=reader, **how)
    return found


def directory_of(path: Path, state: dict) -> Path:
    """Where the tensors of the checkpoint `path` are; `UserError` if they are gone."""
    directory = Path(path).parent / state["sharded"]
    if not directory.is_dir():
        raise UserError(
            f"{directory}: the tensors of {path} are gone; a sharded checkpoint is the file and "
            "this directory: copy both, or give another checkpoint"
        )
    return directory


def named_by(path: Path) -> str | None:
    """Name of the directory that a checkpoint file refers to; None if the checkpoint is whole.

    Raises what torch does for damaged files.
    """
    # mapped: the tensors are not read
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state.get("sharded") if isinstance(state, dict) else None


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
