"""Seconds by part of a step."""

import time

import torch

from rvqlm.training.stopwatch import Stopwatch


def test_seconds_by_part():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch("forward"):
            time.sleep(0.01)
    with watch("step"):
        pass
    taken = watch.take()
    assert taken["forward"] >= 0.02 > taken["step"] and watch.take() == {}
