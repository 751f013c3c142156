"""Kernels of decoding, each against the plain sums in float64 or the modules that it stands for."""

import copy
import itertools

import pytest
import torch
from torch import nn

from rvqlm.batch import Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig, sample
from rvqlm.models.factory import build_model
from rvqlm.modules import native
from rvqlm.modules.native import NativeLinear, Program
from rvqlm.modules.packed import quantized, with_weights_in

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())
FORMS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
INFO = CodecInfo("toy", "0" * 16, 16000, 320, 4, 40)
TEXT = ConditionInfo("text", (7,), rate=2.0)
SHAPES = {
    "plain": {},
    "wide heads": {"nhead": 1, "activation": "relu"},
    "narrow heads": {"nhead": 16, "kv_heads": 1, "activation": "swiglu", "norm": "rmsnorm"},
    "odd heads": {"decoder_dim": 144, "nhead": 4, "norm_first": False, "activation": "relu2"},
    "shared keys": {"decoder_dim": 168, "nhead": 14, "kv_heads": 2},
    "prefix": {"conditions": ("text",)},
    "cross": {"conditions": ("text",), "fusion": "cross", "num_encoder_layers": 1},
    "by time": {"conditions": ("text",), "fusion": "cross", "cross_by_time": True},
    "spread": {"conditions": ("text",), "fusion": "spread", "norm_first": False},
}


def linear_of(weight, bias, form: str) -> tuple[NativeLinear, torch.Tensor]:
    """And its weights in float64."""
    if form == "int8":
        integers, scale = quantized(weight)
        return NativeLinear(integers, bias, scale), integers.double() * scale.double()[:, None]
    weight = weight.to(FORMS[form])
    return NativeLinear(weight, bias), weight.double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs,inputs", [(64, 32), (1, 7), (130, 77), (96, 1030)])
def test_products(form, outputs, inputs):
    torch.manual_seed(0)
    packed, weight = linear_of(torch.randn(outputs, inputs), torch.randn(outputs), form)
    x = torch.randn(9, inputs) * torch.logspace(-3, 3, 9)[:, None]
    x[4] = 0
    given = x.bfloat16().double() if form == "bf16" else x.double()
    wanted = given @ weight.T + packed.bias.double()
    # of the largest sum that there could be
    unit = given.abs().amax(1, keepdim=True) * weight.abs().sum(1) + 1
    made = packed(x)
    assert made.dtype == torch.float32
    assert ((made.double() - wanted).abs() / unit).max() < (2**-15 if form == "int8" else 1e-6)
    alone = torch.cat([packed(row[None]) for row in x])
    assert torch.equal(alone, made)  # whatever is beside a row
    assert torch.equal(packed(x.view(3, 3, -1)).view_as(made), made)


def test_sums_of_8_bits_do_not_overflow():
    weight, x = torch.full((64, 5000), -127, dtype=torch.int8), torch.full((1, 5000), 3.0)
    made = NativeLinear(weight, None, torch.ones(64))(x)
    torch.testing.assert_close(made, torch.full((1, 64), -127 * 3.0 * 5000), rtol=1e-6, atol=0)


def test_functions_and_residuals():
    torch.manual_seed(0)
    x = torch.randn(3, 70) * 4
    x[0, :6] = torch.tensor([0.0, -0.0, 30.0, -30.0, 100.0, -100.0])
    linear, _ = linear_of(torch.eye(70), None, "fp32")
    functions = {
        "none": lambda y: y,
        "gelu": nn.functional.gelu,
        "relu": nn.functional.relu,
        "relu2": lambda y: nn.functional.relu(y).square(),
    }
    for (name, function), add in itertools.product(functions.items(), (False, True)):
        program = Program(3)
        a, b = program.buffer(70), program.buffer(70)
        program.product(linear, a, b, activation=name, add=add)
        a.copy_(x), b.fill_(2.0)
        program.run(3)
        wanted = function(x.double()) + (2.0 if add else 0.0)
        torch.testing.assert_close(b.double(), wanted, atol=1e-6, rtol=1e-5)
    program = Program(3)
    a, b = program.buffer(70), program.buffer(35)
    program.swiglu(a, b)
    a.copy_(x)
    program.run(3)
    gate, value = x.double().chunk(2, 1)
    torch.testing.assert_close(b.double(), nn.functional.silu(gate) * value, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=SHAPES)
def model(request):
    torch.manual_seed(0)
    shape = {"decoder_dim": 128, "nhead": 2, "num_decoder_layers": 2, **SHAPES[request.param]}
    model = build_model("codec-lm", shape, INFO, {"text": TEXT}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.05)
        else:
            nn.init.uniform_(p, 0.5, 1.5)
    return model


