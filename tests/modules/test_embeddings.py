"""Embeddings against loops over items, steps and levels."""

import pytest
import torch

from rvqlm.modules.embeddings import FieldEmbedding, SumEmbedding


def naive_sum(weight, sizes, ids):
    """Sum of table rows by a loop; the tables lie one below the other."""
    B, S, F = ids.shape
    out = torch.zeros(B, S, weight.shape[1])
    for b in range(B):
        for s in range(S):
            for f in range(F):
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


@pytest.mark.parametrize("embedding", [SumEmbedding(4, 300, 64), FieldEmbedding((300, 9), 64)])
def test_unit_variance_at_the_start(embedding):
    F = len(embedding.offsets)
    grid = torch.randint(9, (8, 50, F))
    assert 0.8 < embedding(grid).var() < 1.2
