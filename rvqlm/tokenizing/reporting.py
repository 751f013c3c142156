"""What `rvqlm tokenize` says: the progress line, what a dry run would do, and the summary per file
and in all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rvqlm.audio.cuts import listed
from rvqlm.audio.source import Listing
from rvqlm.cli import clock, counted
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.data.index import read_manifest
from rvqlm.data.store import DTYPES, code_dtype
from rvqlm.tokenizing.shard import Progress
from rvqlm.tokenizing.sidecar import Summary, pcm_bytes

FEW_FILES = 50
"""Up to so many, each has a line of its own."""


class ProgressLine:
    """Collects the progress of all shards of this process and shows it on stderr.

    On a terminal one line is rewritten; elsewhere a line is printed now and then. The time left
    follows from the cost of what is done and what is not, so that a few long files at the end do
    not surprise.
    """

    def __init__(self, costs: np.ndarray, ranges: list, shown: bool = True):
        self._before = np.concatenate([[0.0], np.cumsum(costs)])
        self._ranges, self._shown = ranges, shown
        self._latest: dict[int, Progress] = {}
        self.speeds: dict[str, float] = {}
        """times real time, of the items that were encoded in this run, by id"""
        self._terminal = sys.stderr.isatty()
        self._interval = 0.2 if self._terminal else 10.0
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None

    def already_done(self, shard: int) -> None:
        """An earlier run, or another rank, has this shard."""
        first, last = self._ranges[shard]
        self._latest[shard] = Progress(resumed=last - first)

    def update(self, shard: int, progress: Progress) -> None:
        """New totals of a shard that is being worked on."""
        self._latest[shard] = progress
        self.speeds.update(progress.speeds or {})
        if time.monotonic() - self._drawn >= self._interval:
            self._draw()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, until the end of the work."""
        return max(1e-9, (self._ended or time.monotonic()) - self._began)

    @property
    def seconds(self) -> float:
        """Audio encoded in this run."""
        return sum(p.seconds for p in self._latest.values())

    @property
    def encode_share(self) -> float:
        """Share of the workers' time that was spent in the codec."""
        spent = sum(p.encode_seconds for p in self._latest.values())
        return spent / max(1e-9, sum(p.wall_seconds for p in self._latest.values()))

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if not self._shown or not self._ranges:
            return
        new = old = items = skipped = 0.0
        for shard, p in self._latest.items():
            first = self._ranges[shard][0]
            middle = first + p.resumed
            old += self._before[middle] - self._before[first]
            new += self._before[middle + p.items] - self._before[middle]
            items += p.resumed + p.items
            skipped += p.skipped
        total = self._before[-1]
        left = (total - old - new) / new * self.elapsed if new else float("nan")
        text = (
            f"tokenize {(old + new) / total:4.0%}  {items:.0f}/{len(self._before) - 1} items  "
            f"{self.seconds / self.elapsed:.0f}x real time  "
            f"{clock(self.elapsed)} gone, {clock(left) if new else '?'} left"
            + (f"  {skipped:.0f} skipped" if skipped else "")
        )
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind, *args) -> None:
        self._ended = time.monotonic()
        if self._terminal and self._shown:
            self._draw()
            print(file=sys.stderr)


def wants_per_file(setting: str, items: int) -> bool:
    return setting == "yes" or (setting == "auto" and items <= FEW_FILES)


def describe_plan(
    path: str, out_dir: str, codec: Codec, listing: Listing, continued: bool, settings: tuple
) -> None:
    """What a dry run shows; `settings` are jobs, chunk_seconds and batch_size."""
    info, (jobs, chunk_seconds, batch_size) = codec.info, settings
    rate = float(info.frame_rate)
    print(f"input      {path}: {len(listing)} items", end="")
    print(f", {listing.hours:.2f} h" if listing.hours is not None else "")
    print(f"codec      {describe_codec(info)}")
    if codec.bounded_memory:
        print(f"files      in chunks of {chunk_seconds:g} s, {batch_size} files together")
    else:
        print("files      whole (the codec cannot be interrupted)")
    if listing.hours is not None:
        token_bytes = info.num_codebooks * DTYPES[code_dtype(info.codebook_size)].itemsize
        frames = listing.hours * 3600 * rate
        print(f"tokens     about {frames:.0f} frames, {frames * token_bytes / 1e6:.1f} MB")
    print(f"out        {out_dir}, {'continued' if continued else 'new'}, {jobs} processes")
    print("dry run: nothing written")


