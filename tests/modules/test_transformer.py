"""The transformer: causal, rotary, cached equals full, recomputed equals stored."""

import dataclasses

import pytest
import torch

from rvqlm.modules import attention
from rvqlm.modules.attention import BlockInputs, rotate, rotated
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.stepping import Stepper
from rvqlm.modules.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(dim=32, num_heads=4, num_layers=3, dim_feedforward=48)


def make(**changes):
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(CONFIG, **changes))
    for p in model.parameters():  # the init is the identity: shake it
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("norm,activation", [("rmsnorm", "gelu"), ("layernorm", "swiglu")])
def test_no_gradient_from_later_steps(norm, activation):
    model = make(norm=norm, activation=activation)
    x = torch.randn(2, 9, 32, requires_grad=True)
    for s in (0, 4, 7):
        grad = torch.autograd.grad(model(x)[:, s].sum(), x)[0]
        assert grad[:, s + 1 :].abs().max() == 0
        assert grad[:, : s + 1].abs().amax(-1).min() > 0


def test_not_causal_sees_both_sides():
    model = make(causal=False)
    x = torch.randn(1, 6, 32, requires_grad=True)
    assert torch.autograd.grad(model(x)[:, 0].sum(), x)[0][:, 5].abs().max() > 0


def test_convolution_equals_a_loop_and_padding_is_nothing():
    torch.manual_seed(0)
    d, kernel, lengths = CONFIG.dim, 5, [7, 3, 1]
    model = make(causal=False, convolution=kernel)
    module = model.layers[0].convolution
    x = torch.randn(3, 7, d)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    out = module(x, BlockInputs((3, 7), *model.rotary(0, 7, x.device), key_mask=mask))
    weight, bias = module.depthwise.weight[:, 0], module.depthwise.bias
    for b, length in enumerate(lengths):
        up = torch.stack([module.up.weight @ x[b, s] for s in range(length)])
        gated = up[:, :d] * torch.sigmoid(up[:, d:])
        for s in range(length):
            y = bias.clone()
            for j in range(kernel):
                at = s + j - kernel // 2
                if 0 <= at < length:
                    y = y + weight[:, j] * gated[at]
            y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt() * module.norm.weight
            want = module.down.weight @ (y * torch.sigmoid(y))
            torch.testing.assert_close(out[b, s], want, atol=1e-4, rtol=1e-4)
        whole = model(x, key_mask=mask)[b, :length]
        torch.testing.assert_close(whole, model(x[b : b + 1, :length])[0], atol=1e-5, rtol=1e-5)
    for changes in ({"causal": True}, {"convolution": 4}):
        with pytest.raises(ValueError, match="odd, and sees both sides"):
            make(**{"causal": False, "convolution": 5} | changes)


@pytest.mark.parametrize("activation,kv_heads", [("gelu", 0), ("relu2", 2), ("swiglu", 1)])
def test_cached_equals_full(activation, kv_heads):
    model = make(activation=activation, kv_heads=kv_heads).eval()
    x = torch.randn(2, 12, 32)
    full = model(x)
    for cuts in ([12], [1] * 12, [5, 1, 1, 5], [3, 4, 5]):
        cache, parts, start = model.make_cache(2, 12), [], 0
        for n in cuts:
            parts.append(model(x[:, start : start + n], cache=cache))
            start += n
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="holds 12"):
        model(x[:, :1], cache=cache)


def test_heads_that_share_keys_are_heads_with_the_same_keys():
    """A model with one head of keys for two of queries, and one that has them twice: values,
    gradients, steps over a cache, which holds half."""
    shared, twice = make(kv_heads=2), make()
    state = shared.state_dict()
    for name in [n for n in state if n.endswith("qkv.weight")]:
        q, k, v = state[name].view(-1, 8, 32).split([4, 2, 2])
        k, v = (x.repeat_interleave(2, 0) for x in (k, v))
        state[name] = torch.cat([q, k, v]).flatten(0, 1)
    twice.load_state_dict(state)
    x = torch.randn(2, 9, 32)
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    made = [m(x, key_mask=mask) for m in (shared, twice)]
    torch.testing.assert_close(*made)
    for y in made:
        y.square().sum().backward()
    a, b = (m.layers[0].attention.qkv.weight.grad.view(-1, 8, 32) for m in (shared, twice))
    torch.testing.assert_close(a[:4], b[:4])
    torch.testing.assert_close(a[4:], b[4:].unflatten(0, (4, 2)).sum(1))
    caches = [m.make_cache(2, 9) for m in (shared, twice)]
    steppers = [Stepper(m, cache) for m, cache in zip((shared, twice), caches)]
    for s in range(9):
        torch.testing.assert_close(*(step(x[:, s : s + 1]) for step in steppers))
    assert 2 * caches[0].steps.numel() == caches[1].steps.numel()


def test_rotary_depends_on_distance_only():
    rotary = make().rotary
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i, j):
        return (rotate(q, *rotary(i, 1, q.device)) * rotate(k, *rotary(j, 1, k.device))).sum()

    torch.testing.assert_close(score(7, 3), score(1907, 1903), atol=1e-4, rtol=1e-4)
    assert (score(7, 3) - score(7, 4)).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_exact_in_a_model_of_16_bits(dtype):
    model, there = make(), torch.arange(3000)
    exact = model.rotary.at(there)
    model(torch.ones(1, 4, 32))  # with a table made before the cast, and without
    for cast in (model.to(dtype), make().to(dtype)):
        for table, at, want in zip(
            cast.rotary(0, 3000, there.device), cast.rotary.at(there), exact
        ):
            assert at.equal(want) and table.equal(want)


