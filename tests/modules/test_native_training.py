"""Kernels of training: values and gradients against plain sums in float64; where they are used, and
what is said where they cannot be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.models.factory import build_model
from rvqlm.modules import native_training
from rvqlm.modules.attention import BlockInputs, RotaryTable, rotate
from rvqlm.modules.documents import Documents
from rvqlm.modules.fused_loss import fused_loss
from rvqlm.modules.native_training import Part, attend, attend_each, gelu, project

CPU = torch.device("cpu")
native = pytest.mark.skipif(bool(native_training.missing()), reason=native_training.missing())
INFO = CodecInfo("toy", "0" * 16, 16000, 320, 4, 40)


def plainly(qkv, cos, sin, kv_heads, key_mask, causal, prefix):
    """`attend` in the type of ``qkv``, all scores at once, keys and values once for each query."""
    heads = qkv.shape[2] - 2 * kv_heads
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 2)
    k, v = (x.repeat_interleave(heads // kv_heads, 2) for x in (k, v))
    q, k = (rotate(x, cos.to(x), sin.to(x)).transpose(1, 2) for x in (q, k))
    S = q.shape[2]
    seen = torch.ones(S, S, dtype=torch.bool)
    if causal:
        seen = seen.tril() | (torch.arange(S) < prefix)
    if key_mask is not None:
        seen = seen & key_mask[:, None, None, :]
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def distance(found, wanted) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def attention_case(B, S, H, J, D, masked=False, fractions=False):
    torch.manual_seed(0)
    qkv = torch.randn(B, S, H + 2 * J, D).bfloat16()
    table = RotaryTable(D, 10000.0)
    cos, sin = table(0, S, CPU)
    if fractions:  # places of their own for each item
        cos, sin = table.at(torch.rand(B, S) * S)
    mask = None
    if masked:
        mask = torch.arange(S) < torch.tensor([S, *[S // 2 + 1] * (B - 1)])[:, None]
        mask[-1, 1] = False  # a hole
    return qkv, cos, sin, mask


@native
@pytest.mark.parametrize("causal,prefix", [(True, 0), (True, 9), (True, 70), (False, 0)])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 150, 3, 3, 64),
        (3, 33, 4, 2, 32),
        (1, 130, 3, 1, 10),
        (2, 5, 1, 1, 2),
        (2, 71, 1, 1, 144),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention(shape, causal, prefix, masked):
    qkv, cos, sin, mask = attention_case(*shape, masked, fractions=prefix == 9)
    B, S, H, J, D = shape
    prefix = min(prefix, S)
    grad = torch.randn(B, S, H, D).bfloat16()
    qkv.requires_grad_()
    made = attend(qkv, cos, sin, J, mask, causal, prefix)
    exact = qkv.detach().double().requires_grad_()
    wanted = plainly(exact, cos, sin, J, mask, causal, prefix)
    assert made.dtype == torch.bfloat16 and distance(made, wanted) < 0.006
    (found,) = torch.autograd.grad(made, qkv, grad)
    (expected,) = torch.autograd.grad(wanted, exact, grad.double())
    for part, wanted in zip(found.split([H, J, J], 2), expected.split([H, J, J], 2)):
        if wanted.norm() > 1e-9:  # of a single key queries have no gradient
            assert distance(part, wanted) < 0.01


@native
def test_attention_is_the_same_on_any_number_of_threads_and_in_any_batch():
    qkv, cos, sin, mask = attention_case(3, 100, 2, 1, 48, masked=True)
    mask[:, 90:] = False
    grad, found, before = torch.randn(3, 100, 2, 48).bfloat16(), [], torch.get_num_threads()
    qkv.requires_grad_()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            made = attend(qkv, cos, sin, 1, mask, True)
            found.append((made, *torch.autograd.grad(made, qkv, grad)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    alone = attend(qkv[2:], cos, sin, 1, mask[2:], True)
    assert torch.equal(alone, found[0][0][2:])
    # keys that none may see are as good as none
    shorter = attend(qkv[:, :90], cos[:90], sin[:90], 1, mask[:, :90], True)
    assert torch.equal(shorter, found[0][0][:, :90])


@native
def test_batches_in_a_row_are_attended_each_alone():
    cases = [attention_case(2, 40, 2, 1, 16, masked=True), attention_case(3, 1, 2, 1, 16)]
    found, parts = [], []
    for (qkv, cos, sin, mask), order in zip(cases, ((True, 7), (False, 0))):
        y = attend(qkv.requires_grad_(), cos, sin, 1, mask, *order)
        found.append((y.flatten(0, 1), torch.autograd.grad(y.square().sum(), qkv)[0].flatten(0, 1)))
        parts.append(Part(qkv.shape[:2], cos, sin, mask, *order))
    row = torch.cat([qkv.detach().flatten(0, 1) for qkv, *_ in cases])[None].requires_grad_()
    y = attend_each(row, 1, parts)
    made = y[0], torch.autograd.grad(y.square().sum(), row)[0][0]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(made, zip(*found)))


@native
@pytest.mark.parametrize("causal", [True, False])
def test_sequences_in_a_row_are_attended_each_alone(causal):
    lead = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    docs = Documents(torch.tensor([[0, 20], [0, 13], [1, 30]]), 30, lead=lead)  # rows of 36, 33
    qkv, cos, sin, _ = attention_case(2, 36, 2, 1, 16, fractions=True)
    seen = torch.ones(2, 36, dtype=torch.bool)
    seen[0, 1] = seen[1, 2] = False
    a = BlockInputs((2, 36), cos, sin, causal, key_mask=seen, documents=docs)
    y = attend_each(qkv.requires_grad_(), 1, a.natively)
    exact = qkv.detach().double().requires_grad_()
    q, k, v = exact.split([2, 1, 1], 2)
    q, k = (rotate(x, cos.to(x), sin.to(x)) for x in (q, k))
    q, k, v = (x.transpose(1, 2).expand(-1, 2, -1, -1) for x in (q, k, v))
    want = docs.attend(q, k, v, causal, 0.0, seen).transpose(1, 2)
    weights = torch.randn(want.shape).bfloat16()
    found = y, *torch.autograd.grad((y * weights).sum(), qkv)
    wanted = want, *torch.autograd.grad((want * weights).sum(), exact)
    assert all(distance(*pair) < 0.01 for pair in zip(found, wanted))


@native
def test_what_is_no_number_is_seen():
    qkv, cos, sin, _ = attention_case(2, 70, 2, 2, 16)
    qkv[0, 66, 1, 3] = torch.nan  # a query
    made = attend(qkv, cos, sin, 2, None, True)
    assert made.isnan().any(-1).nonzero().tolist() == [[0, 66, 1]]
    with torch.no_grad():
        qkv[1, 0, 4:] = torch.inf  # the first values, which all steps take
    assert not attend(qkv, cos, sin, 2, None, True)[1].isfinite().any()


@native
@pytest.mark.parametrize("rows,inputs,outputs", [(37, 64, 48), (1, 32, 16), (250, 96, 208)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products(rows, inputs, outputs, dtype, monkeypatch):
    monkeypatch.setattr(native_training, "_has_amx", lambda: False)
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=False)
    x = torch.randn(1, rows, inputs).to(dtype).requires_grad_()
    grad, before, found = torch.randn(1, rows, outputs).bfloat16(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.autocast("cpu", torch.bfloat16):
                made = project(linear, x)
            assert "_Project" in type(made.grad_fn).__name__
            found.append((made, *torch.autograd.grad(made, (x, linear.weight), grad)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
    made, grad_x, grad_weight = found[0]
    assert made.dtype == torch.bfloat16 and grad_x.dtype == dtype
    assert grad_weight.dtype == torch.float32
    rounded, weight = x.detach().bfloat16().double(), linear.weight.detach().bfloat16().double()
    flat, grad = rounded[0], grad[0].double()
    assert distance(made[0], flat @ weight.T) < 0.003  # all else is the rounding of the result
    assert distance(grad_x[0], grad @ weight) < (1e-6 if dtype == torch.float32 else 0.003)
    assert distance(grad_weight, grad.T @ flat) < 1e-6


def judged_plainly(hidden, weight, targets, factors, smoothing):
    """nats, highest probability and mean log p of all cells, and gradients, in float64."""
    hidden = hidden.double().requires_grad_()
    weight = weight.bfloat16().double().requires_grad_()
    states = hidden if hidden.ndim == 3 else hidden[:, None]
    log_p = (states[:, :, None] @ weight.mT).squeeze(2).log_softmax(-1)
    nats = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    mean = log_p.mean(-1)
    ((targets >= 0) * factors * ((1 - smoothing) * nats - smoothing * mean)).sum().backward()
    return (nats, log_p.amax(-1).exp(), mean), (hidden.grad, weight.grad)


@native
@pytest.mark.parametrize(
    "rows,levels,codes,width,own_states,smoothing",
    [(1, 1, 16, 32, False, 0), (75, 3, 48, 64, True, 0.1), (97, 2, 1040, 32, False, 0.2)],
)
def test_classifiers(rows, levels, codes, width, own_states, smoothing, monkeypatch):
    torch.manual_seed(0)
    hidden = torch.randn(rows, *([levels] if own_states else []), width).bfloat16()
    weight = torch.randn(levels, codes, width)
    targets = torch.randint(codes, (rows, levels))
    factors = torch.rand(rows, levels) * (torch.rand(rows, levels) < 0.8)  # 0, and yet it counts
    targets[:, -1][torch.arange(rows) % 5 == 2] = -1
    given = hidden, weight, targets, factors, smoothing
    before, found = torch.get_num_threads(), []
    try:
        for threads, at_once in ((1, 1 << 22), (3, 1 << 22), (2, 40 * codes)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(native_training, "LOGITS", at_once)
            grad = torch.ones_like(weight)
            grad = torch.ones_like(weight)
            made = native_training.classify(*given, grad, add=len(found) < 2)
            found.append((*made, grad - 1 if len(found) < 2 else grad))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found[:2]))
    cells, grads = judged_plainly(*given)
    counts = targets >= 0
    for *made, grad_hidden, grad_weight in found:
        for value, wanted in zip((made[0], *made[2:]), cells):
            torch.testing.assert_close(value[counts].double(), wanted[counts], rtol=1e-5, atol=1e-5)
            assert not value[~counts].any()
        # all else is the rounding of the gradient by the logits
        assert distance(grad_hidden, grads[0]) < 0.004 and distance(grad_weight, grads[1]) < 0.004
    alone = native_training.classify(*given)
    assert alone.grad_hidden is None and all(map(torch.equal, alone[:4], found[0][:4]))
    with pytest.raises(IndexError, match=f"of {codes} codes"):
        native_training.classify(hidden, weight, targets + codes, factors)


@native
def test_classifiers_count_no_ties_and_show_what_is_no_number():
    weight = torch.ones(1, 16, 32)
    weight[0, 3] = 2.0
    hidden = torch.ones(4, 32).bfloat16()
    hidden[3, 5] = torch.nan
    targets = torch.tensor([[3], [4], [0], [3]])
    tied = native_training.classify(hidden, weight * 0, targets, torch.ones(4, 1))
    assert not tied.hits.any()
    made = native_training.classify(hidden, weight, targets, torch.ones(4, 1))
    assert made.hits.flatten().tolist() == [1, 0, 0, 0]
    assert made.nats[:3].isfinite().all() and made.nats[3].isnan()


@native
@pytest.mark.parametrize("share", [1.0, 0.9, 0.2])
@pytest.mark.parametrize("states", ["frame", "level", "shared"])
def test_losses(states, share, monkeypatch):
    """Dense, with rows that have no cell, and cell by cell; with weights of cells and levels."""
    monkeypatch.setattr(native_training, "_has_amx", lambda: False)
    torch.manual_seed(0)
    N, K, V, d = 60, 3, 48, 64
    hidden = torch.randn(N, d) if states == "frame" else torch.randn(N, K, d)
    weight = torch.randn(1 if states == "shared" else K, V, d)
    targets = torch.randint(V, (N, K))
    valid = torch.rand(N, K) * (torch.rand(N, K) < share)
    valid[7] = 0
    targets[valid == 0] = 1000  # anything
    level_weights = torch.tensor([1.0, 0.0, 2.5])
    rounded = hidden.bfloat16().double().requires_grad_()
    plain = weight.bfloat16().double().requires_grad_()
    asked = targets.where(valid > 0, 0)
    logits = (rounded if rounded.ndim == 3 else rounded[:, None])[:, :, None] @ plain.mT
    log_p = logits.squeeze(2).log_softmax(-1)
    nats = -log_p.gather(-1, asked[..., None]).squeeze(-1)
    wanted = (valid * level_weights * (0.9 * nats - 0.1 * log_p.mean(-1))).sum()
    grads = torch.autograd.grad(wanted, (rounded, plain))
    calls, classify = [], native_training.classify
    monkeypatch.setattr(
        native_training,
        "classify",
        lambda *given, **how: calls.append(1) or classify(*given, **how),
    )
    h, w = hidden.requires_grad_(), nn.Parameter(weight)
    with torch.autocast("cpu", torch.bfloat16):
        made = fused_loss(h, w, targets, valid, level_weights, 0.1)
    assert calls
    found = torch.autograd.grad(made.loss, (h, w))
    torch.testing.assert_close(made.loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(made.sums["nats"].double(), (nats * valid).sum(0), rtol=1e-5, atol=0)
    hits = (log_p.argmax(-1) == asked) * valid
    torch.testing.assert_close(made.sums["accuracy"], hits.sum(0))
    assert all(distance(*pair) < 0.005 for pair in zip(found, grads))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cells = fused_loss(h, w, targets, valid, level_weights, 0.1).cells
    torch.testing.assert_close(cells.double(), nats * valid, rtol=1e-5, atol=1e-5)


@native
def test_gelu():
    x = torch.cat([torch.linspace(-20, 20, 1001), torch.tensor([0.0, 1e-30, torch.nan])]).bfloat16()
    exact, x = x.double().requires_grad_(), x.requires_grad_()
    for function in (gelu, F.gelu):
        made, wanted = function(x), F.gelu(exact)
        assert ("_Gelu" in type(made.grad_fn).__name__) == (function is gelu)
        found = made, *torch.autograd.grad(made.sum(), x)
        expected = wanted, *torch.autograd.grad(wanted.sum(), exact)
        for value, other in zip(found, expected):
            torch.testing.assert_close(value.double(), other, rtol=2**-8, atol=2e-6, equal_nan=True)


@native
def test_what_does_not_suit_the_kernels_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(native_training, "_has_amx", lambda: False)
    x = torch.randn(2, 3, 32)

    def function(linear) -> str:
        return type(project(linear, x).grad_fn).__name__

    suited = nn.Linear(32, 16, bias=False)
    assert "Project" not in function(suited)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert "Project" in function(suited)
        assert "Project" not in function(nn.Linear(32, 16))
        assert "Project" not in function(nn.Linear(32, 17, bias=False))
        with native_training.without():
            assert "Project" not in function(suited)
        monkeypatch.setattr(native_training, "_has_amx", lambda: True)
        assert "Project" not in function(suited)
        monkeypatch.setattr(native_training, "_has_amx", lambda: False)
        calls = []
        suited.register_forward_hook(lambda *_: calls.append(1))
        project(suited, x)
        assert calls
    qkv, *_ = attention_case(1, 4, 2, 2, 16)
    assert native_training.attends(qkv, 0.0)
    assert not native_training.attends(qkv, 0.1)
    assert not native_training.attends(qkv.float(), 0.0)


@native
@pytest.mark.parametrize(
    "name,flags",
    [
        ("codec-lm", {}),
        ("codec-lm", {"norm_first": False, "activation": "swiglu", "norm": "rmsnorm"}),
        ("codec-lm", {"activation_checkpointing": True, "kv_heads": 1}),
        ("masked", {}),
        ("valle", {}),
    ],
)
def test_models_learn_the_same(name, flags):
    """As far from float32 as torch's kernels are."""
    shape = {"decoder_dim": 64, "nhead": 2, "num_decoder_layers": 2}
    torch.manual_seed(0)
    model = build_model(name, {**shape, **flags}, INFO, {})
    for p in model.parameters():  # branches begin at zero
        nn.init.normal_(p, std=0.1) if p.ndim > 1 else None
    batch = Batch.from_codes([torch.randint(40, (n, 4)) for n in (50, 31)])

    def gradients(dtype=torch.bfloat16):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(batch).loss
        loss.backward()
        return loss.detach(), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )

    exact, found = gradients(torch.float32), gradients()
    with native_training.without():
        wanted = gradients()
    assert F.cosine_similarity(found[1], exact[1], 0) > 0.995
    for value, other in zip(found, wanted):
        torch.testing.assert_close(value, other, rtol=0.05, atol=0.05 * float(exact[1].abs().max()))
    assert not torch.equal(found[1], wanted[1])  # they were used


def test_choice(monkeypatch):
    choose = native_training.choose
    with native_training.without():  # what was chosen before comes back
        assert choose("torch", CPU, torch.bfloat16) == "" and not native_training.usable()
        assert choose("auto", CPU, torch.float32) == ""
        for device, dtype in ((CPU, torch.float32), (torch.device("cuda"), torch.bfloat16)):
            with pytest.raises(UserError, match="--kernels native: they compute in bf16 on a CPU"):
                choose("native", device, dtype)
        monkeypatch.setattr(native_training, "_library", lambda: "there is no C++ compiler")
        assert choose("auto", CPU, torch.bfloat16).endswith("slower: there is no C++ compiler")
        assert not native_training.usable()
        with pytest.raises(UserError, match=r"no C.. compiler; use --kernels torch"):
            choose("native", CPU, torch.bfloat16)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = native_training._library.__wrapped__()
    assert found == "there is no C++ compiler (g++, or what CXX names)"
