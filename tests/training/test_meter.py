"""Seconds by part of a step; operations of models counted by hand; speed beside the peak."""

import pytest
import torch
from torch import nn

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.training import meter
from rvqlm.training.meter import Speed, Stopwatch, forward_flops, peak_flops


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


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def forward(self, batch):
        return self.linear(batch)


def test_operations_of_a_linear_layer():
    model = Linear().train()
    assert forward_flops(model, torch.randn(3, 11, 7)) == 2 * 3 * 11 * 7 * 5
    assert model.training and model.linear.weight.grad is None


def test_operations_of_a_transformer():
    info = CodecInfo("x", "", 16000, 320, num_codebooks=3, codebook_size=32)
    d, L, T, B = 16, 2, 20, 2
    config = CodecLMConfig(pattern="parallel", decoder_dim=d, nhead=2, num_decoder_layers=L)
    model = CodecLM(config, info)
    batch = Batch.from_codes([torch.randint(32, (T, 3)) for _ in range(B)])
    S = T + 1  # the end is a decision of its own
    inner = config.feedforward(d)
    per_step = L * (d * 3 * d + d * d + 2 * d * inner) + 3 * 32 * d
    attention = L * 2 * S * S * d
    expected = 2 * B * (S * per_step + attention)
    assert forward_flops(model, batch) == pytest.approx(expected, rel=0.02)


def test_peak_of_a_cpu_is_measured():
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
