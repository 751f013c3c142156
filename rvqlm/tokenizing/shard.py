"""One shard of a token directory: encode a range of items, killable at any moment.

Codes go to ``codes/shard-NNNNN.rvq``; after each item one line goes to ``parts/shard-NNNNN.jsonl``
with all that the final manifests need. An item is done when its line is there and the codes it
names are in the shard. A new start truncates both files to the last done item and continues with
the next, so that the result does not depend on how often, or where, work was interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse import Recording
from lhotse.utils import fastcopy

from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.source import Source
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.cores import FasterThreads
from rvqlm.data.store import Key, RvqMmapWriter, code_dtype, token_cut
from rvqlm.errors import UserError
from rvqlm.files import fits, sha256_of, write_json
from rvqlm.locks import try_lock
from rvqlm.tokenizing.encode import Done, Encoder
from rvqlm.tokenizing.reading import QUEUED_BLOCKS, ReadAhead
from rvqlm.tokenizing.schemas import LogLine

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
    speeds: dict[str, float] | None = None
    """seconds of audio per second of work for each new item, by id, where that is wanted"""

    def add(self, done: Done) -> None:
        self.items += 1
        self.skipped += done.reason is not None
        self.seconds += done.seconds
        self.encode_seconds += done.encode_seconds
        if self.speeds is not None and done.reason is None:
            self.speeds[done.item.id] = done.seconds / max(1e-9, done.wall_seconds)


def shard_path(out_dir: str | os.PathLike, shard: int) -> Path:
    return Path(out_dir) / "codes" / f"shard-{shard:05d}.rvq"


def log_path(out_dir: str | os.PathLike, shard: int) -> Path:
    return Path(out_dir) / "parts" / f"shard-{shard:05d}.jsonl"


def done_path(out_dir: str | os.PathLike, shard: int) -> Path:
    """Written when all items of the shard are done: {"items", "bytes", "sha256"}."""
    return log_path(out_dir, shard).with_suffix(".done")


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
        self.unfinished_group: tuple[int, int] | None = None
        """(first item, items) of the group that the last item is of, if others are to come"""
        with open(self.path, "rb") as lines:
            self._recover(lines, available)
        self._file.truncate(self._end)

    def _recover(self, lines: Iterable[bytes], available: int) -> None:
        """Count the lines that are whole and whose codes lie within `available` bytes."""
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                fields = fits(json.loads(line), LogLine)
                end = codes_end(fields)
            except (ValueError, KeyError, RecursionError, UserError):
                break
            if end is not None and end > available:
                break
            self.items += 1
            self._end += len(line)
            self.codes_end = self.codes_end if end is None else end
            first, size = fields.get("group") or (self.items - 1, 1)
            self.unfinished_group = None if first + size == self.items else (first, size)

    def _lock(self) -> None:
        if try_lock(self._file, patience=LOCK_SECONDS) is False:
            self._file.close()
            raise UserError(
                f"{self.path}: another rvqlm tokenize is writing this folder; wait for it or stop "
                "it"
            )

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


@dataclass(frozen=True)
class ShardJob:
    """How the shards of a run are made; what is the same for each of them."""

    source: Source
    ranges: list[tuple[int, int]]
    """items of each shard"""
    out_dir: str
    """the token directory, with folders ``codes`` and ``parts``"""
    audio: AudioConfig
    chunk_seconds: float
    batch_size: int
    speeds: bool = False
    """whether reports tell the speed of every item"""

    def encode(
        self,
        shard: int,
        codec: Codec,
        report: Callable[[int, Progress], None],
        threads: FasterThreads | None = None,
    ) -> None:
        """Encode the items of a shard that are not done yet and mark it done.

        report: called with the shard and the running totals of this call after every item.
        threads: chooses their number as the encoding goes on.

        Raises `UserError` for a full disk and for audio too long for the memory; items that are
        merely bad are skipped and logged with the reason.
        """
        first, last = self.ranges[shard]
        info, progress = codec.info, Progress(speeds={} if self.speeds else None)
        dtype, path = code_dtype(info.codebook_size), shard_path(self.out_dir, shard)
        began = time.perf_counter()
        try:
            with ShardLog(self.out_dir, shard) as log:
                progress.resumed = log.items
                with RvqMmapWriter(path, "a", dtype, valid_bytes=log.codes_end) as writer:
                    for done in self._encoded(codec, first, last, log, threads):
                        log.append(_line(done, writer, info, dtype))
                        progress.add(done)
                        progress.wall_seconds = time.perf_counter() - began
                        report(shard, progress)
                    writer.sync()
                    size = writer.num_bytes
                log.sync()
                if log.items != last - first:
                    raise UserError(
                        f"{log.path}: {log.items} items where {last - first} were listed; the "
                        "input changed while it was read: remove the output folder and run again"
                    )
                done = {"items": log.items, "bytes": size, "sha256": sha256_of(path)}
                write_json(done_path(self.out_dir, shard), done)
        except OSError as e:
            raise disk_error(e, path) from None

    def _encoded(
        self, codec: Codec, first: int, last: int, log: ShardLog, threads: FasterThreads | None
    ) -> Iterator[Done]:
        """The items of [first, last) after those in the log, with their codes.

        A group of items that are encoded together is made again from its beginning, if only some
        of it is in the log: in another batch a code could be rounded in another way.
        """
        begin, size = log.unfinished_group or (log.items, None)
        known = log.items - begin
        if first + begin == last:
            return
        encoder = Encoder(codec, self.chunk_seconds, self.batch_size, threads)
        items = self.source.items(first + begin, last)
        blocks = max(QUEUED_BLOCKS, 4 * self.batch_size)
        began = time.perf_counter()
        with ReadAhead(items, codec.info, self.audio, blocks) as reading:
            pieces = iter(reading)
            while group := encoder.group(pieces, size):
                wall = (time.perf_counter() - began) / len(group)
                for i, done in enumerate(group):
                    done.wall_seconds = wall
                    done.group = None if len(group) == 1 else (begin, len(group))
                    if i >= known:
                        yield done
                begin, size, known = begin + len(group), None, 0
                began = time.perf_counter()


def _line(done: Done, writer: RvqMmapWriter, info: CodecInfo, dtype: str) -> dict:
    """Store the codes of an item; returns its line in the log."""
    if done.reason is not None:
        item = done.item
        line: dict = {"skip": {"id": item.id, "path": item.path, "reason": done.reason}}
    else:
        stream, cut = done.stream, done.stream.cut
        custom = {
            k: v for k, v in (cut.custom or {}).items() if isinstance(v, (str, int, float, bool))
        }
        if done.scales is not None:
            custom["scales"] = done.scales
        if (kbps := _original_kbps(cut.recording)) is not None:
            custom.setdefault("orig_kbps", kbps)
        custom["recording_start"] = cut.start  # token cuts begin at 0
        channel = 0 if isinstance(cut.channel, list) else cut.channel
        token = token_cut(
            done.item.id,
            writer.storage_path,
            writer.write(done.item.id, done.codes.astype(dtype, copy=False)),
            info,
            recording_id=cut.recording.id,
            channel=channel,
            # several channels were made one: who spoke on any of them speaks on that
            supervisions=[fastcopy(s, channel=channel) for s in cut.supervisions],
            num_samples=stream.num_samples,
            ends_recording=stream.ends_recording,
            custom=custom,
        )
        line = {"cut": token.to_dict(), "audio": cut.to_dict()}
        if stream.notes:
            line["warn"] = {"id": done.item.id, "path": done.item.path,
                            "reason": "; ".join(stream.notes)}  # fmt: skip
    if done.group is not None:
        line["group"] = done.group
    return line


def _original_kbps(recording: Recording) -> float | None:
    """Bits per millisecond of the file that a recording is; None where it is no file."""
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        return None
    try:
        size = os.path.getsize(recording.sources[0].source)
    except OSError:  # gone since it was read
        return None
    return round(size * 8 / 1000 / recording.duration, 3)
