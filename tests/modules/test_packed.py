"""Weights in fewer bits: the products they are of, and a model that generates with them."""

import copy

import pytest
import torch
from torch import nn

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.models.factory import build_model
from rvqlm.modules import native
from rvqlm.modules.heads import LinearHeads, TrunkHeads
from rvqlm.modules.native import NativeLinear
from rvqlm.modules.packed import (
    Int8Linear,
    PackedLinear,
    PackedLinearHeads,
    pick_kernels,
    quantized,
    rounded_to_int8,
    with_weights_in,
)
from rvqlm.runtime import has_fast_bf16

INFO = CodecInfo("toy", "0" * 16, 16000, 320, 4, 40)
TEXT = ConditionInfo("text", (7,), rate=2.0)
MODELS = {
    "delay": ("codec-lm", {}),
    "flatten": ("codec-lm", {"pattern": "flatten", "activation": "relu"}),
    "depth": ("codec-lm", {"pattern": "parallel", "head": "depth", "activation": "swiglu"}),
    "mlp": ("codec-lm", {"head": "mlp", "activation": "relu2"}),
    "residual": ("codec-lm", {"head": "residual", "nhead": 4}),
    "cross": ("codec-lm", {"conditions": ("text",), "fusion": "cross", "norm": "rmsnorm"}),
    "by_time": (
        "codec-lm",
        {"conditions": ("text",), "fusion": "cross", "cross_by_time": True, "norm_first": False},
    ),
    "spread": ("codec-lm", {"conditions": ("text",), "fusion": "spread", "norm_first": False}),
    "valle": ("valle", {"add_prenet": True, "share_embedding": True}),
    "masked": ("masked", {}),
}
KERNELS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(bool(native.missing()), reason=native.missing())
    ),
    "torch",
]
bf16 = pytest.mark.skipif(
    not has_fast_bf16(torch.device("cpu")), reason="this CPU does not multiply bf16"
)


def model_of(name: str) -> tuple[nn.Module, dict]:
    """With its conditions for two items."""
    torch.manual_seed(0)
    family, changes = MODELS[name]
    shape = {"decoder_dim": 128, "nhead": 2, "num_decoder_layers": 2, **changes}
    model = build_model(family, shape, INFO, {"text": TEXT}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.05)
    given = {}
    if model.conditions:
        given = {"text": Padded.of([torch.randint(7, (n,)) for n in (5, 3)], 1)}
    return model, given


@bf16
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("then", ["none", "gelu", "relu"])
def test_a_product_is_that_of_the_rounded_weights(rows, then):
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 160), torch.randn(rows, 1, 96)
    packed = PackedLinear(linear.weight, linear.bias, torch.bfloat16)
    weight, bias, rounded = (t.bfloat16().float() for t in (linear.weight, linear.bias, x))
    wanted = nn.functional.linear(rounded, weight, bias)
    torch.testing.assert_close(packed(x), wanted, atol=0.02, rtol=0.01)
    wanted = wanted if then == "none" else getattr(nn.functional, then)(wanted)
    found = packed.product(x, then)
    assert found.dtype == torch.bfloat16 and packed(x).dtype == torch.float32
    torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.01)


def test_a_weight_in_8_bits_is_the_nearest():
    torch.manual_seed(0)
    weight = torch.randn(33, 50) * torch.logspace(-6, 6, 33)[:, None]
    weight[7] = 0
    integers, scale = quantized(weight)
    assert integers.dtype == torch.int8 and integers.abs().max() == 127 and not integers[7].any()
    error = (integers.double() * scale.double()[:, None] - weight).abs()
    assert (error <= scale[:, None] * 0.5001).all()
    most = integers.abs().amax(1)
    assert (most[weight.any(1)] == 127).all()


