"""The index: 12 bytes a cut, memory-mapped, and all that training opens of a token directory.

`build_index` streams ``cuts_SPLIT.jsonl.gz`` once and writes ``index_SPLIT.bin``: a JSON header,
then the frames of every cut as one column (uint32) and where it lies as another (uint64: one bit
"ends its recording", 15 bits shard, 48 bits byte offset). `TokenDataset` maps it, checks that it
still belongs to its manifest, shards and codec, and reads codes straight from the shards;
no lhotse object is made at train time and nothing grows with the number of cuts.

Shards are found through the directory (``DIR/codes/NAME``), so a token directory can be moved.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rvqlm.cli import bar
from rvqlm.codec_info import CodecInfo
from rvqlm.data.mapped import has_checksum, map_columns, write_columns
from rvqlm.data.schemas import Cut, IndexHeader, Sidecar, Splits
from rvqlm.data.store import (
    DTYPES,
    STORAGE_TYPE,
    Key,
    Shard,
    hash64,
    name_bytes,
    truncated_shard,
)
from rvqlm.errors import UserError, reason_of
from rvqlm.files import read_json, read_jsonl, read_lines, sha256_of
from rvqlm.remote.session import fetch, localize

MAGIC = b"RVQIDX01"
OFFSET_BITS, SHARD_BITS = 48, 15
ENDS = 1 << (OFFSET_BITS + SHARD_BITS)
_NEEDED = (
    *("storage_path", "storage_key", "num_frames", "num_features"),
    *("frame_shift", "sampling_rate", "start"),
)
_BLOCK = 65536  # cuts whose lengths and places go into the fingerprint together
_IN_MEMORY = 1 << 24  # bytes of a column while it is made
_HASHES = 1 << 23  # of ids, that are compared with each other at a time


def manifest_path(manifest_dir: str | os.PathLike, split: str) -> Path:
    return Path(manifest_dir) / f"cuts_{split}.jsonl.gz"


def index_path(manifest_dir: str | os.PathLike, split: str) -> Path:
    return Path(manifest_dir) / f"index_{split}.bin"


def splits_of(manifest_dir: str | os.PathLike) -> list[str]:
    """Names of the splits of a directory, train, valid and test first."""
    names = {p.name[5:-9] for p in Path(manifest_dir).glob("cuts_*.jsonl.gz")}
    usual = [name for name in ("train", "valid", "test") if name in names]
    return usual + sorted(names - set(usual))


def find_splits(manifest_dir: str | os.PathLike, wanted: Sequence[str] = ()) -> list[str]:
    """`wanted`, each once, or all splits of a token directory; `UserError` where there is none."""
    read_sidecar(manifest_dir)
    splits = list(dict.fromkeys(wanted)) or splits_of(manifest_dir)
    if not splits:
        raise UserError(f"no cuts_SPLIT.jsonl.gz in {manifest_dir}; run rvqlm split first")
    return splits


def require_split(directory: Path, split: str) -> None:
    """Raise `UserError` unless the directory has a split of this name."""
    there = splits_of(directory)
    if split not in there and (directory / "tokens.json").exists():
        flag = f" with --{split} above 0" if split in ("valid", "test") else ""
        others = f" (there are {', '.join(there)})" if there else ""
        raise UserError(
            f"{directory} has no split {split!r}{others}; run rvqlm split{flag} and rvqlm index"
        )


def read_sidecar(manifest_dir: str | os.PathLike) -> dict:
    """``tokens.json`` of a token directory (`rvqlm.data.schemas.Sidecar`)."""

    path = Path(manifest_dir) / "tokens.json"
    return read_json(path, "run rvqlm tokenize", "not a token directory", type=Sidecar)


def manifest_lines(path: str | os.PathLike) -> Iterator[bytes]:
    """The lines of a JSONL manifest (.gz or plain) that are not empty, one at a time."""
    return read_lines(path, f"manifest {path}", "run rvqlm tokenize and rvqlm split")


def read_manifest(path: str | os.PathLike, schema: Any = Cut) -> Iterator[dict]:
    """The cuts of a JSONL manifest as dictionaries, one at a time.

    :param schema: that every line fits.
    """
    return read_jsonl(path, f"manifest {path}", "run rvqlm tokenize and rvqlm split", schema)


def locate(cut: dict, info: CodecInfo, where: str = "manifest") -> tuple[str, Key, bool]:
    """Shard path, key and "ends its recording" of a token cut (a dictionary of its manifest).

    Windows that lhotse cut out of a stored array are resolved to the frames they cover. Raises
    `UserError` for cuts without tokens, of another codec's shape, or off the token clock.
    """
    name = f"{where}: cut {cut.get('id')!r}"
    features = cut.get("features")
    if cut.get("type") != "MonoCut" or not features:
        raise UserError(f"{name} has no tokens ({cut.get('type')}); give the token cuts")
    if features.get("storage_type") != STORAGE_TYPE:
        raise UserError(
            f"{name} is stored as {features.get('storage_type')!r}, not {STORAGE_TYPE!r}; "
            "run rvqlm tokenize"
        )
    if absent := [k for k in _NEEDED if features.get(k) is None]:
        raise UserError(f"{name}: incomplete, no {', '.join(absent)} of its features")
    if absent := [k for k in ("start", "duration") if k not in cut]:
        raise UserError(f"{name}: incomplete, no {', '.join(absent)}")
    key = Key.parse(features["storage_key"])
    if (key.frames, key.codebooks) != (features["num_frames"], features["num_features"]):
        raise UserError(
            f"{name} has {features['num_frames']} x {features['num_features']} codes, its storage "
            f"key {features['storage_key']} says {key.frames} x {key.codebooks}; tokenize it again"
        )
    if key.offset % key.stride:
        raise UserError(
            f"{name} begins within a frame of its shard (storage key {key}); tokenize it again"
        )
    hop = features["frame_shift"] * features["sampling_rate"]
    if (
        key.codebooks != info.num_codebooks
        or features["sampling_rate"] != info.sampling_rate
        or abs(hop - info.hop) > 1e-6
    ):
        raise UserError(
            f"{name} has {key.codebooks} codebooks at {features['sampling_rate']} Hz, hop "
            f"{hop:g}; codec {info.name} has {info.num_codebooks} at {info.sampling_rate} Hz, "
            f"hop {info.hop}; tokenize it with that codec"
        )
    start = (cut["start"] - features["start"]) * info.sampling_rate / info.hop
    frames = cut["duration"] * info.sampling_rate / info.hop
    first, count = round(start), round(frames)
    if max(abs(start - first), abs(frames - count)) > 1e-3 or not (
        0 <= first < first + count <= key.frames
    ):
        raise UserError(
            f"{name} covers frames {start:g}..{start + frames:g} of {key.frames}: not whole "
            "frames inside its tokens; cut windows in whole frames"
        )
    ends = first + count == key.frames and (cut.get("custom") or {}).get("ends_recording", True)
    return (
        features["storage_path"],
        Key(key.offset + first * key.stride, count, key.codebooks, key.dtype),
        bool(ends),
    )


def build_index(manifest_dir: str | os.PathLike, split: str) -> Path:
    """Write ``index_SPLIT.bin`` for ``cuts_SPLIT.jsonl.gz``; returns its path.

    Takes some 50 bytes of memory a cut, up to eight million cuts, and no more beyond.
    Raises `UserError` for a missing or damaged manifest, for cuts of another codec or off the
    token clock or outside their shard, for two of one id, and for a split of an older
    ``cuts.jsonl.gz``.
    """
    directory = Path(manifest_dir)
    require_current_split(directory)
    header, columns = index_of(directory, split)
    write_columns(index_path(directory, split), MAGIC, header, columns)
    return index_path(directory, split)


class _Column:
    """Numbers that are kept on the disk once they are many."""

    def __init__(self, directory: Path, typecode: str, dtype: str):
        place = directory if os.access(directory, os.W_OK) else None
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=place)  # noqa: SIM115
        self.block, self.dtype = array(typecode), dtype

    def flush(self) -> bytes:
        """Put the numbers since the last time away; returns them."""
        data = np.array(self.block, self.dtype).tobytes()
        self._file.write(data)
        self.block = array(self.block.typecode)
        return data

    def blocks(self) -> Iterator[bytes]:
        """All that was put away."""
        self._file.seek(0)
        while data := self._file.read(8 * _BLOCK):
            yield data


def index_of(directory: Path, split: str) -> tuple[dict, Iterator[bytes]]:
    """Header and columns of an index, from the manifest; raises `UserError` like `build_index`."""
    manifest, sidecar = manifest_path(directory, split), read_sidecar(directory)
    info = CodecInfo.from_dict(sidecar["codec"])
    digest = hashlib.sha256(json.dumps(info.to_dict(), sort_keys=True).encode())
    shards: dict[str, int] = {}  # file name -> number
    ends_at: dict[int, int] = {}  # bytes each shard must have
    frames, places = _Column(directory, "I", "<u4"), _Column(directory, "Q", "<u8")
    names = _Column(directory, "Q", "<u8")
    count = total = 0
    dtype = None

    def flush() -> None:
        digest.update(frames.flush())
        digest.update(places.flush())
        names.flush()

    for cut in bar(read_manifest(manifest), split):
        path, key, ends = locate(cut, info, str(manifest))
        dtype = dtype or key.dtype
        if key.dtype != dtype:
            raise UserError(f"{manifest}: tokens of types {dtype} and {key.dtype} are mixed")
        shard = shards.setdefault(path, len(shards))
        ends_at[shard] = max(ends_at.get(shard, 0), key.end)
        if key.frames >= 1 << 32 or key.offset >> OFFSET_BITS or shard >> SHARD_BITS:
            raise UserError(f"{manifest}: cut {cut['id']!r} is too large for the index")
        frames.block.append(key.frames)
        places.block.append(bool(ends) * ENDS | shard << OFFSET_BITS | key.offset)
        names.block.append(hash64(cut["id"]))
        digest.update(name_bytes(cut["id"]) + b"\n")
        count, total = count + 1, total + key.frames
        if count % _BLOCK == 0:
            flush()
    flush()
    if count == 0:
        raise UserError(f"{manifest} has no cuts; tokenize some audio, or change the split")
    _require_apart(manifest, names, count)
    listed = [{"path": f"codes/{Path(p).name}", "bytes": ends_at[n]} for p, n in shards.items()]
    if len({s["path"] for s in listed}) != len(listed):
        raise UserError(f"{manifest}: two shards of one name in different folders: {[*shards]}")
    for shard in listed:
        _open_shard(directory, shard)
    digest.update(json.dumps([s["path"] for s in listed]).encode())
    header = {
        "manifest": file_stamp(manifest),
        "tokens": sidecar["shards"],
        "codec": info.to_dict(),
        "dtype": dtype,
        "num_cuts": count,
        "num_frames": total,
        "hours": total * info.hop / info.sampling_rate / 3600,
        "shards": listed,
        "fingerprint": digest.hexdigest()[:16],
    }
    aligned = bytes(-4 * count % 8)
    return header, itertools.chain(frames.blocks(), [aligned], places.blocks())


def _require_apart(manifest: Path, names: _Column, count: int) -> None:
    """Raise `UserError` where two cuts have one id, given the hashes of all; those that end
    alike at a time, so that they fit into memory."""
    passes = 1 << max(0, (count // _HASHES).bit_length())
    twice, seen = set(), set()
    for turn in range(passes):
        some = [np.frombuffer(data, "<u8") for data in names.blocks()]
        if passes > 1:
            some = [data[data & np.uint64(passes - 1) == turn] for data in some]
        values, times = np.unique(np.concatenate(some), return_counts=True)
        twice |= set(values[times > 1].tolist())
    for cut in read_manifest(manifest) if twice else ():
        if hash64(cut["id"]) in twice:
            if cut["id"] in seen:
                raise UserError(
                    f"{manifest}: two cuts have the id {cut['id']!r}; leave one of them out, or "
                    "tokenize again"
                )
            seen.add(cut["id"])


def file_stamp(path: Path) -> dict:
    """What is recorded of a file to know it again: name, size, modification time, SHA-256."""
    stat = path.stat()
    return {
        "name": path.name,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": sha256_of(path),
    }


def same_file(path: Path, stamp: dict) -> bool:
    """Whether the file is still the one that `stamp` was made of; usually without reading it."""
    if not path.exists():
        return False
    stat = path.stat()
    if stat.st_size != stamp["size"]:
        return False
    # a copied directory has new times but the same bytes
    return stat.st_mtime_ns == stamp["mtime_ns"] or sha256_of(path) == stamp["sha256"]


def read_splits(directory: Path) -> dict:
    """``splits.json`` (`rvqlm.data.schemas.Splits`); empty where `rvqlm split` did not run."""
    path = directory / "splits.json"
    again = f"run rvqlm split --manifest-dir {directory} again"
    return read_json(path, again, type=Splits) if path.exists() else {}


def require_current_split(directory: Path) -> None:
    """Cuts of an older tokenization would point at other codes, silently: refuse them."""
    if not (record := read_splits(directory)):
        return
    again, stamp = f"run rvqlm split --manifest-dir {directory}", record["source"]
    if stamp is None:
        raise UserError(f"splitting {directory} was interrupted; {again}")
    if not same_file(directory / stamp["name"], stamp):
        raise UserError(f"{directory / stamp['name']} has changed since it was split; {again}")


def _open_shard(directory: Path, entry: dict) -> Shard:
    shard = Shard(directory / entry["path"])
    if len(shard) < entry["bytes"]:
        raise truncated_shard(shard.path, len(shard), entry["bytes"])
    return shard


def _require_whole(header: dict, columns: np.ndarray) -> None:
    """Raise `ValueError` for columns without a checksum that do not go with their header."""
    count = header["num_cuts"]
    frames, places = columns[: 4 * count].view("<u4"), columns[-8 * count :].view("<u8")
    stride = Key(0, 0, header["codec"]["num_codebooks"], header["dtype"]).stride
    offsets = (places & np.uint64((1 << OFFSET_BITS) - 1)).astype(np.int64)
    shards = (places >> np.uint64(OFFSET_BITS) & np.uint64((1 << SHARD_BITS) - 1)).astype(np.int64)
    sizes = np.array([shard["bytes"] for shard in header["shards"]], np.int64)
    if shards.max() >= len(sizes) or int(frames.sum(dtype=np.int64)) != header["num_frames"]:
        raise ValueError("columns of another header")
    if (offsets + frames.astype(np.int64) * stride > sizes[shards]).any():
        raise ValueError("places outside the shards")


class TokenDataset:
    """Random access to the codes of one split.

    >>> ds = TokenDataset.open("data/tokens", "train")  # doctest: +SKIP
    >>> ds.read(3, start=100, num=50).shape             # doctest: +SKIP
    (50, 8)

    Attributes
    ----------
    info: `CodecInfo` of the tokens; its num_codebooks are the levels served.
    frames: (N,) uint32, frames of every cut, memory-mapped.
    fingerprint: 16 hex digits over ids, lengths, places and codec: equal for equal data.
    hours, dtype: of audio; numpy dtype of the stored codes.
    parts: (1,) first row of the data sets within: this is one (see `rvqlm.data.mixed`).
    """

    parts = np.zeros(1, np.int64)

    def __init__(self, directory: Path, split: str, header: dict, columns: np.ndarray):
        self.directory, self.split, self.header = directory, split, header
        self.info = CodecInfo.from_dict(header["codec"])
        self._stored_levels = self.info.num_codebooks
        self.fingerprint: str = header["fingerprint"]
        self.hours: float = header["hours"]
        self.num_frames: int = header["num_frames"]
        self.dtype = DTYPES[header["dtype"]]
        count = header["num_cuts"]
        self._columns = columns
        self.frames = columns[: 4 * count].view("<u4")
        self._places = columns[-8 * count :].view("<u8")
        fetch([directory / entry["path"] for entry in header["shards"]])
        self._shards = [_open_shard(directory, entry) for entry in header["shards"]]

    @classmethod
    def open(
        cls, manifest_dir: str | os.PathLike, split: str, num_codebooks: int | None = None
    ) -> TokenDataset:
        """Map ``index_SPLIT.bin``; with `num_codebooks`, serve only that many levels.

        Raises `UserError` when it is missing, damaged, older than its manifest, of another codec
        than the directory's, or when a shard is missing or too short.
        """
        directory = Path(localize(str(manifest_dir)))
        path = index_path(directory, split)
        again = f"run rvqlm index --manifest-dir {directory}"
        try:
            header, columns = map_columns(path, MAGIC, IndexHeader)
            count = header["num_cuts"]
            if len(columns) != 4 * count + (-4 * count % 8) + 8 * count:
                raise ValueError("wrong size")
            if not has_checksum(header):
                _require_whole(header, columns)
        except FileNotFoundError:
            require_split(directory, split)
            raise UserError(f"index {path} not found; {again}") from None
        except (ValueError, OSError) as e:
            raise UserError(f"index {path} is damaged ({reason_of(e)}); {again}") from None
        manifest = directory / header["manifest"]["name"]
        if not manifest.exists():
            raise UserError(f"manifest {manifest} of index {path} is missing; run rvqlm split")
        if not same_file(manifest, header["manifest"]):
            raise UserError(f"index {path} is older than its manifest {manifest}; {again}")
        sidecar = read_sidecar(directory)
        CodecInfo.from_dict(header["codec"]).require_same(
            CodecInfo.from_dict(sidecar["codec"]), str(path), str(directory / "tokens.json")
        )
        if header["tokens"] != sidecar["shards"]:
            raise UserError(
                f"index {path} is older than the tokens of {directory / 'tokens.json'}; run rvqlm "
                f"split and rvqlm index with --manifest-dir {directory}"
            )
        dataset = cls(directory, split, header, columns)
        return dataset if num_codebooks is None else dataset.first_levels(num_codebooks)

    def first_levels(self, num_codebooks: int) -> TokenDataset:
        """The same cuts with only the first levels of their codes; shares maps and fingerprint.

        Raises `UserError` for more levels than there are.
        """
        if not 1 <= num_codebooks <= self.info.num_codebooks:
            raise UserError(
                f"--num-quantizers {num_codebooks}: the tokens in {self.directory} have "
                f"{self.info.num_codebooks} levels; choose from 1 to {self.info.num_codebooks}"
            )
        fewer = copy.copy(self)
        fewer.info = replace(self.info, num_codebooks=num_codebooks)
        return fewer

    def __len__(self) -> int:
        return len(self.frames)

    def view(self, row: int, start: int = 0, num: int | None = None) -> np.ndarray:
        """Read-only view of the shard: frames [start, start + num) of a cut, (num, K)."""
        frames = int(self.frames[row])
        num = frames - start if num is None else num
        if start < 0 or num < 0 or start + num > frames:
            raise IndexError(f"frames {start}..{start + num} of cut {row} with {frames}")
        place = int(self._places[row])
        offset = place & ((1 << OFFSET_BITS) - 1)
        shard = self._shards[place >> OFFSET_BITS & ((1 << SHARD_BITS) - 1)]
        k = self._stored_levels
        codes = shard.view(offset + start * k * self.dtype.itemsize, num, k, self.dtype)
        return codes[:, : self.info.num_codebooks]

    def read(self, row: int, start: int = 0, num: int | None = None) -> np.ndarray:
        """Frames [start, start + num) of a cut, (num, K), to keep; `num` None reads to its end."""
        return self.view(row, start, num).astype(self.dtype.newbyteorder("="))

    def ends(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: the cut ends where its recording does."""
        return self._places[rows] >= ENDS

    def holds(self, columns: Iterable[bytes]) -> bool:
        """Whether the columns of the index are these (`index_of`)."""
        at = 0
        for block in columns:
            if self._columns[at : at + len(block)].tobytes() != block:
                return False
            at += len(block)
        return at == len(self._columns)

    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) uint64 twice: where each cut begins and ends over the bytes of all shards. Windows
        of one array that share frames share bytes."""
        begin = self._places & np.uint64(ENDS - 1)
        stride = self._stored_levels * self.dtype.itemsize
        return begin, begin + self.frames.astype(np.uint64) * np.uint64(stride)

    def cuts(self) -> Iterator[dict]:
        """All cuts as dictionaries, in row order, streamed from the manifest."""
        return read_manifest(self.directory / self.header["manifest"]["name"])

    def ids(self) -> Iterator[str]:
        """Ids of all cuts in row order, streamed from the manifest."""
        for cut in self.cuts():
            yield cut["id"]

    def id_of(self, row: int) -> str:
        """Id of one cut; reads the manifest up to it, so meant for messages and reports."""
        return next(name for n, name in enumerate(self.ids()) if n == row)
