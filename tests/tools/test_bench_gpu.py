"""The checks of GPUs pass on a simulated one and fail where a fault is put back."""

import json
from functools import partial

import gpu
import gpu_checks as checks
import pytest
import torch
from simulated_cuda import simulated_cuda

from rvqlm.batch import Batch, Padded, mask_of
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.spectral_model import ResidualQuantizer
from rvqlm.modules import attention
from rvqlm.modules.attention import RotaryTable
from rvqlm.patterns import DelayPattern


@pytest.fixture
def where(tmp_path):
    with simulated_cuda():
        yield checks.Where(torch.device("cuda", 0), tmp_path, simulated=True)


@pytest.fixture(scope="module", autouse=True)
def _as_before():
    yield
    checks.reference.cache_clear()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


spectral = partial(checks.codes_and_audio, load=partial(load_codec, "spectral"), seconds=0.5)


@pytest.mark.parametrize(
    "check",
    [
        spectral,
        partial(checks.gradients, case="depth-text-cross", precision="float64"),
        partial(checks.gradients, case="recompute", precision="bf16"),
        partial(checks.gradients, case="recognizer", precision="float32"),
        partial(checks.gradients, case="delay", precision="cast"),
        checks.positions,
        partial(checks.generate, case="delay-prompt", sampling=checks.DRAWS["guided"]),
        partial(checks.infill, case="masked"),
        partial(checks.resume, first="gpu", then="cpu"),
        checks.skip,
        checks.waits_of_training,
    ],
)
def test_checks_pass(where, check):
    assert check(where)


def test_a_codec_that_leaves_a_part_behind(where, monkeypatch):
    monkeypatch.setattr(ResidualQuantizer, "_apply", torch.nn.Module._apply)
    with pytest.raises(RuntimeError, match="two devices"):
        spectral(where)


def test_a_mask_on_the_cpu(where, monkeypatch):
    rows = torch.arange
    monkeypatch.setattr(attention.torch, "arange", lambda *a, device=None, **k: rows(*a, **k))
    with pytest.raises(RuntimeError, match="two devices"):
        checks.gradients(where, "text", "float64")


def test_positions_that_are_cast_with_the_model(where, monkeypatch):
    exact = RotaryTable.at

    def rounded(table, positions):
        cos, sin = exact(table, positions)
        table._frequencies = table._frequencies.bfloat16().double()
        return exact(table, positions) if positions.is_cuda else (cos, sin)

    monkeypatch.setattr(RotaryTable, "at", rounded)
    with pytest.raises(checks.Wrong, match="cosines and sines"):
        checks.positions(where)
    with pytest.raises(checks.Wrong, match="loss"):
        checks.gradients(where, "delay", "float64")


def test_copies_to_the_host_that_are_read_too_early(where, monkeypatch):
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: t.to("cpu", non_blocking=True))
    with pytest.raises(checks.Wrong):
        checks.gradients(where, "delay", "float64")
    monkeypatch.setattr(torch.Tensor, "cpu", real)
    batch = Batch.from_codes([torch.ones(2, 3)], conditions={"text": [torch.ones(2)]})
    back = batch.to("cuda").to("cpu")
    assert back.codes.equal(batch.codes) and back.conditions["text"].values.any()
    assert isinstance(back.conditions["text"], Padded)
    assert mask_of(back.lengths, 2).all()


def test_delays_that_are_copied_every_time(where, monkeypatch):
    monkeypatch.setattr(DelayPattern, "_delays", lambda self, level: level.new_tensor(self.delays))
    with pytest.raises(checks.Wrong, match="at most 0"):
        checks.waits_of_training(where)


def test_moments_that_are_lost(where, monkeypatch):
    monkeypatch.setattr(checks.Trainer, "_load_weights", lambda self, state: None)
    with pytest.raises(checks.Wrong, match="weights"):
        checks.resume(where, "gpu", "gpu")


def test_the_command(tmp_path, monkeypatch, capsys):
    def part(where):
        yield "good", lambda: "0.1"
        yield "wrong", partial(checks.check, 1.0, 0.1, "loss")
        yield "broken", lambda: torch.ones(2).to(where.device) + torch.ones(2)

    monkeypatch.setattr(gpu, "PARTS", {"codec": part})
    record = tmp_path / "gpu.json"
    assert gpu.main(["--simulate", "--json", str(record)]) == 1
    found = json.loads(record.read_text())["checks"]
    assert [c["verdict"] for c in found] == ["ok", "FAILED", "FAILED"]
    assert found[1]["said"] == "loss: 1.0e+00 away, at most 1e-01 allowed"
    assert found[2]["said"].startswith("RuntimeError at")
    assert "two devices" in found[2]["said"]
    assert "1 ok, 2 FAILED" in capsys.readouterr().out
    assert gpu.main(["--simulate", "--seconds", "0", "--json", str(record)]) == 0
    assert {c["verdict"] for c in json.loads(record.read_text())["checks"]} == {"not run"}
    assert gpu.main(["--simulate", "--only", "nothing"]) == 2
    assert "choose of codec" in capsys.readouterr().err