@pytest.mark.parametrize("shape", [(160, 96), (1, 64), (70, 2048)])
def test_a_product_of_8_bits_is_that_of_the_weights_they_stand_for(shape):
    """By torch, which rounds what it multiplies them with to bf16; and as on a GPU."""
    torch.manual_seed(0)
    linear, x = nn.Linear(*shape[::-1]), torch.randn(3, 2, shape[1])
    integers, scale = quantized(linear.weight)
    weight = integers.double() * scale.double()[:, None]
    wanted = x.double() @ weight.T + linear.bias.double()
    packed = Int8Linear(linear.weight, linear.bias)
    torch.testing.assert_close(packed(x).double(), wanted, atol=0.02, rtol=0.02)
    assert packed(x[:0]).shape == (0, 2, shape[0])
    elsewhere = packed.dequantizing(x)
    torch.testing.assert_close(elsewhere.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_fewer_bits_says_nearly_the_same_and_generates(name, form, kernels):
    if form == "bf16" and not has_fast_bf16(torch.device("cpu")):
        pytest.skip("this CPU does not multiply bf16")
    model, given = model_of(name)
    batch = Batch.from_codes(list(torch.randint(40, (2, 12, 4))))
    batch.conditions.update(given)
    dtype, int8 = torch.bfloat16, form == "int8"
    small = with_weights_in(copy.deepcopy(model), dtype, int8, kernels)
    wanted = NativeLinear if kernels == "native" else Int8Linear if int8 else PackedLinear
    matrices = [m for m in small.modules() if type(m) is nn.Linear]
    assert not any(m.weight.numel() >= 1 << 14 for m in matrices)
    assert wanted in {type(module) for module in small.modules()}
    for heads in (m for m in small.modules() if isinstance(m, TrunkHeads)):
        large = [p for p in heads.parameters() if p.ndim == 3 and p[0].numel() >= 1 << 14]
        assert not large
    linear = any(type(module) is LinearHeads for module in model.modules())
    assert any(type(m) is PackedLinearHeads for m in small.modules()) == linear
    options = {"conditions": given, "batch_size": 2, "max_frames": 12, "seed": 1}
    made = small.generate(**options)
    assert ((made.codes < 40) & (made.codes >= -1)).all()
    again = small.generate(**options)
    assert torch.equal(again.codes, made.codes)
    if name not in ("valle", "masked"):
        with torch.no_grad():
            full, rounded = (
                m.hidden(
                    m.shift(m.pattern.interleave(batch.codes, batch.lengths, 40)[0]),
                    batch.lengths,
                    m.encode_conditions(given, 2),
                )
                for m in (model, small)
            )
        error = (full - rounded).norm() / full.norm()
        assert 0 < error < (0.04 if int8 else 0.02)


def test_float32_by_torch_is_the_model_itself():
    model, _ = model_of("delay")
    assert with_weights_in(model, torch.float32, kernels="torch") is model
    assert any(type(m) is nn.Linear for m in model.modules())


@pytest.mark.parametrize("name", ["delay", "depth", "mlp", "valle"])
def test_rounded_as_in_8_bits(name):
    """What it costs is measured on the very weights that generation multiplies with."""
    model, _ = model_of(name)
    x, before = torch.randn(3, 128), copy.deepcopy(model)
    rounded = rounded_to_int8(copy.deepcopy(model))
    small = with_weights_in(copy.deepcopy(model), torch.float32, True, "torch")
    of_small = dict(small.named_modules())
    count = 0
    for (path, module), old in zip(rounded.named_modules(), before.modules()):
        if type(module) is nn.Linear and module.weight.numel() >= 1 << 14:
            packed = of_small[path]
            kept = packed.weight.float() * packed.scale[:, None]
            assert torch.equal(module.weight, kept) and not torch.equal(kept, old.weight)
            count += 1
        elif isinstance(module, LinearHeads):
            logits = of_small[path](x)
            torch.testing.assert_close(module(x), logits, atol=0.05, rtol=0.02)
            assert not torch.equal(module.classifiers, old.classifiers)
            count += 1
        elif isinstance(module, TrunkHeads) and module.weight[0].numel() >= 1 << 14:
            assert not torch.equal(module.weight, old.weight)
    assert count >= 8
    tables = ("embedding.weight", "tables")
    for path, p in rounded.named_parameters():
        if path.endswith(tables):
            assert torch.equal(p, before.get_parameter(path))


def test_kernels_that_cannot_be_had_are_refused(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: "there is no C++ compiler")
    cpu = torch.device("cpu")
    assert pick_kernels("auto", cpu) == pick_kernels("torch", cpu) == "torch"
    with pytest.raises(UserError, match="--kernels native: there is no C\\+\\+ compiler; use"):
        pick_kernels("native", cpu)
    with pytest.raises(UserError, match="they are of CPUs, not of cuda"):
        pick_kernels("native", torch.device("cuda"))
