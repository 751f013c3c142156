"""Where the time of a step goes: seconds by part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Sums up seconds by name. On a GPU, work is measured by events on its stream, which are read
    only when asked, so that nothing waits.

    >>> watch = Stopwatch(torch.device("cpu"))
    >>> with watch("data"):
    ...     pass
    >>> list(watch.take()), watch.take()
    (['data'], {})
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.cuda and name != "data":  # data is the CPU's work
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.events.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call."""
        if self.events:
            self.events[-1][2].synchronize()
        for name, first, last in self.events:
            spent = first.elapsed_time(last) / 1000
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        taken, self.seconds, self.events = self.seconds, {}, []
        return taken
