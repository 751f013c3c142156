"""Manifests of audio cuts, read and written one cut at a time: what `rvqlm audio` is made of.

A command reads cuts with `read_cuts`, works on them in processes with `in_order` (the results come
in the order of the cuts, so that equal inputs give equal bytes) and writes them with a `CutWriter`,
which lists what could not be used. Nothing here grows with the number of cuts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import itertools
import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from lhotse import Recording
from lhotse.augmentation import AudioTransform, Volume
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import compute_num_samples
from tqdm import tqdm

from rvqlm.audio.load import recording_cut
from rvqlm.audio.read import BLOCK_SAMPLES, MISSING_SECONDS, BadAudio, open_audio, printable
from rvqlm.errors import UserError


def _lines(path: str, flag: str) -> Iterator[bytes]:
    if not path.lower().endswith((".jsonl", ".jsonl.gz")):
        raise UserError(
            f"{flag} {path}: give a manifest of cuts, a .jsonl.gz file as `rvqlm audio manifest` "
            "writes it"
        )
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file; make it with rvqlm audio manifest") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{flag} {path}: cut short or damaged ({e}); make it again") from None
    except OSError as e:
        raise UserError(f"{flag} {path}: {e.strerror or e}") from None


def count_cuts(path: str, flag: str = "--input") -> int:
    """How many cuts a manifest has; `UserError` if none, or if it cannot be read."""
    count = sum(1 for _ in _lines(path, flag))
    if not count:
        raise UserError(f"{flag} {path}: the manifest is empty")
    return count


def read_cuts(path: str, flag: str = "--input") -> Iterator[Cut]:
    """The cuts of a lhotse manifest (JSONL, gzipped or not), one at a time.

    A manifest of recordings is read as one of cuts over whole recordings. Raises `UserError` for
    all that is not a cut within one recording.
    """
    for number, line in enumerate(_lines(path, flag), 1):
        where = f"{flag} {path}: item {number}"
        try:
            fields = json.loads(line)
            item = deserialize_item(fields)
        except Exception as e:  # lhotse asserts, and looks up what is not there
            why = f"{type(e).__name__} {e}".splitlines()[0]
            raise UserError(f"{where} is no lhotse cut: {why}") from None
        if isinstance(item, Recording):
            yield recording_cut(item)
        elif getattr(item, "recording", None) is not None:
            yield item
        else:
            raise UserError(
                f"{where} is a {type(item).__name__} without audio; give cuts of recordings, as "
                "rvqlm audio manifest writes them"
            )


def source_path(recording: Recording) -> str:
    """For messages: the file of a recording where there is one."""
    return str(recording.sources[0].source) if recording.sources else recording.id


def with_custom(item: Any, **fields: Any) -> Any:
    """Set custom fields; the dictionary of the item it was copied from stays as it is."""
    item.custom = {**(item.custom or {}), **fields}
    return item


# ---------------------------------------------------------------------------------- samples


def gains(recording: Recording) -> list[float] | None:
    """Factors by which a recording's samples are multiplied, one after another.

    None if other transforms than lhotse's ``Volume`` are attached to it.
    """
    transforms = [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t)
        for t in recording.transforms or ()
    ]
    if all(isinstance(t, Volume) for t in transforms):
        return [t.factor for t in transforms]
    return None


def cut_blocks(cut: Cut) -> Iterator[np.ndarray]:
    """The audio of a cut in blocks (C, n) float32: the samples of ``cut.load_audio()``.

    A cut of a file is read block by block, gains applied; one with several sources, from a URL or
    a command, or with other transforms is loaded whole by lhotse. Raises `BadAudio`.
    """
    recording = cut.recording
    path, factors = source_path(recording), gains(recording)
    if len(recording.sources) == 1 and recording.sources[0].type == "file" and factors is not None:
        blocks = _file_blocks(cut, path, factors)
    else:
        blocks = _loaded(cut, path)
    empty = True
    for block in blocks:
        if not np.isfinite(block).all():
            raise BadAudio(path, "NaN or infinite samples")
        empty = False
        yield block
    if empty:
        raise BadAudio(path, "zero-length audio")


def _file_blocks(cut: Cut, path: str, factors: list[float]) -> Iterator[np.ndarray]:
    rate = cut.recording.sampling_rate
    left = compute_num_samples(cut.duration, rate)
    have = cut.recording.sources[0].channels
    wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if not set(wanted) <= set(have):
        raise BadAudio(path, f"the cut is on channel {max(wanted)}, its recording has {have}")
    rows = [have.index(c) for c in wanted]
    with open_audio(path) as reader:
        if reader.sampling_rate != rate:
            raise BadAudio(
                path,
                f"{reader.sampling_rate} Hz, its manifest says {rate}; make the manifest anew",
            )
        if max(rows) >= reader.num_channels:
            raise BadAudio(path, f"{reader.num_channels} channels, its manifest says {len(have)}")
        reader.seek(compute_num_samples(cut.start, rate))
        while left > 0:
            block = reader.read(min(BLOCK_SAMPLES, left))
            if not len(block):
                break
            left -= len(block)
            block = block.T[rows]
            for factor in factors:  # as lhotse does it, which rounds after each
                block = block * factor
            yield block
    if left > MISSING_SECONDS * rate:
        raise BadAudio(path, f"{left} samples fewer than its manifest says; make the manifest anew")


def _loaded(cut: Cut, path: str) -> Iterator[np.ndarray]:
    try:
        audio = cut.load_audio()
    except Exception as e:  # lhotse has many backends, and errors of all kinds
        why = (str(e).strip().splitlines() or [""])[0]
        raise BadAudio(path, f"unreadable: {type(e).__name__}: {why}") from None
    if audio.shape[1]:
        yield audio


# ---------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file, gzipped if its name says so, that appears when the block ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as raw:
            if path.suffix == ".gz":  # no name and no time in the header: equal cuts, equal bytes
                with gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as packed:
                    yield packed
            else:
                yield raw
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def json_line(fields: dict) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(fields).encode() + b"\n"


def make_folder(path: Path, flag: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{flag} {path}: {e.strerror}; choose a folder to write in") from None


class CutWriter:
    """Writes a manifest of cuts, and ``skipped.jsonl`` beside it, when its block ends.

    Raises `UserError`, leaving the list of what was skipped but no manifest, if no cut came.
    """

    def __init__(self, out: str, source: str | None = None):
        self.out = Path(out)
        if not out.lower().endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"--out {out}: the name must end in .jsonl.gz")
        if source is not None and self.out.exists() and os.path.samefile(source, out):
            raise UserError(f"--out {out} is the input; choose another name")
        self.cuts = self.skipped = 0
        self.seconds = 0.0
        self._first: dict | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CutWriter:
        make_folder(self.out.parent, "--out")
        self._skips = self._stack.enter_context(atomic(self.out.with_name("skipped.jsonl")))
        self._inner = contextlib.ExitStack()
        self._file = self._inner.enter_context(atomic(self.out))
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None and not self.cuts:
            nothing = UserError(f"{self.out}: no cut is left{self._reasons()}")
            self._inner.__exit__(UserError, nothing, None)
            self._stack.__exit__(None, None, None)
            raise nothing
        self._inner.__exit__(*error)
        self._stack.__exit__(*error)

    def _reasons(self) -> str:
        if self._first is None:
            return "; there was nothing to keep"
        return (
            f", {self.skipped} were skipped; the first, {self._first['id']}: "
            f"{self._first['reason']} (all of them in {self.out.with_name('skipped.jsonl')})"
        )

    def write(self, cut: Cut) -> None:
        self._file.write(json_line(cut.to_dict()))
        self.cuts += 1
        self.seconds += cut.duration

    def skip(self, id: str, path: str, reason: str) -> None:
        """Say why an item is not in the manifest."""
        line = {"id": id, "path": printable(path), "reason": reason}
        self._skips.write(json_line(line))
        self.skipped += 1
        self._first = self._first or line

    def summary(self, what: str = "") -> str:
        """``OUT: 12 cuts, 1.50 h`` and what else there is to say."""
        return f"{self.out}: {self.cuts} cuts, {clock(self.seconds)}" + (f"; {what}" * bool(what))

    def report_skipped(self) -> None:
        if self.skipped:
            print(
                f"{self.skipped} items skipped, listed in {self.out.with_name('skipped.jsonl')}; "
                f"the first: {self._first['path']}: {self._first['reason']}",
                file=sys.stderr,
            )


def clock(seconds: float) -> str:
    """``90 s`` or ``1.50 h``, whichever can be read."""
    return f"{seconds / 3600:.2f} h" if seconds >= 600 else f"{seconds:.1f} s"


# ---------------------------------------------------------------------------------- processes


def bar(items: Iterable, desc: str, total: int) -> Iterable:
    return tqdm(items, desc, total=total, unit=" items", leave=False, disable=None)


def pick_jobs(jobs: int) -> int:
    """Number of processes; 0 is one per core."""
    if jobs < 0:
        raise UserError(f"--jobs {jobs} must be 0 (automatic) or more")
    if jobs:
        return jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself


@dataclass(frozen=True)
class _Failure:
    """A `BadAudio` on its way between processes, which it would not survive."""

    path: str
    reason: str


def _guarded(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except BadAudio as e:
        return _Failure(e.path, e.reason)


def _result(value: Any) -> Any:
    return BadAudio(value.path, value.reason) if isinstance(value, _Failure) else value


def in_order(
    work: Callable[[Any], Any], items: Iterable[Any], jobs: int
) -> Iterator[tuple[Any, Any | BadAudio]]:
    """(item, work(item)) for each item in their order, made by `jobs` processes.

    A `BadAudio` that `work` raises is given instead of its result. Only some items at a time are
    held. The processes end with the iteration.
    """
    if jobs <= 1:
        for item in items:
            yield item, _result(_guarded(work, item))
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    before = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context(method), _ignore_interrupts
    )
    try:
        submitted = ((item, pool.submit(_guarded, work, item)) for item in items)
        waiting = deque(itertools.islice(submitted, 4 * jobs))
        while waiting:
            item, future = waiting.popleft()
            value = future.result()
            waiting.extend(itertools.islice(submitted, 1))
            yield item, _result(value)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory; give fewer --jobs"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
