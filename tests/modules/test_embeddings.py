"""Embeddings against loops over items, steps and levels."""

import pytest
import torch
import torch.nn.functional as F

from rvqlm.modules.embeddings import INPUT_SIDES, FieldEmbedding, SumEmbedding


def naive_sum(weight, sizes, ids):
    """Sum of table rows by a loop; the tables lie one below the other."""
    B, S, fields = ids.shape
    out = torch.zeros(B, S, weight.shape[1])
    for b in range(B):
        for s in range(S):
            for f in range(fields):
                out[b, s] += weight[sum(sizes[:f]) + int(ids[b, s, f])]
    return out


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_fields_of_unequal_sizes(dtype):
    torch.manual_seed(0)
    sizes = (5, 2, 9)
    embedding = FieldEmbedding(sizes, 6)
    ids = torch.stack([torch.randint(n, (2, 4)) for n in sizes], -1).to(dtype)
    want = naive_sum(embedding.weight, sizes, ids)
    torch.testing.assert_close(embedding(ids), want)
    direction = torch.randn(2, 4, 6)
    (grad,) = torch.autograd.grad((embedding(ids) * direction).sum(), embedding.weight)
    (want_grad,) = torch.autograd.grad((want * direction).sum(), embedding.weight)
    torch.testing.assert_close(grad, want_grad)


def test_padding_leaves_the_other_steps_alone():
    embedding = FieldEmbedding((5, 2), 6)
    ids = torch.tensor([[[4, 1], [3, 0], [-1, -1]]])
    out = embedding(ids)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :2], embedding(ids[:, :2]))


@pytest.mark.parametrize("shape", [(2, 0, 2), (0, 3, 2)])
def test_nothing_to_look_up_keeps_the_weight_in_the_graph(shape):
    embedding = FieldEmbedding((5, 2), 6)
    out = embedding(torch.zeros(shape, dtype=torch.int32))
    assert out.shape == (*shape[:2], 6)
    out.sum().backward()
    assert embedding.weight.grad is not None and not embedding.weight.grad.any()


def test_sum_over_levels():
    torch.manual_seed(0)
    K, V = 3, 5
    embedding = SumEmbedding(K, V + 1, 8)
    grid = torch.randint(V + 1, (2, 4, K))
    torch.testing.assert_close(embedding(grid), naive_sum(embedding.weight, (V + 1,) * K, grid))


def make(kind, K=3, ids=12, dim=8, shaken=True):
    torch.manual_seed(0)
    embedding = INPUT_SIDES[kind](K, ids, dim)
    if shaken:  # some layers start at zero
        for p in embedding.parameters():
            torch.nn.init.normal_(p)
    return embedding


def code(embedding, k, i):
    """Embedding of one code plus that of its level (d,), and its norm."""
    x = embedding.weight[k * embedding.num_embeddings + i] + embedding.level[k]
    normed = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * embedding.norm.weight
    return x, normed


def naive_weighted(embedding, step):
    weights, out = embedding.level_logits.softmax(0), 0
    for k, i in enumerate(step.tolist()):
        x, normed = code(embedding, k, i)
        y = x + embedding.down.weight @ F.gelu(embedding.up.weight @ normed)
        out = out + weights[k] * y
    return out * len(step) ** 0.5


def naive_attention(embedding, step):
    normed = [code(embedding, k, i)[1] for k, i in enumerate(step.tolist())]
    parts, width = [], embedding.query.shape[1]
    for h, query in enumerate(embedding.query):
        part = slice(h * width, (h + 1) * width)
        keys = torch.stack([(embedding.key.weight @ x)[part] for x in normed])
        values = torch.stack([(embedding.value.weight @ x)[part] for x in normed])
        parts.append((keys @ query * width**-0.5).softmax(0) @ values)
    return torch.cat(parts) * len(step) ** 0.5


