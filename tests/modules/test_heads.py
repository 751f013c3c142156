"""The blockwise loss equals the plain one, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from rvqlm.modules import fused_loss as heads_module
from rvqlm.modules.heads import LinearHeads


def plain_loss(heads, hidden, targets, valid, weights, smoothing):
    logits = heads(hidden)  # (N, K, V)
    V = logits.shape[-1]
    nats = F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1), reduction="none")
    loss = F.cross_entropy(
        logits.reshape(-1, V), targets.reshape(-1), reduction="none", label_smoothing=smoothing
    )
    correct = (logits.argmax(-1) == targets) & valid
    return (
        (loss.view_as(targets) * valid * weights).sum(),
        (nats.view_as(targets) * valid).sum(0),
        correct.sum(0),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_plain_cross_entropy(monkeypatch, smoothing):
    torch.manual_seed(0)
    N, K, V, d = 37, 3, 11, 8
    monkeypatch.setattr(heads_module, "BLOCK_ELEMENTS", 5 * K * V)  # blocks of 5, the last of 2
    heads = LinearHeads(K, V, d)
    torch.nn.init.normal_(heads.weight)
    hidden = torch.randn(N, d, requires_grad=True)
    targets = torch.randint(V, (N, K))
    valid = torch.rand(N, K) > 0.3
    weights = torch.tensor([1.0, 0.5, 2.0])

    want_loss, want_nats, want_correct = plain_loss(
        heads, hidden, targets, valid, weights, smoothing
    )
    want = torch.autograd.grad(3 * want_loss, [hidden, heads.weight])
    got = heads.loss(hidden, targets, valid, weights, smoothing)
    grads = torch.autograd.grad(3 * got.loss, [hidden, heads.weight])

    torch.testing.assert_close(got.loss, want_loss)
    torch.testing.assert_close(got.nats, want_nats)
    assert torch.equal(got.correct, want_correct.float())
    for g, w in zip(grads, want):
        torch.testing.assert_close(g, w)
    with torch.no_grad():
        torch.testing.assert_close(
            heads.loss(hidden, targets, valid, weights, smoothing).loss, want_loss
        )


def test_never_holds_all_logits(monkeypatch):
    """The largest tensor made is a block, not (N, K, V)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    N, K, V, d = 512, 4, 64, 16
    monkeypatch.setattr(heads_module, "BLOCK_ELEMENTS", 32 * K * V)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    heads = LinearHeads(K, V, d)
    hidden = torch.randn(N, d, requires_grad=True)
    targets, valid = torch.randint(V, (N, K)), torch.ones(N, K, dtype=torch.bool)
    with Watch():
        heads.loss(hidden, targets, valid).loss.backward()
    assert largest <= max(32 * K * V, N * d) < N * K * V / 8
