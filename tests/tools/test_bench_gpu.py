"""The checks of GPUs pass on a simulated one and fail where a fault is put back."""

import json
from functools import partial

import gpu
import gpu_attention_checks as kernels
import gpu_checks as checks
import gpu_codec_checks as codecs
import gpu_run_checks as runs
import pytest
import torch
from simulated_cuda import simulated_cuda

from rvqlm.batch import Batch, Padded, mask_of
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.spectral_model import ResidualQuantizer
from rvqlm.modules import attention
from rvqlm.modules.attention import RotaryTable
from rvqlm.patterns import DelayPattern
from rvqlm.training.passes import Captured, GraphedPasses


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


spectral = partial(codecs.codes_and_audio, load=partial(load_codec, "spectral"), seconds=0.5)


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
        partial(checks.resume, optimizer="adamw", first="gpu", then="cpu"),
        checks.skip,
        partial(checks.waits_of_training, case="delay"),
        partial(runs.graphed, case="parallel-text-spread", dtype=torch.float32, steps=1),
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
        checks.waits_of_training(where, "delay")


def test_moments_that_are_lost(where, monkeypatch):
    monkeypatch.setattr(checks.Trainer, "_load_weights", lambda self, state: None)
    with pytest.raises(checks.Wrong, match="weights"):
        checks.resume(where, "adamw")


def test_graphs_that_do_something_else(where, monkeypatch):
    monkeypatch.setattr(GraphedPasses, "_compare", lambda *given: None)
    monkeypatch.setattr(Captured, "load", lambda *given: None)
    with pytest.raises(checks.Wrong, match="gradients"):
        runs.graphed(where, "delay", torch.float32, steps=1)


def test_the_command(tmp_path, monkeypatch, capsys):
    def nothing():
        raise checks.NotRun("no such card")

    def part(where):
        yield "good", lambda: "0.1"
        yield "wrong", partial(checks.check, 1.0, 0.1, "loss")
        yield "broken", lambda: torch.ones(2).to(where.device) + torch.ones(2)
        yield "none", nothing

    monkeypatch.setattr(gpu, "PARTS", {"codec": gpu.Part(part, 1.0)})
    record = tmp_path / "gpu.json"
    assert gpu.main(["--simulate", "--json", str(record)]) == 1
    found = json.loads(record.read_text())["checks"]
    assert [c["verdict"] for c in found] == ["ok", "FAILED", "FAILED", "not run"]
    assert found[3]["said"] == "no such card"
    assert found[1]["said"] == "loss: 1.0e+00 away, at most 1e-01 allowed"
    assert found[2]["said"].startswith("RuntimeError at")
    assert "two devices" in found[2]["said"]
    assert "1 ok, 2 FAILED, 1 not run" in capsys.readouterr().out
    assert gpu.main(["--simulate", "--seconds", "0", "--json", str(record)]) == 0
    assert {c["verdict"] for c in json.loads(record.read_text())["checks"]} == {"not run"}
    assert gpu.main(["--simulate", "--only", "nothing"]) == 2
    assert "choose of codec" in capsys.readouterr().err


def here(tmp_path):
    return checks.Where(torch.device("cpu"), tmp_path, simulated=True)


def test_kernels_of_attention(tmp_path):
    assert kernels.backend(here(tmp_path), "flash", "causal after a prefix", torch.bfloat16)
    with pytest.raises(checks.NotRun, match="no such kernel"):
        kernels.backend(here(tmp_path), "efficient", "all", torch.float32)


def test_a_kernel_that_forgets_the_mask(tmp_path, monkeypatch):
    real = kernels.attend

    def forgetful(*given, **options):
        exact = given[0].dtype == torch.float64
        return real(*given, **(options if exact else options | {"key_mask": None}))

    monkeypatch.setattr(kernels, "attend", forgetful)
    with pytest.raises(checks.Wrong, match="output"):
        kernels.backend(here(tmp_path), "math", "padded", torch.float32)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_of_one(tmp_path, parallel):
    assert runs.alone(here(tmp_path), "masked", parallel, torch.float32)


def test_ranks_that_scale_wrongly(tmp_path, monkeypatch):
    norm = runs.Alone.grad_norm
    monkeypatch.setattr(runs.Alone, "grad_norm", lambda self, grads: 2 * norm(self, grads))
    with pytest.raises(checks.Wrong, match="losses"):
        runs.alone(here(tmp_path), "delay", "ddp", torch.float32)


def test_compiled_blocks(tmp_path):
    assert "no graph breaks" in runs.compiled(here(tmp_path), "depth", torch.float32)


def test_a_version_for_every_length(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHAPES", {(3, 9)})
    with pytest.raises(checks.Wrong, match="versions of the blocks were made, and 2 more"):
        runs.compiled(here(tmp_path), "delay", torch.float32)


def test_launches_are_operations_that_compute():
    with simulated_cuda() as simulated:
        q = torch.randn(2, 2, 5, 8).cuda().requires_grad_()
        simulated.launches.clear()
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        out.transpose(1, 2).flatten(2)[:, 1:].contiguous()
        assert dict(simulated.launches) == {"attention": 1, "clone": 2}
        out.backward(torch.ones_like(out))
        assert simulated.launches["attention_backward"] == 1
