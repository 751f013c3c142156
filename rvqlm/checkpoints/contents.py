"""The table of contents of a directory of shards, ``.metadata``, read without running its code.

torch writes it as a pickle, and would do whatever a pickle says when it reads one. Here a pickle
can make nothing but records that do nothing; what these hold is checked, and torch's own are made
of it.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from rvqlm.errors import UserError, reason_of

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    *((_METADATA, "Metadata"), (_METADATA, "MetadataIndex"), (_METADATA, "StorageMeta")),
    *((_METADATA, "TensorStorageMetadata"), (_METADATA, "TensorProperties")),
    *((_METADATA, "ChunkStorageMetadata"), (_METADATA, "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", "_StorageInfo"),),
    *(("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")),
    ("pathlib._local", "PosixPath"),
}


@dataclass(frozen=True)
class Place:
    """Where a chunk of a tensor lies, in the words of torch's reader."""

    relative_path: str
    offset: int
    """bytes from the start of the file"""
    length: int
    """bytes"""
    transform_descriptors: None = None


def read_contents(path: Path, files: dict[str, list[int]]) -> Metadata:
    """What the table of contents `path` tells of its directory.

    :param files: size and checksum of each file there; no other is ever read.
    :raises UserError: it is damaged, or tells of other files or of more than these can hold.
    """
    try:
        with open(path, "rb") as file:
            root = _Unpickler(file).load()
        storage = {_index(i): _place(p, files) for i, p in root.fields["storage_data"].items()}
        tensors = root.fields["state_dict_metadata"].items()
        return Metadata({_text(n): _tensor(n, t, storage) for n, t in tensors}, None, storage)
    except (OSError, MemoryError):
        raise
    except Exception as e:  # whatever a pickle can be wrong in
        raise UserError(
            f"{path}: damaged, or not the contents of a checkpoint ({reason_of(e)}); give another "
            "checkpoint"
        ) from None


class _Record:
    """What stands for an object of a class that the format knows."""

    fields: Any = None

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.fields = state


class _Unpickler(pickle._Unpickler):
    """In Python, whose table of what was read is not as long as the file says."""

    def find_class(self, module: str, name: str) -> Any:
        found = vars(torch).get(name) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) not in _RECORDS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place there")
        return type(name, (_Record,), {})  # a new one: a pickle may change it


def _need(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(what)


def _text(value: Any) -> str:
    _need(isinstance(value, str), "a name that is no text")
    return value


def _number(value: Any) -> int:
    _need(type(value) is int and 0 <= value < 2**63, "a size that is no number")
    return value


def _numbers(value: Any) -> torch.Size:
    _need(isinstance(value, tuple), "a shape that is none")
    return torch.Size([_number(v) for v in value])


def _index(record: Any) -> MetadataIndex:
    offset = record.fields.get("offset")
    return MetadataIndex(_text(record.fields["fqn"]), None if offset is None else _numbers(offset))


def _place(record: Any, files: dict[str, list[int]]) -> Place:
    fields = record.fields
    name = _text(fields["relative_path"])
    _need(name in files, f"{name[:80]!r} is none of its files")
    _need(not fields.get("transform_descriptors"), "packed in an unknown way")
    place = Place(name, _number(fields["offset"]), _number(fields["length"]))
    _need(place.offset + place.length <= files[name][0], f"more than {name} holds")
    return place


def _tensor(name: str, record: Any, storage: dict[MetadataIndex, Place]) -> TensorStorageMetadata:
    dtype, size = record.fields["properties"].fields[0], _numbers(record.fields["size"])
    _need(isinstance(dtype, torch.dtype), f"{name[:80]!r} has no type")
    chunks = []
    for chunk in record.fields["chunks"]:
        offsets, sizes = _numbers(chunk.fields["offsets"]), _numbers(chunk.fields["sizes"])
        place = storage[MetadataIndex(name, offsets)]
        _need(len(offsets) == len(sizes) == len(size), f"{name[:80]!r} in other dimensions")
        inside = all(o + s <= n for o, s, n in zip(offsets, sizes, size))
        held = prod(sizes) * dtype.itemsize <= place.length
        _need(inside and held, f"{name[:80]!r} is larger than what is stored of it")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
    _need(sum(prod(c.sizes) for c in chunks) == prod(size), f"{name[:80]!r} is not all there")
    return TensorStorageMetadata(TensorProperties(dtype), size, chunks)