def describe_codec(info: CodecInfo) -> str:
    return (
        f"{info.name} [{info.fingerprint}]: {info.sampling_rate} Hz, {info.num_codebooks} x "
        f"{info.codebook_size}, {float(info.frame_rate):.2f} frames/s, "
        f"{info.bitrate / 1000:.2f} kbps"
    )


def print_summary(
    out_dir: str,
    summary: Summary,
    info: CodecInfo,
    line: ProgressLine,
    per_file: bool,
    world_size: int = 1,
) -> None:
    """What there is now, and how fast that went (of several ranks: on this one)."""
    print(f"codec {describe_codec(info)}")
    if per_file:
        for text in per_file_lines(Path(out_dir), info, line.speeds):
            print(text)
    seconds = summary.hours * 3600
    stored = ""
    if summary.num_cuts:  # a part may have none
        stored = (
            f"; {size(summary.token_bytes)}, "
            f"{summary.token_bytes * 8 / 1000 / seconds:.2f} kbps as stored, "
            f"{summary.pcm_bytes / summary.token_bytes:.1f} times less than "
            f"{size(summary.pcm_bytes)} of 16-bit PCM"
        )
    print(
        f"{out_dir}: {counted(summary.num_cuts, 'cut')}, {summary.hours:.2f} h, "
        f"{summary.num_frames} frames of {info.num_codebooks} codes{stored}"
    )
    if line.seconds:
        print(
            ("" if world_size == 1 else "this rank: ")
            + f"{line.seconds / line.elapsed:.1f}x real time in {clock(line.elapsed)}, "
            f"{1 - line.encode_share:.1%} of the time outside the codec"
        )
    else:
        print("all of it was done before")
    for what, number, first in (
        ("skipped", summary.skipped, summary.first_skipped),
        ("warned", summary.warned, summary.first_warned),
    ):
        if number:
            print(listed(what, number, f"{out_dir}/{what}.jsonl", first), file=sys.stderr)


def per_file_lines(out: Path, info: CodecInfo, speeds: dict[str, float]) -> Iterator[str]:
    """A table of the directory's cuts.

    speeds: times real time by id, for those that this process encoded in this run.
    """
    itemsize = DTYPES[code_dtype(info.codebook_size)].itemsize
    yield (
        f"{'frames':>8} {'seconds':>9} {'bytes':>10} {'16-bit PCM':>11} {'ratio':>6} "
        f"{'x real time':>11}  id"
    )
    cuts, audio_cuts = (
        read_manifest(out / name) for name in ("cuts.jsonl.gz", "audio_cuts.jsonl.gz")
    )
    for cut, audio in zip(cuts, audio_cuts, strict=True):
        frames, samples = cut["features"]["num_frames"], cut["custom"]["num_samples"]
        stored, pcm, id = frames * info.num_codebooks * itemsize, pcm_bytes(audio), cut["id"]
        speed = f"{speeds[id]:.1f}" if id in speeds else "-"
        yield (
            f"{frames:8} {samples / info.sampling_rate:9.2f} {stored:10} {pcm:11} "
            f"{pcm / stored:6.1f} {speed:>11}  {id}"
        )


def size(num_bytes: int) -> str:
    """``1.23 MB``, in powers of 1000."""
    units = ["B", "kB", "MB", "GB"]
    power = min(len(units) - 1, max(0, len(str(num_bytes)) - 1) // 3)
    number = num_bytes / 1000**power
    return f"{number:.3g} {units[power]}" if number < 999.5 else f"{number:.0f} {units[power]}"
