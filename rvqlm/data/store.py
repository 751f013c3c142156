"""Token shards: flat files of integer codes that lhotse reads and writes as ``rvq_mmap``.

A shard is the arrays of many cuts, one after another, without headers: little-endian integers,
time first. What is known of an array is its key, ``offset,T,K,dtype`` (offset in bytes), which
lhotse keeps in ``cut.features.storage_key``; the shard's path is ``storage_path``. Shards only
ever grow, so a killed writer leaves at worst a torn tail, which the next one cuts off. Importing
this module registers both ends with lhotse; it has to be imported in every process that reads
tokens.

>>> import tempfile
>>> info = CodecInfo("demo", "0" * 16, 44100, 512, 2, 1024)
>>> path = tempfile.mkdtemp() + "/shard-00000.rvq"
>>> with RvqMmapWriter(path) as writer:
...     key = writer.write("a", np.arange(6, dtype=np.int16).reshape(3, 2))
>>> key
'0,3,2,int16'
>>> token_cut("a", path, key, info, recording_id="rec").load_features().tolist()
[[0, 1], [2, 3], [4, 5]]
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np
from lhotse import Features, MonoCut, SupervisionSegment
from lhotse.features.io import (
    FeaturesReader,
    FeaturesWriter,
    register_reader,
    register_writer,
)

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError, reason_of
from rvqlm.files import sha256_of
from rvqlm.locks import SETTLE_SECONDS, try_lock
from rvqlm.remote.session import fetch, localize, named

STORAGE_TYPE = "rvq_mmap"
MAPPED_BYTES = 1 << 23
"""Of a longer array only what is looked at is read."""
MOST_OPEN = 256
"""Files: many systems allow a process 1,024."""
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int16", "uint16", "uint32")}

_KEY = re.compile(r"([0-9]{1,18}),([0-9]{1,18}),([0-9]{1,9}),(\w+)", re.ASCII)


def code_dtype(codebook_size: int) -> str:
    """Name of the integer type that tokens of a codebook of this size are stored in."""
    if codebook_size <= 32767:  # codes and the pad value -1 fit: batches need no wider type
        return "int16"
    return "uint16" if codebook_size <= 65536 else "uint32"


def name_bytes(name: str) -> bytes:
    """UTF-8 of a name; of a file name that is none, its bytes."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, from JSON
        return name.encode(errors="surrogatepass")


def hash64(name: str) -> int:
    """64 bits of a name, for sets and tables of names of millions of cuts."""
    return int.from_bytes(hashlib.blake2b(name_bytes(name), digest_size=8).digest(), "big")


class Key(NamedTuple):
    """Where an array lies in its shard and what it looks like."""

    offset: int
    """bytes from the start of the shard"""
    frames: int
    codebooks: int
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Key:
        found = _KEY.fullmatch(text) if isinstance(text, str) else None
        if found is None or found[4] not in DTYPES:
            raise UserError(f"not a key of a token shard: {str(text)[:60]!r}")
        offset, frames, codebooks, dtype = found.groups()
        return cls(int(offset), int(frames), int(codebooks), dtype)

    @property
    def stride(self) -> int:
        """Bytes of a frame."""
        return self.codebooks * DTYPES[self.dtype].itemsize

    @property
    def end(self) -> int:
        """Bytes of the shard that must exist for the array to be readable."""
        return self.offset + self.frames * self.stride

    def __str__(self) -> str:
        return f"{self.offset},{self.frames},{self.codebooks},{self.dtype}"


def truncated_shard(path: str | os.PathLike, size: int, needed: int) -> UserError:
    """The error for a shard that holds fewer bytes than something says it should."""
    return UserError(
        f"token shard {path} is truncated: {size} bytes, {needed} needed; "
        "delete it with its manifest and tokenize again, or restore it from a copy"
    )


# ------------------------------------------------------------------------------------ writing