def conditions_of(model, lengths=(5, 3, 9)) -> dict:
    texts = [torch.arange(n) % 7 for n in lengths]
    return {"text": Padded.of([t[:, None] for t in texts], 1)} if model.conditions else {}


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_steps_are_those_of_the_modules(model, threads):
    """In float32, where only the order of sums differs; any number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given = conditions_of(model)
        small = with_weights_in(copy.deepcopy(model), torch.float32, kernels="native")
        states = [m.begin(given, 3, 30) for m in (model, small)]
        for _ in range(30):
            inputs = torch.randint(41, (3, 1, 4))
            (plain, end), (made, other_end) = (
                m.step(inputs, state) for m, state in zip((model, small), states)
            )
            torch.testing.assert_close(made, plain, atol=3e-5, rtol=1e-4)
            torch.testing.assert_close(other_end, end, atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)
    kinds = [type(state.stepper).__name__ for state in states]
    assert kinds == ["Stepper", "NativeStepper"]


@pytest.mark.parametrize("lengths", [(5, 3, 9), (1, 1, 1)])
def test_greedy_codes_are_those_of_the_modules_and_of_each_alone(model, lengths):
    given = conditions_of(model, lengths)
    options = {"max_frames": 25, "min_frames": 25, "temperature": 0.0}
    small = with_weights_in(copy.deepcopy(model), torch.float32, kernels="native")
    plain = model.generate(conditions=given, batch_size=3, **options)
    made = small.generate(conditions=given, batch_size=3, **options)
    assert torch.equal(made.codes, plain.codes)
    for form in ("bf16", "int8"):
        small = with_weights_in(copy.deepcopy(model), torch.bfloat16, form == "int8", "native")
        made = small.generate(conditions=given, batch_size=3, **options)
        text = {kind: texts.map(lambda part: part[1:2]) for kind, texts in given.items()}
        alone = small.generate(conditions=text, batch_size=1, rows=[1], **options)
        assert torch.equal(alone.codes[0], made.codes[1])


FILTERS = [
    dict(),
    dict(temperature=0.7),
    dict(top_k=1),
    dict(top_k=50),
    dict(top_k=5000),
    dict(top_p=0.9),
    dict(top_p=0.1, temperature=1.5),
    dict(min_p=0.05),
    dict(top_k=20, top_p=0.8, min_p=0.02),
    dict(top_p=0.95, min_p=0.3),
    dict(level_temperatures=(1.0, 0.0, 0.5)),
]


@pytest.mark.parametrize("config", FILTERS, ids=str)
@pytest.mark.parametrize("codes", [7, 16, 1030])
def test_draws_are_those_of_the_plain_sums(config, codes, monkeypatch):
    torch.manual_seed(0)
    config = SamplingConfig(**config)
    logits = torch.randn(40, 4, codes) * torch.logspace(-1, 1, 40)[:, None, None]
    logits[3, :, 5:] = -torch.inf
    uniform = torch.rand(40, 4)
    uniform[0], uniform[1] = 0, 1 - 2**-24
    monkeypatch.setattr(native, "usable", lambda: True)
    made = sample(logits, uniform, config, 1)
    one = sample(logits[:, 0], uniform[:, 0], config, 1)
    monkeypatch.setattr(native, "usable", lambda: False)
    plain = sample(logits, uniform, config, 1)
    assert torch.equal(one, made[:, 0])
    assert (made[3] < 5).all()
    # at the very border between two codes sums in another order may say otherwise
    assert (made != plain).sum() <= 1


def test_draws_among_equal_codes_keep_the_filters():
    monkeyed = torch.zeros(200, 1, 64)
    uniform = (torch.arange(200)[:, None] + 0.5) / 200
    one = torch.ones(1)
    counts = native.sample(monkeyed, uniform, one, 8, 1.0, 0.0).flatten().bincount(minlength=64)
    assert counts[:8].tolist() == [25] * 8 and counts.sum() == 200
    nucleus = native.sample(monkeyed, uniform, one, 0, 0.5, 0.0).flatten().bincount()
    assert len(nucleus) == 32 and (nucleus > 0).all()
    for hopeless in (torch.nan, -torch.inf):
        drawn = native.sample(
            torch.full((2, 3, 9), hopeless), torch.rand(2, 3), torch.ones(3), 4, 0.9, 0
        )
        assert ((drawn >= 0) & (drawn < 9)).all()


def test_what_hinders_the_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no C\\+\\+ compiler"):
        native._build()
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'native.cpp:1: strange' >&2\nexit 1\n")
    compiler.chmod(0o700)
    with pytest.raises(UserError, match=r"could not compile native\.cpp: native\.cpp:1: strange"):
        native._build()
    assert not list((tmp_path / "rvqlm").iterdir())  # nothing half made is left
    (tmp_path / "rvqlm").chmod(0o777)
    with pytest.raises(UserError, match="others can write there"):
        native._build()
