"""One shard of a token directory: encode a range of items, killable at any moment.

Codes go to ``codes/shard-NNNNN.rvq``; after each item one line goes to ``parts/shard-NNNNN.jsonl``
with all that the final manifests need. An item is done when its line is there and the codes it
names are in the shard. A new start truncates both files to the last done item and goes on with the
next, so that the result does not depend on how often, or where, work was interrupted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse.cut import Cut

from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import encode_long
from rvqlm.data.audio import BadAudio, Mono
from rvqlm.data.store import Key, RvqMmapWriter, code_dtype, shard_checksum, token_cut
from rvqlm.data.token_inputs import Item
from rvqlm.errors import UserError

LOCK_SECONDS = 10.0
"""How long to wait for another process's lock: one that was killed a moment ago frees it soon."""


@dataclass
class Progress:
    """What a shard's worker has done in this run; passed to its `report` callback."""

    resumed: int = 0
    """items that earlier runs had done"""
    items: int = 0
    skipped: int = 0
    seconds: float = 0.0
    """of audio encoded"""
    encode_seconds: float = 0.0
    """of wall time spent in the codec"""
    wall_seconds: float = 0.0
    """of wall time spent in all"""


def shard_path(out_dir: str | os.PathLike, shard: int) -> Path:
    return Path(out_dir) / "codes" / f"shard-{shard:05d}.rvq"


def log_path(out_dir: str | os.PathLike, shard: int) -> Path:
    return Path(out_dir) / "parts" / f"shard-{shard:05d}.jsonl"


def done_path(out_dir: str | os.PathLike, shard: int) -> Path:
    """Written when all items of the shard are done: {"items", "bytes", "sha256"}."""
    return log_path(out_dir, shard).with_suffix(".done")


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that it is there completely or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def disk_error(error: OSError, path: str | os.PathLike) -> UserError | OSError:
    """`UserError` for a full disk while writing `path`, else the error itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return UserError(
        f"{path}: {os.strerror(error.errno)}; free some space and run the same command again, "
        "finished items are kept"
    )


class ShardLog:
    """The line-per-item log of one shard, locked against a second process.

    Opening it drops a torn last line, and lines whose codes did not reach the shard (a power
    failure can do that; a kill cannot, codes are written first).
    """

    def __init__(self, out_dir: str | os.PathLike, shard: int):
        self.path = log_path(out_dir, shard)
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115
        self._lock()
        codes = shard_path(out_dir, shard)
        available = codes.stat().st_size if codes.exists() else 0
        self.items, self.codes_end, self._end = 0, 0, 0
        with open(self.path, "rb") as lines:
            self._recover(lines, available)
        self._file.truncate(self._end)

    def _recover(self, lines: Iterable[bytes], available: int) -> None:
        """Count the lines that are whole and whose codes lie within `available` bytes."""
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                end = codes_end(json.loads(line))
            except (ValueError, KeyError):
                break
            if end is not None and end > available:
                break
            self.items += 1
            self._end += len(line)
            self.codes_end = self.codes_end if end is None else end

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise UserError(
                        f"{self.path}: another rvqlm tokenize is writing this folder; wait for it "
                        "or stop it"
                    ) from None
                time.sleep(0.05)

    def append(self, line: dict) -> None:
        """Add an item; on an error (a full disk) the log is as it was before."""
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        view, written = memoryview(data), 0
        try:
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)
        self.items += 1

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ShardLog:
        return self

    def __exit__(self, *args) -> None:
        self.close()


def codes_end(line: dict) -> int | None:
    """Bytes of the shard that a line of the log needs; None for a skipped item."""
    if "skip" in line:
        return None
    return Key.parse(line["cut"]["features"]["storage_key"]).end


def encode_shard(
    codec: Codec,
    items: Callable[[int], Iterable[Item]],
    num_items: int,
    out_dir: str | os.PathLike,
    shard: int,
    chunk_seconds: float = 5.0,
    mono: Mono = "average",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Encode the items of one shard that are not done yet and mark it done.

    Args:
        codec: on the device to work on.
        items: called with n, yields the shard's items from the n-th on.
        num_items: how many there are in all.
        out_dir: the token directory, with folders ``codes`` and ``parts``.
        shard: number of the shard.
        chunk_seconds: see `encode_long`.
        mono: what to do with several channels where the codec takes one.
        report: called with the running totals of this call after every item.

    Raises `UserError` for a full disk and for audio too long for the memory; items that are
    merely bad are skipped and logged with the reason.
    """
    info, progress = codec.info, Progress()
    dtype, path = code_dtype(info.codebook_size), shard_path(out_dir, shard)
    try:
        with ShardLog(out_dir, shard) as log:
            progress.resumed = log.items
            with RvqMmapWriter(path, "a", dtype, valid_bytes=log.codes_end) as writer:
                for item in items(log.items):
                    line, seconds, spent = _encode_item(
                        codec, item, writer, chunk_seconds, mono, dtype
                    )
                    log.append(line)
                    progress.items += 1
                    progress.skipped += "skip" in line
                    progress.seconds += seconds
                    progress.encode_seconds += spent
                    report(progress)
                writer.sync()
                size = writer.num_bytes
            log.sync()
            if log.items != num_items:
                raise UserError(
                    f"{log.path}: {log.items} items where {num_items} were listed; the input "
                    "changed while it was read: remove the output folder and run again"
                )
            done = {"items": num_items, "bytes": size, "sha256": shard_checksum(path)}
            write_atomic(done_path(out_dir, shard), json.dumps(done))
    except OSError as e:
        raise disk_error(e, path) from None
    return progress