@register_writer
class RvqMmapWriter(FeaturesWriter):
    """Appends (T, K) integer arrays to one shard.

    Each array reaches the operating system before `write` returns: a killed process loses
    nothing that it had a key for. `sync` makes that hold for a power failure too. One writer per
    shard; a second one, in any process, is refused.

    Parameters
    ----------
    storage_path: the shard file; its folder is made if missing.
    mode: "w" starts an empty shard, "a" appends to what is there.
    dtype: store everything as this type (a value that does not fit is an error); None keeps the
        type of each array, int64 becoming int16 if its values fit and uint32 if not.
    valid_bytes: with mode "a", cut the shard to this size first: what lies behind the last key
        on record is the torn tail of a killed writer. The largest ``Key.parse(key).end`` of the
        cuts on record is the number to give. A shard that is shorter raises `UserError`.
    """

    name = STORAGE_TYPE

    def __init__(
        self,
        storage_path: str | os.PathLike,
        mode: str = "w",
        dtype: str | None = None,
        valid_bytes: int | None = None,
    ):
        if mode not in ("w", "a") or (dtype is not None and dtype not in DTYPES):
            raise ValueError(f"mode {mode!r} is not w or a, or dtype {dtype!r} not of {[*DTYPES]}")
        if valid_bytes is not None and mode != "a":
            raise ValueError("valid_bytes is for mode 'a'")
        self.path = Path(storage_path)
        self.dtype = dtype
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # not "wb": another writer's shard must survive until we hold the lock
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        # a killed writer's children may hold it for a moment longer
        if try_lock(self._file, patience=SETTLE_SECONDS) is False:
            self._file.close()
            raise UserError(f"token shard {self.path} is being written by another process")
        size = os.fstat(self._file.fileno()).st_size
        keep = 0 if mode == "w" else size if valid_bytes is None else valid_bytes
        if keep > size:
            self._file.close()
            raise truncated_shard(self.path, size, keep)
        self._file.truncate(keep)
        self._offset = keep

    @property
    def storage_path(self) -> str:
        return named(str(self.path))

    @property
    def num_bytes(self) -> int:
        """Size of the shard, all of it arrays with keys (and alignment)."""
        return self._offset

    def write(self, key: str, value: np.ndarray) -> str:
        """Append `value` (T, K); returns its storage key. `key` (lhotse's id) is not used.

        Raises `TypeError` for anything but a 2-D integer array, `ValueError` for values that do
        not fit the type, and `OSError` (a full disk) with the shard cut back to whole arrays.
        """
        value = np.asarray(value)
        if value.ndim != 2 or value.dtype.kind not in "iu":
            raise TypeError(f"expected a (T, K) integer array, got {value.dtype} {value.shape}")
        name = self.dtype or value.dtype.name
        if name not in DTYPES:
            name = "int16" if value.size == 0 or value.max() <= 32767 else "uint32"
        if name != value.dtype.name and value.size:
            limits = np.iinfo(name)
            low, high = int(value.min()), int(value.max())
            if low < limits.min or high > limits.max:
                raise ValueError(f"codes {low}..{high} do not fit {name}")
        array = np.ascontiguousarray(value, dtype=DTYPES[name])
        padding = -self._offset % array.itemsize  # mixed types: keep every array aligned
        try:
            if padding:
                self._append(bytes(padding))
            where = Key(self._offset, array.shape[0], array.shape[1], name)
            self._append(array.reshape(-1).view(np.uint8).data)
        except OSError:
            self._file.truncate(self._offset)
            raise
        return str(where)

    def _append(self, data: bytes | memoryview) -> None:
        view, done = memoryview(data), 0
        while done < len(view):  # a raw write may stop short, at the end of a disk for instance
            done += self._file.write(view[done:])
        self._offset += done

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *args) -> None:
        self.close()


# ------------------------------------------------------------------------------------ reading


class Shard:
    """A shard to read; opens it again when the file has grown or changed.

    Arrays are read, not mapped into memory: with a map of a file that somebody shortens, or of a
    disk that fails, the process would end without a word. Very long ones are mapped all the same,
    for commands that pass them on piece by piece. Of all shards of a process, of which there may
    be thousands, `MOST_OPEN` are open at a time.
    """

    _open: ClassVar[deque[weakref.ref[Shard]]] = deque()

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        self._file: BinaryIO | None = None
        self._size = 0
        self._stamp: tuple[int, int] | None = None  # inode, size
        self.refresh()

    def refresh(self) -> None:
        """Look at the file again; raises `UserError` when it is missing."""
        fetch([self.path])
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            raise UserError(
                f"token shard {self.path} is missing; restore it, or tokenize again "
                "(paths in a manifest are relative to the folder that tokenize ran in)"
            ) from None
        stamp = (stat.st_ino, stat.st_size)
        if stamp == self._stamp:
            return
        self._size, self._stamp, self._file = stat.st_size, stamp, None
        self._opened()

    def _opened(self) -> BinaryIO:
        """The file, which stays open while it is held, whatever other threads open."""
        if (file := self._file) is not None:
            return file
        file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        stat = os.fstat(file.fileno())
        if (stat.st_ino, stat.st_size) != self._stamp:
            raise UserError(f"token shard {self.path} has changed since it was opened; start again")
        self._file = file
        Shard._open.append(weakref.ref(self))
        while len(Shard._open) > MOST_OPEN:
            if (oldest := Shard._open.popleft()()) is not None:
                oldest._file = None
        return file

    def __len__(self) -> int:
        """Size in bytes."""
        return self._size

    def view(self, offset: int, frames: int, codebooks: int, dtype: np.dtype) -> np.ndarray:
        """(frames, codebooks) of the file, read-only; `UserError` past its end."""
        size = frames * codebooks * dtype.itemsize
        if offset + size > self._size:
            raise truncated_shard(self.path, self._size, offset + size)
        found = b""
        try:
            file = self._opened()
            if size > MAPPED_BYTES:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                return np.frombuffer(mapped, dtype, size // dtype.itemsize, offset).reshape(
                    frames, codebooks
                )
            while len(found) < size:
                part = os.pread(file.fileno(), size - len(found), offset + len(found))
                if not part:  # shortened since it was opened
                    raise truncated_shard(self.path, os.fstat(file.fileno()).st_size, offset + size)
                found = part if not found else found + part
        except OSError as e:
            raise UserError(f"token shard {self.path}: {reason_of(e)}") from None
        return np.frombuffer(found, dtype).reshape(frames, codebooks)


