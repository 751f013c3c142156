"""Blockwise losses equal plain cross-entropy of naively computed logits, values and gradients."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rvqlm.modules import fused_loss
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.heads import LinearHeads, MLPHeads, ResidualHeads, SharedLinearHeads

N, K, V, D = 37, 3, 11, 8
KINDS = {
    "linear": LinearHeads,
    "linear shared": SharedLinearHeads,
    "mlp": partial(MLPHeads, expansion=1.5),
    "mlp shared": partial(MLPHeads, shared=True),
    "residual": partial(ResidualHeads, expansion=1.5),
    "depth": partial(DepthHeads, depth_dim=8, num_heads=2),
}
FLAT = [name for name in KINDS if name != "depth"]


def make(name, shaken=True, **changes):
    torch.manual_seed(0)
    shape = {"num_codebooks": K, "codebook_size": V, "dim": D, **changes}
    heads = KINDS[name](**shape).double()
    if shaken:  # classifiers start at zero
        for p in heads.parameters():
            torch.nn.init.normal_(p)
    return heads


def naive_logits(heads, name, hidden):
    """(N, K, V) by a loop over levels, from states (N, K, d)."""
    levels = []
    for k in range(K):
        h, copy = hidden[:, k], 0 if "shared" in name else k
        if "shared" in name:
            h = h + heads.level[k]
        if "mlp" in name:
            h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, False, keepdim=True) + 1e-5).sqrt()
            h = F.gelu(h * heads.norm.weight @ heads.up[copy].T) @ heads.down[copy].T
        for coarser in range(k + 1) if name == "residual" else ():
            y = (h - h.mean(-1, keepdim=True)) / (h.var(-1, False, keepdim=True) + 1e-5).sqrt()
            y = F.gelu(y * heads.norm.weight @ heads.up[coarser].T)
            h = h + y @ heads.down[coarser].T
        levels.append(h @ heads.weight[copy].T)
    return torch.stack(levels, 1)


def plain_loss(logits, targets, valid, weights, smoothing):
    targets = targets.masked_fill(~valid, 0)
    flat = logits.flatten(0, 1), targets.flatten()
    nats = F.cross_entropy(*flat, reduction="none").view_as(targets)
    loss = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing).view_as(targets)
    correct = (logits.argmax(-1) == targets) & valid
    return (loss * valid * weights).sum(), (nats * valid).sum(0), correct.sum(0)


def masks():
    torch.manual_seed(1)
    rows = torch.arange(N)
    return {
        "all": torch.ones(N, K, dtype=torch.bool),
        "most": torch.rand(N, K) > 0.1,
        "some rows": ((rows > 9) & (rows < 30))[:, None].expand(N, K),
        "few": torch.rand(N, K) > 0.7,
        "one a row": F.one_hot(torch.randint(K, (N,)), K).bool(),
        "one level": torch.tensor([False, True, False]).expand(N, K),
        "none": torch.zeros(N, K, dtype=torch.bool),
    }


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks and chunks, the last of each incomplete."""
    monkeypatch.setattr(fused_loss, "BLOCK_ELEMENTS", 5 * K * V)
    monkeypatch.setattr(fused_loss, "GRADIENT_ELEMENTS", 13 * K * V)  # of two blocks
    monkeypatch.setattr(fused_loss, "CHUNK_STATES", 11 * K)


