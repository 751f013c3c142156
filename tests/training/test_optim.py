import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from toy import ToyModel

from rvqlm.errors import UserError
from rvqlm.modules import native_training
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.embeddings import WeightedEmbedding
from rvqlm.modules.heads import SharedLinearHeads
from rvqlm.training import muon
from rvqlm.training.config import OptimConfig
from rvqlm.training.ema import EMA
from rvqlm.training.muon import Muon, orthogonalize
from rvqlm.training.optim import build_optimizer, embedding_tables


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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has none")
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_muon_is_that_of_torch(shape, monkeypatch):
    """In bf16, as torch's always is, and in float32 but for the rounding; three matrices at once,
    where torch takes one after the other."""
    torch.manual_seed(0)
    starts, grads = torch.randn(3, *shape), torch.randn(4, 3, *shape)

    def run(make) -> torch.Tensor:
        params = [nn.Parameter(start.clone()) for start in starts]
        optimizer = make(params, lr=0.1, momentum=0.9, weight_decay=0.2)
        for step in grads:
            for p, grad in zip(params, step):
                p.grad = grad.clone()
            optimizer.step()
        return torch.stack(params).detach()

    expected = run(partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"))
    change = (expected - starts).abs().max()
    for fast_bf16, share in ((True, 0.01), (False, 0.04)):
        monkeypatch.setattr(muon, "has_fast_bf16", lambda device, fast=fast_bf16: fast)
        assert (run(Muon) - expected).abs().max() < share * change


def test_embeddings_have_their_own_rate():
    model = ToyModel()
    optimizers = build_optimizer(model, OptimConfig(base_lr=0.1, embedding_lr=0.02))
    optimizers.set_factor(0.5)
    rates = {id(p): g["lr"] for g in optimizers.parts[0].param_groups for p in g["params"]}
    assert rates.pop(id(model.embed.weight)) == 0.01
    assert set(rates.values()) == {0.05}


def test_embedding_tables_of_every_family():
    """By name, so that a table added later is not forgotten; heads and the rest are none."""
    models = {
        "weighted": WeightedEmbedding(2, 5, 8),
        "depth": DepthHeads(3, 5, 8, 8, 1, 2),
        "plain": nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4)),
        "shared": SharedLinearHeads(2, 5, 8),
    }
    expected = {
        "weighted": {"weight", "level"},
        "depth": {"tables"},
        "plain": {"0.weight"},
        "shared": set(),
    }
    for name, model in models.items():
        tables = embedding_tables(model)
        assert {n for n, p in model.named_parameters() if id(p) in tables} == expected[name]


@pytest.mark.parametrize("name", ["adamw", "muon", "scaled_adam"])
def test_embedding_lr_changes_embeddings_only(name):
    models = [ToyModel() for _ in range(3)]
    start = copy.deepcopy(models[0].state_dict())
    for model, rate in zip(models, (None, 0.01, 0.02)):
        model.load_state_dict(start)
        optimizers = build_optimizer(
            model, OptimConfig(optimizer=name, base_lr=0.01, embedding_lr=rate)
        )
        optimizers.set_factor(1.0)
        for _ in range(2):
            for p in optimizers.params:  # whatever their order: groups differ
                p.grad = p.detach().cos()
            optimizers.step()
    plain, same, other = ({k: v for k, v in m.state_dict().items()} for m in models)
    assert all(torch.equal(plain[k], same[k]) for k in plain)
    assert [k for k in plain if not torch.equal(plain[k], other[k])] == ["embed.weight"]


def test_embedding_lr_without_embeddings_is_refused():
    model = nn.Linear(3, 3)
    model.name = "toy"
    with pytest.raises(UserError, match="toy trains no embedding tables"):
        build_optimizer(model, OptimConfig(embedding_lr=0.1))


