"""Weights in 16 bits: the products they are of, and a model that generates with them."""

import copy

import pytest
import torch
from torch import nn

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.factory import build_model
from rvqlm.modules.packed import PackedLinear, PackedLinearHeads, with_weights_in
from rvqlm.runtime import has_fast_bf16

pytestmark = pytest.mark.skipif(
    not has_fast_bf16(torch.device("cpu")), reason="this CPU does not multiply bf16"
)
INFO = CodecInfo("toy", "0" * 16, 16000, 320, 4, 40)
TEXT = ConditionInfo("text", (7,), rate=2.0)
MODELS = {
    "delay": ("codec-lm", {}),
    "flatten": ("codec-lm", {"pattern": "flatten", "activation": "relu"}),
    "depth": ("codec-lm", {"pattern": "parallel", "head": "depth", "activation": "swiglu"}),
    "cross": ("codec-lm", {"conditions": ("text",), "fusion": "cross", "norm": "rmsnorm"}),
    "spread": ("codec-lm", {"conditions": ("text",), "fusion": "spread", "norm_first": False}),
    "valle": ("valle", {"add_prenet": True, "share_embedding": True}),
    "masked": ("masked", {}),
}


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


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_16_bits_says_nearly_the_same_and_generates(name):
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
    batch = Batch.from_codes(list(torch.randint(40, (2, 12, 4))))
    batch.conditions.update(given)
    small = with_weights_in(copy.deepcopy(model), torch.bfloat16)
    assert with_weights_in(model, torch.float32) is model
    kinds = {type(module) for module in small.modules()}
    assert PackedLinear in kinds
    assert (PackedLinearHeads in kinds) == (name != "depth")
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
        assert 0 < error < 0.02