# every mask with every kind; every pair of the other settings somewhere
CASES = [
    (name, mask, i // 2 % 2 != j % 2 and name != "depth", (i + j) % 2 / 10)
    for i, mask in enumerate(masks())
    for j, name in enumerate(KINDS)
]


@pytest.mark.parametrize("name,mask,per_level,smoothing", CASES)
def test_loss_equals_plain_cross_entropy(small_blocks, name, per_level, mask, smoothing):
    heads, valid = make(name), masks()[mask]
    hidden = torch.randn(N, K, D) if per_level else torch.randn(N, D)
    hidden = hidden.double().requires_grad_()
    targets = torch.randint(V, (N, K))
    weights = torch.tensor([1.0, 0.5, 2.0])
    if name == "depth":  # checked against its own definition in test_depth.py
        logits = heads(hidden, targets)
    else:
        states = hidden if per_level else hidden.unsqueeze(1).expand(N, K, D)
        logits = naive_logits(heads, name, states)
        if not per_level:
            torch.testing.assert_close(heads(hidden), logits)
    inputs = [hidden, *heads.parameters()]

    want = plain_loss(logits, targets, valid, weights, smoothing)
    want_grads = torch.autograd.grad(3 * want[0], inputs)
    got = heads.loss(hidden, targets, valid, weights, smoothing)
    grads = torch.autograd.grad(3 * got.loss, inputs)
    torch.testing.assert_close(got.loss, want[0])
    torch.testing.assert_close(got.sums["nats"], want[1])
    assert torch.equal(got.sums["accuracy"], want[2].double())
    for g, w in zip(grads, want_grads):
        torch.testing.assert_close(g, w)
    with torch.no_grad():
        same = heads.loss(hidden, targets, valid, weights, smoothing)
    assert not same.loss.requires_grad
    torch.testing.assert_close(same.loss, want[0])


@pytest.mark.parametrize("name", FLAT)
def test_targets_that_do_not_count_may_be_anything(name):
    heads, valid = make(name), masks()["most"]
    hidden, targets = torch.randn(N, D).double(), torch.randint(V, (N, K))
    want = heads.loss(hidden, targets, valid)
    for filler in (-1, V, 10**6):
        got = heads.loss(hidden, targets.masked_fill(~valid, filler).int(), valid)
        assert torch.equal(got.loss, want.loss) and torch.equal(
            got.sums["accuracy"], want.sums["accuracy"]
        )


@pytest.mark.parametrize("mask", ["most", "few"])
@pytest.mark.parametrize("name", KINDS)
def test_targets_may_have_weights(small_blocks, name, mask):
    heads, valid = make(name), masks()[mask]
    hidden, targets = torch.randn(N, D).double().requires_grad_(), torch.randint(V, (N, K))
    weights, levels = torch.rand(N, K) * valid, torch.tensor([1.0, 0.5, 2.0])
    logits = heads(hidden, targets).flatten(0, 1)
    each = F.cross_entropy(logits, targets.flatten(), reduction="none").view(N, K)
    smooth = -logits.log_softmax(-1).mean(-1).view(N, K)
    want = ((0.9 * each + 0.1 * smooth) * weights * levels).sum()
    got = heads.loss(hidden, targets, weights, levels, 0.1)
    torch.testing.assert_close(got.loss, want)
    torch.testing.assert_close(got.sums["nats"], (each * weights).sum(0))
    hits = logits.argmax(-1).view(N, K) == targets
    torch.testing.assert_close(got.sums["accuracy"], (hits * weights).sum(0).double())
    inputs = [hidden, *heads.parameters()]
    for g, w in zip(torch.autograd.grad(got.loss, inputs), torch.autograd.grad(want, inputs)):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_level_an_item(small_blocks, smoothing):
    heads, shape = make("linear"), (7, 5)
    states = torch.randn(*shape, D).double().requires_grad_()
    of_item = torch.randint(K, shape[:1])
    of_item[of_item == 1] = 2  # a level may be absent
    hidden, level = states.flatten(0, 1), of_item.repeat_interleave(shape[1])
    targets, valid = torch.randint(V, (35,)), torch.rand(35) > 0.3
    weights = torch.tensor([1.0, 0.5, 2.0])
    logits = torch.stack([heads.weight[k] @ h for h, k in zip(hidden, level)])
    flat = logits[valid], targets[valid]
    each = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing)
    want = (each * weights[level[valid]]).sum()
    nats = F.cross_entropy(*flat, reduction="none")
    want_nats = torch.stack([nats[level[valid] == k].sum() for k in range(K)])
    hits = (flat[0].argmax(-1) == flat[1]).double()
    want_hits = torch.stack([hits[level[valid] == k].sum() for k in range(K)])
    given = (x.view(shape) for x in (targets.masked_fill(~valid, -1), valid))
    got = heads.loss_of_level(states, of_item, *given, weights, smoothing)
    torch.testing.assert_close(got.loss, want)
    torch.testing.assert_close(got.sums["nats"], want_nats)
    assert torch.equal(got.sums["accuracy"], want_hits)
    inputs = [states, heads.weight]
    for g, w in zip(torch.autograd.grad(got.loss, inputs), torch.autograd.grad(want, inputs)):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", FLAT)
def test_logits_of_one_level(name):
    heads, hidden = make(name), torch.randn(2, 5, D).double()
    full = heads(hidden)
    assert full.shape == (2, 5, K, V)
    for k in range(K):
        torch.testing.assert_close(heads.logits_of_level(hidden, k), full[:, :, k])


@pytest.mark.parametrize("name", FLAT)
def test_draw_lets_rows_of_one_sequence_decide_together(name):
    heads, hidden = make(name), torch.randn(6, D).double()
    calls = []

    def choose(first, logits):
        calls.append((first, logits))
        return (2 * logits[:3] - logits[3:]).argmax(-1)

    codes = heads.draw(hidden, choose)
    assert [first for first, _ in calls] == [0]
    torch.testing.assert_close(calls[0][1], heads(hidden))
    assert codes.shape == (3, K)


@pytest.mark.parametrize("name", KINDS)
def test_first_loss_is_that_of_equally_likely_codes(name):
    heads, valid = make(name, shaken=False), masks()["most"]
    out = heads.loss(torch.randn(N, D).double(), torch.randint(V, (N, K)), valid)
    torch.testing.assert_close(out.sums["nats"], valid.sum(0).double() * math.log(V))
    assert not out.sums["accuracy"].any()  # a tie is no hit


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_takes_part(name):
    """As wrappers for several processes demand, with nothing to score and with frozen ones too."""
    heads = make(name)
    hidden = torch.randn(N, D).double().requires_grad_()
    targets = torch.randint(V, (N, K))
    heads.loss(hidden, targets, masks()["none"]).loss.backward()
    assert all(not p.grad.any() for p in [hidden, *heads.parameters()])
    heads.loss(hidden, targets, masks()["all"]).loss.backward()
    assert all(p.grad.any() for p in [hidden, *heads.parameters()])
    whole = {n: p.grad for n, p in heads.named_parameters()}
    heads.zero_grad()
    first = next(heads.parameters())
    first.requires_grad_(False)
    heads.loss(hidden, targets, masks()["all"]).loss.backward()
    assert first.grad is None
    for n, p in heads.named_parameters():
        assert p is first or torch.allclose(p.grad, whole[n])


