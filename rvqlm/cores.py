"""Cores that others use too: how many threads pay there, and how many cores the others take.

Threads wait for each other at every operation of torch, so on a core that something else uses they
make a program slower, ten times where the operations are short. What pays is therefore measured
with the program's own steps: once (`fastest`), or again and again (`FasterThreads`).
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rvqlm.runtime import num_cores

SHARED = 0.25
"""Share of the cores from which on others are said to share a machine."""
_BLOCK_STEPS, _BLOCK_SECONDS = 2, 0.05
"""What is timed as one: long enough for a scheduler to have its say."""
_TRIAL_SHARE = 0.06
"""Of the time that goes into trials of the other number, where nothing changes."""
_TRIAL_SHARE_AT_MOST = 0.2
"""The same where something did."""
_CHANGED = 1.4
"""Factor between two speeds by which something must have changed: batches differ too."""
_HOPELESS = 3.0
"""A first step that takes so many times as long ends a trial."""


class FasterThreads:
    """Sets torch's threads to 1 or all, whichever is faster, and finds out again as it goes on.

    Told of every step, it now and then makes some with the other number: soon after the speed has
    changed, rarely where it has not, in proportion to what such a trial costs.

    >>> threads = FasterThreads(2)
    >>> threads.took(0.1, work=32)

    :param most: the larger number; torch's own by default.
    """

    def __init__(self, most: int | None = None, use: Callable[[int], None] | None = None):
        import torch

        self.most, self._use = most or torch.get_num_threads(), use or torch.set_num_threads
        self.now = 1
        """How many there are, in a trial those that are tried."""
        self._usual = 1
        self._steps, self._seconds, self._work = 0, 0.0, 0.0
        self._recent: deque[float] = deque(maxlen=3)  # seconds of a unit of work
        self._compared = 0.0  # that of the usual number when it was last compared
        self._since = 0.0  # seconds since the last trial
        self._trial: float | None = None  # seconds that it has taken
        self._cost = 0.0  # of the last trial
        if self.most > 1:
            self._use(1)

    def took(self, seconds: float, work: float = 1.0) -> None:
        """A step took so long for so much work, and the next one begins."""
        if self.most == 1:
            return
        if self._trial is None:
            self._since += seconds
        else:
            self._trial += seconds
            if self._steps == 0 and seconds > _HOPELESS * self._pace * work > 0:
                self._decide(seconds / work)
                return
        self._steps += 1
        if self._trial is None or self._steps > 1:  # what is new is made anew in the first
            self._seconds += seconds
            self._work += work
        if self._steps < _BLOCK_STEPS or self._seconds < _BLOCK_SECONDS:
            return
        pace = self._seconds / self._work
        if self._trial is not None:
            self._decide(pace)
            return
        self._recent.append(pace)
        self._begin_block()
        if self._due():
            self._trial = 0.0
            self._switch(self.most if self._usual == 1 else 1)

    @property
    def _pace(self) -> float:
        return statistics.median(self._recent) if self._recent else 0.0

    def _due(self) -> bool:
        if not self._compared:  # the first trial, once kernels are made
            return len(self._recent) == self._recent.maxlen
        if self._since * _TRIAL_SHARE >= self._cost:
            return True
        factor = self._pace / self._compared
        changed = factor > _CHANGED or factor < 1 / _CHANGED
        return changed and self._since * _TRIAL_SHARE_AT_MOST >= self._cost

    def _decide(self, pace: float) -> None:
        """A trial has ended, with so many seconds for a unit of work."""
        usual = self._pace
        self._cost, self._trial, self._since = self._trial, None, 0.0
        if pace < usual:
            self._usual = self.now
            self._recent.clear()
            self._recent.append(pace)
        self._compared = min(pace, usual)
        self._switch(self._usual)

    def _begin_block(self) -> None:
        self._steps, self._seconds, self._work = 0, 0.0, 0.0

    def _switch(self, number: int) -> None:
        self.now = number
        self._begin_block()
        self._use(number)

    def watching(self, update: Callable[[int], object]) -> Callable[[int], None]:
        """`update`, which is called after so many steps of like work, told of here as well. What
        comes between two calls and takes a second or more is no step."""
        last = time.perf_counter()

        def watched(steps: int = 1) -> None:
            nonlocal last
            now = time.perf_counter()
            update(steps)
            if steps > 0 and now - last < 1.0 + 10 * self._pace * steps:
                self.took(now - last, steps)
            last = time.perf_counter()

        return watched


def fastest(step: Callable[[], object], most: int | None = None, seconds: float = 10.0) -> int:
    """1 or `most` threads, whichever makes `step` faster: the better of a few, as long as they
    take `seconds` together. Leaves torch's threads as they were."""
    import torch

    before = torch.get_num_threads()
    most, best, began = most or before, {}, time.perf_counter()
    if most == 1:
        return 1
    try:
        for again in range(4):
            for number in (1, most):
                torch.set_num_threads(number)
                start = time.perf_counter()
                step()
                if again:  # the first makes the kernels
                    took = time.perf_counter() - start
                    best[number] = min(best.get(number, took), took)
            if again and time.perf_counter() - began > seconds:
                break
    finally:
        torch.set_num_threads(before)
    return min(best, key=best.get)


class OtherCores:
    """How many of the cores that this process may use, others do use.

    >>> others = OtherCores()
    >>> others.take() is None or others.take() >= 0
    True
    """

    def __init__(self, stat: str | Path = "/proc/stat"):
        self.stat = Path(stat)
        self._last = self._read()

    def take(self) -> float | None:
        """The mean since the last call; None where the system does not tell, or no time passed."""
        last, self._last = self._last, self._read()
        if last is None or self._last is None:
            return None
        busy, own, seconds = (now - then for now, then in zip(self._last, last))
        return min(max(0.0, (busy - own) / seconds), num_cores()) if seconds > 0.05 else None

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds that the cores were busy, and with this process; and what the clock says."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        busy = 0
        with suppress(OSError, ValueError):
            for line in self.stat.read_text().splitlines():
                name, *fields = line.split()
                if name in mine:
                    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, fields)
                    busy += user + nice + system + irq + softirq + steal
        if not busy:
            return None
        used = resource.getrusage(resource.RUSAGE_SELF)
        return busy / os.sysconf("SC_CLK_TCK"), used.ru_utime + used.ru_stime, time.monotonic()
