import copy

import pytest
import torch
from torch import nn
from toy import ToyModel

from rvqlm.errors import UserError
from rvqlm.training import muon
from rvqlm.training.config import OptimConfig
from rvqlm.training.muon import Muon, orthogonalize
from rvqlm.training.optim import build_optimizer
from rvqlm.training.scaled_adam import ScaledAdam


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
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: fast_bf16)
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
    for name in ("adamw", "scaled_adam", "muon"):
        model = ToyModel()
        optimizers = build_optimizer(model, OptimConfig(optimizer=name))
        assert sorted(map(id, optimizers.params)) == sorted(map(id, model.parameters()))
    part = next(o for o in optimizers.parts if isinstance(o, Muon))
    assert [p is model.hidden.weight for p in part.param_groups[0]["params"]] == [True]


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


def test_muon_is_that_of_torch():
    """In bf16, as torch's always is."""
    torch.manual_seed(0)
    start, grads = torch.randn(6, 10), torch.randn(4, 6, 10)
    results = []
    for make in (
        lambda p: Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2),
        lambda p: torch.optim.Muon(
            [p], lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"
        ),
    ):
        p = nn.Parameter(start.clone())
        optimizer = make(p)
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(results[0], results[1], atol=0.02, rtol=0.02)


def naive_scaled_adam(p, grads, lr, betas, eps):
    """The formulas of the paper, for one tensor in float64."""
    p, n = p.double(), p.numel()
    mean = square = torch.zeros_like(p)
    scale_mean = scale_square = 0.0
    for t, g in enumerate(grads.double(), 1):
        size = float((p**2).mean().sqrt().clamp(1e-5, 3.0))
        along = float((p * g).sum())
        mean = betas[0] * mean + (1 - betas[0]) * g
        square = betas[1] * square + (1 - betas[1]) * g * g
        corrected = (mean / (1 - betas[0] ** t)) / ((square / (1 - betas[1] ** t)).sqrt() + eps)
        if n == 1:
            p = p - 0.1 * lr * corrected
            continue
        scale_mean = betas[0] * scale_mean + (1 - betas[0]) * along
        scale_square = betas[1] * scale_square + (1 - betas[1]) * along**2
        root = (scale_square / (1 - betas[1] ** t)) ** 0.5 + eps
        step = 0.1 * lr * (scale_mean / (1 - betas[0] ** t)) / root
        p = p * (1 - max(-0.1, min(0.1, step))) - lr * size * corrected
    return p


@pytest.mark.parametrize("shape", [(5, 7), (9,), (1,)])
def test_scaled_adam_is_the_formula(shape):
    torch.manual_seed(0)
    start, grads = torch.randn(shape) * 4, torch.randn(6, *shape)
    p = nn.Parameter(start.clone())
    optimizer = ScaledAdam([p], lr=0.3, betas=(0.8, 0.9))
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
    expected = naive_scaled_adam(start, grads, 0.3, (0.8, 0.9), 1e-8)
    torch.testing.assert_close(p.detach(), expected.float(), rtol=1e-4, atol=1e-5)


def test_scaled_adam_learns_at_any_scale_of_the_weights():
    """Whatever the size that a matrix begins with, it moves by like shares of it."""
    torch.manual_seed(0)
    x, target = torch.randn(64, 8), torch.randn(8, 4)
    for scale in (0.01, 1.0):
        w = nn.Parameter(torch.randn(8, 4) * scale)
        optimizer = ScaledAdam([w], lr=0.05)
        losses = []
        for _ in range(400):
            loss = ((x @ w - x @ target) ** 2).mean()
            w.grad = torch.autograd.grad(loss, w)[0]
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]


def test_embeddings_have_their_own_rate():
    model = ToyModel()
    optimizers = build_optimizer(model, OptimConfig(base_lr=0.1, embedding_lr=0.02))
    optimizers.set_factor(0.5)
    rates = {id(p): g["lr"] for g in optimizers.parts[0].param_groups for p in g["params"]}
    assert rates.pop(id(model.embed.weight)) == 0.01
    assert set(rates.values()) == {0.05}


@pytest.mark.parametrize("name", ["adamw", "muon", "scaled_adam"])
def test_flags_stand_above_the_checkpoint_and_moments_do_not(name):
    def run(optimizers, model, steps):
        for _ in range(steps):
            for p in optimizers.params:
                p.grad = torch.randn(p.shape)
            optimizers.step()
        return [p.detach().clone() for p in model.parameters()]

    torch.manual_seed(0)
    first, second = ToyModel(), ToyModel()
    one = build_optimizer(first, OptimConfig(optimizer=name, base_lr=0.1))
    one.set_factor(1.0)
    run(one, first, 3)
    second.load_state_dict(first.state_dict())
    two = build_optimizer(second, OptimConfig(optimizer=name, base_lr=0.1))
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # as from a file: nothing shared
    two.set_factor(1.0)
    torch.manual_seed(1)
    a = run(one, first, 3)
    torch.manual_seed(1)
    b = run(two, second, 3)
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    three = build_optimizer(second, OptimConfig(optimizer=name, base_lr=0.7))
    three.load_state_dict(one.state_dict())
    three.set_factor(0.5)
    assert {g["lr"] for o in three.parts for g in o.param_groups} == {0.35}
    with pytest.raises(UserError, match="--embedding-lr"):
        build_optimizer(second, OptimConfig(optimizer=name, embedding_lr=0.1)).load_state_dict(
            one.state_dict()
        )
