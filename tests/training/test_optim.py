import pytest
import torch
from torch import nn
from toy import ToyModel

from rvqlm.errors import UserError
from rvqlm.training import optim
from rvqlm.training.config import OptimConfig
from rvqlm.training.optim import Muon, build_optimizer, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (4, 9), (9, 4), (3, 6, 5), (2, 3, 5, 6)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(*shape[:-2], max(shape[-2:]), min(shape[-2:]))).Q
    x = q * torch.logspace(0, -1.5, q.shape[-1])  # known singular vectors, values 1 .. 0.03
    x = x if shape[-2] >= shape[-1] else x.mT
    y = orthogonalize(x)
    assert y.shape == x.shape
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6 and values.max() < 1.3
    # same singular vectors: y^T x is symmetric and positive
    product = y.mT @ x
    torch.testing.assert_close(product, product.mT, atol=1e-5, rtol=1e-4)
    assert torch.linalg.eigvalsh(product).min() > -1e-5


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_muon_is_the_formula(fast_bf16, monkeypatch):
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: fast_bf16)
    dtype = torch.bfloat16 if fast_bf16 else torch.float32
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    naive, buffer = weight.detach().clone(), torch.zeros(4, 6)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        grad = torch.randn(4, 6)
        weight.grad = grad.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * grad
        update = orthogonalize(0.1 * grad + 0.9 * buffer, dtype)
        naive = naive * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 6**0.5 * update
        torch.testing.assert_close(weight.detach(), naive)


def test_every_parameter_belongs_to_one_optimizer():
    for name in ("adamw", "muon"):
        model = ToyModel()
        optimizers = build_optimizer(model, OptimConfig(optimizer=name))
        assert sorted(map(id, optimizers.params)) == sorted(map(id, model.parameters()))
    muon = next(o for o in optimizers.parts if isinstance(o, Muon))
    assert [p is model.hidden.weight for p in muon.param_groups[0]["params"]] == [True]


def test_vectors_are_not_decayed():
    model = ToyModel()
    optimizers = build_optimizer(model, OptimConfig(weight_decay=0.3))
    decay = {
        id(p): g["weight_decay"] for g in optimizers.parts[0].param_groups for p in g["params"]
    }
    assert all(decay[id(p)] == (0.3 if p.ndim >= 2 else 0.0) for p in model.parameters())


def test_muon_without_hidden_matrices_is_refused():
    model = ToyModel()
    model.muon_parameters = lambda: []
    with pytest.raises(UserError, match="toy names no hidden matrices"):
        build_optimizer(model, OptimConfig(optimizer="muon"))