def _encode_item(
    codec: Codec,
    item: Item,
    writer: RvqMmapWriter,
    chunk_seconds: float,
    mono: Mono,
    dtype: str,
) -> tuple[dict, float, float]:
    """Encode one item and store its codes; returns (log line, seconds of audio, seconds spent)."""
    info = codec.info
    try:
        audio, cut = item.load(info.sampling_rate, info.channels, mono)
    except BadAudio as e:
        return {"skip": {"id": item.id, "path": item.path, "reason": e.reason}}, 0.0, 0.0
    seconds = audio.shape[1] / info.sampling_rate
    began = time.perf_counter()
    try:
        codes = encode_long(codec, torch.from_numpy(audio), chunk_seconds)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as e:
        if type(e) is RuntimeError and "allocate memory" not in str(e):
            raise
        whole = "" if codec.context_frames is not None else ", or split the file (it goes in whole)"
        raise UserError(
            f"{item.path}: not enough memory to encode {seconds:.0f} s of audio with "
            f"{info.name}; use fewer --jobs or a smaller --chunk-seconds{whole}"
        ) from None
    spent = time.perf_counter() - began
    key = writer.write(item.id, codes.numpy().astype(dtype, copy=False))
    token = _token_cut(cut, item.id, writer.storage_path, key, info, audio.shape[1])
    return {"cut": token.to_dict(), "audio": cut.to_dict()}, seconds, spent


def _token_cut(cut: Cut, id: str, path: str, key: str, info, num_samples: int):
    """The cut of codes that mirrors an audio cut: id, supervisions and plain custom fields."""
    recording, custom = cut.recording, cut.custom or {}
    return token_cut(
        id,
        path,
        key,
        info,
        recording_id=recording.id,
        channel=0 if isinstance(cut.channel, list) else cut.channel,  # several were averaged
        supervisions=cut.supervisions,
        num_samples=num_samples,
        # half a sample: seconds of a manifest are rounded
        ends_recording=cut.end > recording.duration - 0.5 / recording.sampling_rate,
        custom={k: v for k, v in custom.items() if isinstance(v, (str, int, float, bool))},
    )