_SHARDS: dict[str, Shard] = {}  # lhotse makes a reader per array: files are shared in a process


@register_reader
class RvqMmapReader(FeaturesReader):
    """Reads arrays of one shard; what ``cut.load_features()`` uses."""

    name = STORAGE_TYPE

    def __init__(self, storage_path: str | os.PathLike):
        path = localize(str(storage_path))
        shard = _SHARDS.get(path)
        if shard is None:
            shard = _SHARDS[path] = Shard(path)
        else:
            shard.refresh()
        self.shard = shard

    def read(
        self,
        key: str,
        left_offset_frames: int = 0,
        right_offset_frames: int | None = None,
    ) -> np.ndarray:
        """A copy of frames [left, right) of the array, (T, K), in the type it was stored in."""
        where = Key.parse(key)
        left, right, _ = slice(left_offset_frames, right_offset_frames).indices(where.frames)
        dtype = DTYPES[where.dtype]
        offset = where.offset + left * where.codebooks * dtype.itemsize
        view = self.shard.view(offset, max(0, right - left), where.codebooks, dtype)
        if where.end > len(self.shard):
            raise truncated_shard(self.shard.path, len(self.shard), where.end)
        return view.astype(dtype.newbyteorder("="))


# ----------------------------------------------------------------------------------- integrity


def check_shard(path: str | os.PathLike, num_bytes: int, sha256: str | None = None) -> None:
    """Raise `UserError` unless the shard has this size and, where given, this checksum."""
    size = len(Shard(path))
    if size < num_bytes:
        raise truncated_shard(path, size, num_bytes)
    if size > num_bytes:
        raise UserError(
            f"token shard {path} has {size} bytes, its sidecar says {num_bytes}; "
            "run tokenize again to finish or repair it"
        )
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise UserError(
            f"token shard {path} is corrupted: checksum {found[:12]}, recorded {sha256[:12]}; "
            "delete it with its manifest and tokenize again, or restore it from a copy"
        )


# -------------------------------------------------------------------------------- token clock


def frames_to_seconds(frames: int, info: CodecInfo) -> float:
    """Length of `frames` on the token clock.

    Offsets and durations made by this function (and only those) survive lhotse's rounding: for
    every chain of ``cut.truncate(offset=frames_to_seconds(a), duration=frames_to_seconds(n))``,
    `load_features` gives exactly frames [a, a + n).
    """
    return frames * info.hop / info.sampling_rate


def token_cut(
    id: str,
    storage_path: str | os.PathLike,
    storage_key: str,
    info: CodecInfo,
    recording_id: str,
    channel: int | list[int] = 0,
    supervisions: Sequence[SupervisionSegment] = (),
    num_samples: int | None = None,
    ends_recording: bool = True,
    custom: dict | None = None,
) -> MonoCut:
    """The lhotse cut over a stored array: starts at 0, T * hop / sampling_rate seconds long.

    Raises `UserError` for an array without frames (lhotse has no empty cuts) or with another number
    of codebooks than `info`.

    Parameters
    ----------
    storage_key: what `RvqMmapWriter.write` returned.
    supervisions: relative to the start of the audio cut, as lhotse keeps them; a segment
        that reaches behind the last frame is left as it is.
    num_samples: true samples of the audio at the codec's rate, kept in ``custom`` so that decoded
        audio can be trimmed to it.
    ends_recording: False where the audio cut stops before its recording does; kept in ``custom``
        (only then), and the end of sequence is not learned from such a cut.
    custom: more fields to keep.
    """
    where = Key.parse(storage_key)
    if where.frames == 0:
        raise UserError(f"no frames to make a cut of: recording {recording_id}, key {storage_key}")
    if where.codebooks != info.num_codebooks:
        raise UserError(
            f"{storage_path} [{storage_key}] has {where.codebooks} codebooks, "
            f"codec {info.name} {info.num_codebooks}"
        )
    features = Features(
        type=info.name,
        num_frames=where.frames,
        num_features=where.codebooks,
        frame_shift=info.hop / info.sampling_rate,
        sampling_rate=info.sampling_rate,
        start=0.0,
        duration=frames_to_seconds(where.frames, info),
        storage_type=STORAGE_TYPE,
        storage_path=str(storage_path),
        storage_key=storage_key,
        recording_id=recording_id,
        channels=channel,
    )
    fields = dict(custom or {})
    if num_samples is not None:
        fields["num_samples"] = int(num_samples)
    if not ends_recording:
        fields["ends_recording"] = False
    return MonoCut(
        id=id,
        start=0.0,
        duration=features.duration,
        channel=channel,
        supervisions=list(supervisions),
        features=features,
        custom=fields or None,
    )
