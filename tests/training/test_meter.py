"""Seconds by part of a step; operations of models counted by hand; speed beside the peak."""

import pytest
import torch

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.codec_lm import CodecLMConfig
from rvqlm.models.factory import build_model
from rvqlm.modules.transformer import Transformer
from rvqlm.training import meter
from rvqlm.training.meter import Speed, Stopwatch, peak_bandwidth, peak_flops, training_flops


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


# A multiply-add is two operations, and the backward pass multiplies twice for each product of the
# forward pass.

D, L, T, B, K, V = 16, 2, 20, 2, 3, 32
INFO = CodecInfo("x", "", 16000, 320, num_codebooks=K, codebook_size=V)
SHAPE = {"decoder_dim": D, "nhead": 2, "num_decoder_layers": L}
TEXT = {"text": ConditionInfo("text", (9,), rate=10.0)}


def transformer(steps: int, width: int = D, layers: int = L) -> int:
    """Multiply-adds of blocks over the steps of one item."""
    inner = CodecLMConfig(**SHAPE).feedforward(width)
    per_step = width * 3 * width + width * width + 2 * width * inner
    return layers * (steps * per_step + 2 * steps * steps * width)


def by_hand(case: str) -> tuple[dict, int]:
    """Changes to the flags, and multiply-adds of the forward pass of one item."""
    head, whole = D * V, {"prompt_fraction": 0.0, "mask_schedule": "fixed", "mask_ratio": 1.0}
    adaptive = (2 * L + 1) * D * 2 * D  # gain and bias of every norm, once an item
    end = D * (T + 1)
    if case == "parallel":  # a step more than frames, whose codes are not scored
        return {"pattern": "parallel"}, transformer(T + 1) + T * K * head + end
    if case == "shared keys":  # half as many are projected, and all queries attend
        fewer = L * (T + 1) * D * D
        changes = {"pattern": "parallel", "kv_heads": 1}
        return changes, transformer(T + 1) - fewer + T * K * head + end
    if case == "flatten":  # one level a step
        return {"pattern": "flatten"}, transformer(T * K + 1) + T * K * head + end
    if case == "valle":  # one random level, not K - 1
        changes = {"prompt_mode": "none", "unprompted_share": 1.0}
        ar, nar = transformer(T + 1) + T * head + end, transformer(T) + T * head + adaptive
        return {"model_name": "valle", **changes}, ar + nar
    if case == "valle stage 1":
        changes = {"prompt_mode": "none", "unprompted_share": 1.0, "train_stage": 1}
        return {"model_name": "valle", **changes}, transformer(T + 1) + T * head + end
    if case == "masked":  # one masking, not four
        changes = {"predict_length": False, **whole}
        return {"model_name": "masked", **changes}, transformer(T) + T * K * head
    if case == "masked, coarse_first":
        changes = {"masking": "coarse_first", "predict_length": False, **whole}
        return {"model_name": "masked", **changes}, transformer(T) + T * head
    if case == "scheduled sampling":  # a forward pass more, without a backward one: a third
        extra = (transformer(T + 1) + (T + 1) * K * head) / 3
        changes = {"pattern": "parallel", "scheduled_sampling": 0.5}
        return changes, transformer(T + 1) + T * K * head + end + extra
    assert case == "depth"
    d, layers = 8, 1
    changes = {"pattern": "parallel", "head": "depth", "depth_dim": d, "depth_layers": layers}
    into = D * K * d  # and K levels of a frame behind each other
    states = T * (into + transformer(K, d, layers)) + T * K * d * V
    return changes | {"depth_nhead": 2}, transformer(T + 1) + states + end


CASES = [
    "parallel",
    "shared keys",
    "flatten",
    "depth",
    "scheduled sampling",
    "valle",
    "valle stage 1",
]
CASES += ["masked", "masked, coarse_first"]