def shared_with(embedding, first_level):
    return LinearHeads(K, V, D, tied=embedding, first_level=first_level).double()


def test_tied_heads_use_the_tables_of_their_levels():
    torch.manual_seed(0)
    embedding = SumEmbedding(K + 1, V + 1, D).double()
    tied = shared_with(embedding, 1)
    assert not list(tied.parameters())
    tables = embedding.weight.view(K + 1, V + 1, D)[1:, :V]
    hidden, targets = torch.randn(N, D).double(), torch.randint(V, (N, K))
    logits = torch.einsum("nd,kvd->nkv", hidden, tables) * D**-0.5
    torch.testing.assert_close(tied(hidden), logits)
    torch.testing.assert_close(tied.logits_of_level(hidden, 2), logits[:, 2])
    valid, ones = masks()["most"], torch.ones(K)
    (want,) = torch.autograd.grad(
        plain_loss(logits, targets, valid, ones, 0.0)[0], embedding.weight
    )
    (got,) = torch.autograd.grad(tied.loss(hidden, targets, valid).loss, embedding.weight)
    torch.testing.assert_close(got, want)
    special = got.view(K + 1, V + 1, D)[:, V]
    assert got.any() and not special.any()
    with torch.no_grad():  # follows the embedding
        embedding.weight.zero_()
    assert not tied(hidden).any()


@pytest.mark.parametrize(
    "embedding,first",
    [(SumEmbedding(K, V + 1, D), 1), (SumEmbedding(K, V, D), 0), (SumEmbedding(K, V + 1, 4), 0)],
)
def test_tied_heads_must_fit(embedding, first):
    with pytest.raises(ValueError, match="other levels, codes or width"):
        shared_with(embedding, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision(small_blocks, name, dtype):
    """Near the float32 loss, within what logits of half precision allow, over several chunks."""
    heads = make(name).float()
    with torch.no_grad():
        for p in heads.parameters():
            p.mul_(0.5)
    hidden = torch.randn(N, D, requires_grad=True)
    targets, valid = torch.randint(V, (N, K)), masks()["most"]
    inputs = [hidden, *heads.parameters()]
    want = heads.loss(hidden, targets, valid, None, 0.1)
    want_grads = torch.autograd.grad(want.loss, inputs)
    with torch.autocast("cpu", dtype):
        got = heads.loss(hidden, targets, valid, None, 0.1)
        grads = torch.autograd.grad(got.loss, inputs)
    assert got.loss.dtype == got.sums["nats"].dtype == torch.float32
    assert not torch.equal(got.loss, want.loss)  # else nothing was cast
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-2, atol=0)
    torch.testing.assert_close(got.sums["nats"], want.sums["nats"], rtol=2e-2, atol=0)
    for g, w in zip(grads, want_grads):
        assert g.dtype == torch.float32
        assert (g - w).norm() < 0.05 * w.norm()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("name", KINDS)
def test_never_holds_all_logits_or_states(monkeypatch, name):
    N, K, V, d = 512, 4, 64, 16
    monkeypatch.setattr(fused_loss, "BLOCK_ELEMENTS", 32 * K * V)
    monkeypatch.setattr(fused_loss, "CHUNK_STATES", 32 * K)
    heads = make(name, num_codebooks=K, codebook_size=V, dim=d).float()
    hidden = torch.randn(N, d, requires_grad=True)
    targets, valid = torch.randint(V, (N, K)), torch.ones(N, K, dtype=torch.bool)
    with Largest() as largest:
        heads.loss(hidden, targets, valid).loss.backward()
    assert largest.elements <= max(32 * K * V, N * d) < N * K * V / 8


@pytest.mark.parametrize("name", KINDS)
def test_rows_without_a_target_cost_nothing(name):
    N, d = 4096, 8
    heads = make(name).float()
    hidden, targets = torch.randn(N, d, requires_grad=True), torch.randint(V, (N, K))
    valid = (torch.arange(N) % 128 == 5)[:, None].expand(N, K)
    with Largest() as largest:
        heads.loss(hidden, targets, valid).loss.backward()
    assert largest.elements == N * d  # the hidden states and their gradient


def test_fewer_levels_than_the_input():
    one = LinearHeads(1, V, D)
    assert one(torch.randn(4, D)).shape == (4, 1, V)


@pytest.mark.parametrize("name", KINDS)
def test_matrices_for_muon_are_hidden_ones(name):
    heads = make(name)
    matrices = heads.muon_matrices()
    own = {id(p) for p in heads.parameters()}
    assert all(id(m) in own and m.ndim >= 2 and V not in m.shape[-2:] for m in matrices)
    assert bool(matrices) == ("linear" not in name)
