"""Seconds by part of a step, speed beside the peak."""

import pytest
import torch

from rvqlm.training import meter
from rvqlm.training.meter import Speed, Stopwatch


def test_seconds_by_part(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    watch = Stopwatch(torch.device("cpu"))

    def spend(name, seconds):
        with watch(name):
            now[0] += seconds
        now[0] += 0.125  # between parts: nobody's

    for seconds in (0.5, 0.25):
        spend("forward", seconds)
        spend("data", 2 * seconds)
    assert watch.take() == {"forward": 0.75, "data": 1.5}
    spend("step", 1.0)
    assert watch.take() == {"step": 1.0} and watch.take() == {}


def test_on_a_gpu_events_are_read_only_when_asked(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.number = len(log)

        def record(self):
            log.append("record")
            self.number = len(log)

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, later):
            assert log[-1] == "synchronize" and later.number == self.number + 1
            return 250.0 * later.number  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"))
    for name in ("forward", "backward", "forward"):
        with watch(name):
            pass
    assert log == ["record"] * 6
    assert watch.take() == pytest.approx({"forward": 0.5 + 1.5, "backward": 1.0})
    assert log[6:] == ["synchronize"] and watch.take() == {}


def test_share_of_the_peak():
    assert Speed(2e6, 1e9).mfu(100.0, ranks=2) == pytest.approx(0.1)
    assert Speed().mfu(100.0, 1) is None