def make(case: str, **more):
    flags, expected = by_hand(case)
    name = flags.pop("model_name", "codec-lm")
    torch.manual_seed(0)
    return build_model(name, {**SHAPE, **flags, **more}, INFO), expected


@pytest.mark.parametrize("case", CASES)
def test_operations_of_a_family_counted_by_hand(case):
    model, expected = make(case)
    batch = Batch.from_codes([torch.randint(V, (T, K)) for _ in range(B)])
    state = torch.get_rng_state()
    found = training_flops(model.eval(), batch)
    assert found == pytest.approx(3 * 2 * B * expected, rel=0.01)
    # nothing is left of it
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("case", ["parallel", "valle", "masked"])
def test_what_is_computed_again_is_left_out(case):
    batch = Batch.from_codes([torch.randint(V, (T, K)) for _ in range(B)])
    plain, again = make(case)[0], make(case, activation_checkpointing=True)[0]
    assert training_flops(again, batch) == training_flops(plain, batch)
    networks = [m for m in again.modules() if isinstance(m, Transformer)]
    assert networks and all(m.config.activation_checkpointing for m in networks)


def test_operations_of_a_recogniser_and_of_half_precision():
    config = {**SHAPE, "conditions": ("text",), "dropout": 0.0}
    model = build_model("recognizer", config, INFO, TEXT)
    texts = {"text": [torch.randint(1, 9, (5, 1)) for _ in range(B)]}
    batch = Batch.from_codes([torch.randint(V, (T, K)) for _ in range(B)], conditions=texts)
    assert training_flops(model, batch) > 3 * 2 * B * transformer(T // 4)
    model, batch.conditions = make("parallel")[0], {}
    whole = training_flops(model, batch)
    assert training_flops(model, batch, torch.bfloat16) == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(
    "name, gib, peak, bandwidth",
    [
        ("NVIDIA H100 80GB HBM3", 79.1, 989e12, 3350e9),
        ("NVIDIA H100 PCIe", 79.2, 756e12, 2000e9),
        ("NVIDIA H200", 139.8, 989e12, 4800e9),
        ("NVIDIA A100-SXM4-80GB", 79.2, 312e12, 2039e9),
        ("NVIDIA A100-SXM4-40GB", 39.4, 312e12, 1555e9),
        ("NVIDIA A100 80GB PCIe", 79.2, 312e12, 1935e9),
        ("NVIDIA A10G", 22.1, 70e12, 600e9),
        ("NVIDIA L4", 22.0, 121e12, 300e9),
        ("NVIDIA L40", 44.4, 181e12, 864e9),
        ("NVIDIA L40S", 44.4, 362e12, 864e9),
        ("NVIDIA B200", 178.4, 2250e12, None),
        ("NVIDIA RTX A6000", 47.4, 155e12, 768e9),
        ("NVIDIA RTX A2000 12GB", 11.7, 32e12, 288e9),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, 364e12, 960e9),
        ("NVIDIA GeForce RTX 3060", 11.8, 25e12, 360e9),
        ("NVIDIA GeForce RTX 3060", 7.8, 25e12, None),  # another memory, 8 GB
        ("NVIDIA GeForce RTX 3080", 9.8, 60e12, 760e9),
        ("NVIDIA GeForce RTX 3080", 11.8, 61e12, 912e9),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.7, 88e12, 672e9),
        ("Tesla V100-SXM2-32GB", 31.7, 125e12, 900e9),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None, None),
        ("NVIDIA GeForce GTX 1080 Ti", 10.9, None, None),
    ],
)
def test_figures_of_gpus_go_by_whole_words_of_their_names(monkeypatch, name, gib, peak, bandwidth):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, round(gib * 2**30)))
    peak_flops.cache_clear()
    cuda = torch.device("cuda")
    assert peak_flops(cuda, torch.bfloat16) == peak and peak_flops(cuda, torch.float32) is None
    assert peak_bandwidth(cuda) == bandwidth
    peak_flops.cache_clear()


def test_peak_of_a_cpu_is_measured():
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