def train(optimizers, steps: int, seed: int = 0) -> None:
    """Steps on random gradients; every third parameter has one every other step only."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for n, p in enumerate(optimizers.params):
            grad = torch.randn(p.shape, generator=generator)
            p.grad = None if step % 2 and n % 3 == 0 else grad
        optimizers.step()


def saved(state):
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", ["adamw", "muon", "scaled_adam"])
def test_goes_on_bit_for_bit(name):
    config = OptimConfig(optimizer=name, base_lr=0.1)
    first, second = ToyModel(), ToyModel()
    one = build_optimizer(first, config)
    train(one, 3)
    second.load_state_dict(first.state_dict())
    two = build_optimizer(second, config)
    two.load_state_dict(saved(one.state_dict()))
    for optimizers in (one, two):
        train(optimizers, 3, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters()))
    a, b = (saved(o.state_dict()) for o in (one, two))
    for x, y in zip(a, b):
        assert x["param_groups"] == y["param_groups"] and x["state"].keys() == y["state"].keys()
        for i, of_param in x["state"].items():
            assert all(torch.equal(of_param[k], y["state"][i][k]) for k in of_param)


@pytest.mark.parametrize("name", ["adamw", "muon", "scaled_adam"])
def test_flags_stand_above_the_checkpoint(name):
    before = build_optimizer(ToyModel(), OptimConfig(optimizer=name, base_lr=0.1))
    train(before, 2)
    state = before.state_dict()
    changed = OptimConfig(
        optimizer=name, base_lr=0.7, betas=(0.1, 0.2), momentum=0.3, weight_decay=0.4, eps=0.5
    )
    after = build_optimizer(ToyModel(), changed)
    after.load_state_dict(copy.deepcopy(state))
    after.set_factor(0.5)
    for group in (g for o in after.parts for g in o.param_groups):
        assert group["lr"] == 0.35
        assert group.get("betas", (0.1, 0.2)) == (0.1, 0.2) and group.get("eps", 0.5) == 0.5
        assert group.get("momentum", 0.3) == 0.3 and group.get("weight_decay", 0) in (0, 0.4)
    with pytest.raises(UserError, match="--embedding-lr"):
        build_optimizer(ToyModel(), OptimConfig(optimizer=name, embedding_lr=0.1)).load_state_dict(
            state
        )


def test_another_optimizers_state_is_refused():
    state = build_optimizer(ToyModel(), OptimConfig()).state_dict()
    with pytest.raises(UserError, match="--optimizer"):
        build_optimizer(ToyModel(), OptimConfig(optimizer="muon")).load_state_dict(state)


@pytest.mark.skipif(bool(native_training.missing()), reason=native_training.missing())
def test_native_steps_are_those_of_torch(monkeypatch):
    """With clipping, averages, groups, and weights that some steps leave out."""
    sizes = [(40, 33), (5,), (70, 512), (1,)]
    found = []
    for native in (False, True):
        monkeypatch.setattr(native_training, "_in_use", native)
        torch.manual_seed(0)
        model = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in sizes)
        ema = EMA(model, 0.9)
        optimizers = build_optimizer(model, OptimConfig(base_lr=0.01, weight_decay=0.1))
        optimizers.set_factor(0.7)
        grads = torch.Generator().manual_seed(1)
        for step in range(12):
            for n, p in enumerate(model):
                grad = torch.randn(p.shape, generator=grads)
                p.grad = None if step % 3 == 1 and n == 2 else grad
            optimizers.step(0.3, ema)
        state = optimizers.state_dict()[0]["state"]
        moments = [t for of_weight in state.values() for t in of_weight.values()]
        found.append([*model, *ema.average, *moments])
        if native:
            norm = native_training.sum_of_squares(list(model)) ** 0.5
            wanted = torch.cat([p.double().flatten() for p in model]).norm()
            assert norm == pytest.approx(wanted.item(), rel=1e-12)
    assert len(found[0]) == len(found[1]) == 5 * len(sizes)
    for plain, fast in zip(*found):
        torch.testing.assert_close(fast, plain, rtol=3e-6, atol=3e-7)


@pytest.mark.skipif(bool(native_training.missing()), reason=native_training.missing())
def test_native_steps_refuse_moments_of_other_shapes(monkeypatch):
    monkeypatch.setattr(native_training, "_in_use", True)
    model = nn.Linear(8, 4, bias=False)
    optimizers = build_optimizer(model, OptimConfig())
    model.weight.grad = torch.ones(4, 8)
    optimizers.step()
    optimizers.parts[0].state[model.weight]["exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="not laid out as their weights"):
        optimizers.step()