@pytest.mark.parametrize(
    "kind,naive", [("weighted", naive_weighted), ("attention", naive_attention)]
)
@pytest.mark.parametrize("steps", [2, 9])  # fewer and more than the ids of a table
def test_layers_over_levels(kind, naive, steps):
    embedding = make(kind).double()
    grid = torch.randint(12, (2, steps, 3))
    grid[0, 0] = 11  # the special id is one of the table
    want = torch.stack([torch.stack([naive(embedding, s) for s in item]) for item in grid])
    got = embedding(grid.int())
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    parameters = list(embedding.parameters())
    wanted = torch.autograd.grad((want * direction).sum(), parameters)
    grads = torch.autograd.grad((got * direction).sum(), parameters)
    for g, w in zip(grads, wanted):
        assert w.any()
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("kind", INPUT_SIDES)
def test_one_step_alone_equals_the_same_in_a_batch(kind):
    """Generation embeds step by step what training embeds at once."""
    embedding = make(kind)
    grid = torch.randint(12, (2, 9, 3))
    whole = embedding(grid)
    torch.testing.assert_close(
        torch.cat([embedding(grid[:, s : s + 1]) for s in range(9)], 1), whole
    )
    assert embedding(grid[:, :0]).shape == (2, 0, 8)


@pytest.mark.parametrize("kind", INPUT_SIDES)
@pytest.mark.parametrize("steps", [3, 50])
def test_unit_variance_at_the_start(kind, steps):
    embedding = make(kind, K=4, ids=300, dim=64, shaken=False)
    assert 0.8 < embedding(torch.randint(300, (16, steps, 4))).var() < 1.25


def test_unit_variance_of_fields():
    assert 0.8 < FieldEmbedding((300, 9), 64)(torch.randint(9, (8, 50, 2))).var() < 1.25


@pytest.mark.parametrize("kind", INPUT_SIDES)
@pytest.mark.parametrize("steps", [3, 50])
def test_autocast_leaves_the_stream_in_float32(kind, steps):
    """bf16 layers, but a residual stream that starts in the precision of the weights."""
    embedding, grid = make(kind), torch.randint(12, (1, steps, 3))
    with torch.autocast("cpu", torch.bfloat16):
        out = embedding(grid)
    assert out.dtype == torch.float32
    want = embedding(grid)
    assert (out - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("kind", INPUT_SIDES)
def test_matrices_for_muon_are_hidden_ones(kind):
    embedding = make(kind)
    matrices = embedding.muon_matrices()
    assert all(m.ndim == 2 and m is not embedding.weight for m in matrices)
    assert len(matrices) == (0 if kind == "sum" else 2)


def test_bad_options():
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4 heads"):
        INPUT_SIDES["attention"](3, 12, 6)


@pytest.mark.parametrize("side", INPUT_SIDES)
@pytest.mark.parametrize("dim, width", [(5, 16), (16, 16), (24, 16)])
def test_tables_begin_as_given_vectors(side, dim, width):
    """Distances are those of the vectors; of more dimensions than there is room for, nearly."""
    torch.manual_seed(0)
    K, V = 3, 40
    scale = torch.cat([torch.ones(min(dim, width)), torch.full((max(0, dim - width),), 0.01)])
    vectors = torch.randn(4, V, dim) * scale[torch.randperm(dim)]  # a level more than are wanted
    vectors -= vectors.mean(1, keepdim=True)
    embedding = INPUT_SIDES[side](K, V + 1, width)
    embedding.begin_with(vectors)
    tables = embedding.weight.detach().view(K, V + 1, width)
    assert not tables[:, -1].any() and embedding.weight.requires_grad
    there, here = vectors[:K].flatten(0, 1), tables[:, :-1].flatten(0, 1)
    ratio = torch.cdist(here, here) / torch.cdist(there, there).clamp(min=1e-9)
    ratio = ratio[~torch.eye(len(ratio), dtype=torch.bool)]
    assert (ratio / ratio.mean() - 1).abs().max() < (1e-3 if dim <= width else 0.02)
    ids = torch.randint(V, (1, 5000, K))
    sums = sum(tables[k][ids[0, :, k]] for k in range(K))
    torch.testing.assert_close(sums.var(0).mean(), torch.tensor(1.0), atol=0.1, rtol=0)