@pytest.mark.parametrize("batch,kv_heads", [((), 2), ((2,), 1)])
def test_queries_and_keys_are_rotated_and_values_not(batch, kv_heads):
    """Values and gradients against `rotate`, with positions for all items and for each."""
    heads = 2, kv_heads, kv_heads
    qkv = torch.randn(2, 5, sum(heads), 6, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(*batch, 5, 3, dtype=torch.float64)
    around = angles.cos(), angles.sin()
    q, k, v = qkv.split(heads, 2)
    want = rotate(q, *around), rotate(k, *around), v
    got = rotated(qkv, *around, kv_heads)
    weights = [torch.randn_like(x) for x in want]
    (grad,) = torch.autograd.grad(got, qkv, weights)
    (want_grad,) = torch.autograd.grad(want, qkv, weights)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grad, want_grad)


@pytest.mark.parametrize("width", [16, 64])
def test_heads_begin_by_looking_back_in_turn(width, monkeypatch):
    """What a head of cross-attention sees most of is where its lag says."""
    seen = []

    def attend(q, k, v, *_, **__):
        seen.append((q @ k.mT / width**0.5).softmax(-1)[0])
        return torch.zeros_like(q)

    monkeypatch.setattr(attention, "attend", attend)
    model = Transformer(dataclasses.replace(CONFIG, dim=4 * width, cross=True, cross_lag=2))
    positions = torch.arange(40.0)[None]
    cos, sin = model.rotary.at(positions)
    for layer, block in enumerate(model.layers):
        for linear in (block.cross.query, block.cross.key_value):
            linear.weight.data *= 0.1  # and little of what it contains
        x, memory = torch.randn(2, 1, 40, 4 * width)
        read = block.cross.read(memory, cos, sin)
        block.cross(x, BlockInputs((1, 40), cos, sin, memory=read))
        for head, weights in enumerate(seen.pop()):
            lag = (4 * layer + head) % 3
            assert weights[lag:].argmax(-1).tolist() == list(range(40 - lag))


def test_recomputing_changes_no_gradient():
    grads = []
    for recompute in (False, True):
        model = make(activation_checkpointing=recompute)
        model(torch.ones(1, 4, 32)).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dim", [30, 12])
def test_heads_divide_the_width_in_pairs(dim):
    with pytest.raises(ValueError, match=f"width {dim}: no multiple of 2 x 4 heads"):
        Transformer(TransformerConfig(dim, 4, 1, 8))
    with pytest.raises(ValueError, match="4 heads: no multiple of 3 of keys"):
        make(kv_heads=3)


def test_sum_embedding_equals_naive():
    torch.manual_seed(0)
    embedding = SumEmbedding(3, 11, 5)
    grid = torch.randint(11, (2, 4, 3), dtype=torch.int16)
    tables = embedding.weight.view(3, 11, 5)
    naive = sum(tables[k][grid[:, :, k].long()] for k in range(3))
    torch.testing.assert_close(embedding(grid), naive)


def test_training_continues_after_inference_mode():
    model = make()
    with torch.inference_mode():
        model(torch.ones(1, 4, 32))
    model(torch.ones(1, 4, 32)).sum().backward()


@pytest.mark.parametrize("queries,prefix", [(11, 0), (11, 3), (7, 3), (1, 0)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_for_all_layers_hides_what_each_would(queries, prefix, padded, causal, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (queries, 11, 11))
    mask = torch.arange(11) < torch.tensor([[11], [5]]) if padded else None
    want = attention.attend(q, k, v, mask, causal, prefix)
    monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", ())
    bias = attention.bias_of(q.device, torch.bfloat16, queries, 11, mask, causal, prefix)
    needed = padded or (causal and queries > 1 and (prefix or queries < 11))
    assert (bias is not None) == bool(needed)  # the fastest kernels take none
    if needed:
        assert all(stride % 16 == 0 for stride in bias.stride()[:-1])
    torch.testing.assert_close(attention.attend(q, k, v, mask, causal, prefix, bias=bias), want)


@pytest.mark.parametrize("shape", [{"convolution": 3, "causal": False}, {}])
def test_batches_together_are_as_each_alone(shape):
    model = make(adaptive=True, cross=True, **shape).double()
    xs, given = [], []
    for B, S, M in ((2, 5, 4), (3, 1, 2)):
        x, memory = (torch.randn(B, n, 32, dtype=torch.float64) for n in (S, M))
        seen = torch.arange(S) < torch.randint(1, S + 1, (B, 1))
        how = {"key_mask": seen, "condition": torch.randn(B, 32, dtype=torch.float64)}
        how |= {"positions": torch.rand(B, S) * 9, "prefix": min(2, S - 1)}
        how["memory"] = model.read(memory, torch.rand(B, M))
        xs.append(x.requires_grad_())
        given.append(how | {"memory_mask": torch.arange(M) < torch.randint(1, M + 1, (B, 1))})
    for x, how, got in zip(xs, given, model.together(xs, given)):
        want = model(x, **how)
        torch.testing.assert_close(got, want)
        weight = torch.randn_like(want)
        grads = [torch.autograd.grad((y * weight).sum(), x, retain_graph=True) for y in (got, want)]
        torch.testing.assert_close(*grads)


def test_blocks_of_causal_attention_equal_the_whole(monkeypatch):
    monkeypatch.setattr(attention, "CPU_BLOCK", 4)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 11, 8, requires_grad=True) for _ in range(3))
    got = attention.attend(q, k, v, causal=True)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), [q, k, v]),
        torch.autograd.grad((want * weight).sum(), [q, k, v]),
    ):
        torch.testing.assert_close(a, b)
