"""The progress line of `rvqlm tokenize`: share done, real-time factor, time left."""

from __future__ import annotations

import sys
import time

import numpy as np

from rvqlm.tokenizing.shard import Progress


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


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
        self._finished_before: set[int] = set()
        self.speeds: dict[str, float] = {}
        """times real time, of the items that were encoded in this run, by id"""
        self._terminal = sys.stderr.isatty()
        self._interval = 0.2 if self._terminal else 10.0
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None

    def already_done(self, shard: int) -> None:
        """An earlier run, or another rank, has this shard."""
        self._finished_before.add(shard)

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
        if not self._shown:
            return
        new = old = items = skipped = 0.0
        for shard in self._finished_before:
            first, last = self._ranges[shard]
            old += self._before[last] - self._before[first]
            items += last - first
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
