"""Output side: K classifiers over one hidden state, and a loss that never holds all their logits.

The logits of a batch, frames x K x V in float32, are by far the largest tensor of a token model
(150 s of DAC: 12,900 x 9,216 x 4 bytes = 475 MB, and three of them live at once in a plain
implementation). `LinearHeads.loss` works through the steps in blocks small enough for the cache:
one matmul for all K heads, softmax and gradient in place, gradients added to two accumulators,
logits dropped. The backward pass then only scales what is there. Same idea as fused linear
cross entropy in Liger (Hsu et al., 2024, arXiv:2410.10989), for K heads at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = 1 << 22
"""Logits held at once on a CPU: 16 MiB in float32, about the last-level cache of one die."""

GPU_BLOCK_ELEMENTS = 1 << 25
"""The same on other devices, which need larger matrices to be busy: 128 MiB."""


class HeadLoss(NamedTuple):
    loss: Tensor
    """Scalar to back-propagate: weighted, smoothed sum."""
    nats: Tensor
    """(K,) float32 sum of -log p(target), neither weighted nor smoothed; detached."""
    correct: Tensor
    """(K,) float32 number of targets whose logit is larger than all others; detached."""


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, valid, level_weights, smoothing, dtype, with_grad):
        # hidden (N, d), weight (K, V, d), targets (N, K) int64, valid (N, K) bool,
        # level_weights (K,) float32
        K, V, d = weight.shape
        flat = weight.detach().to(dtype).view(K * V, d)
        hidden_d = hidden.detach().to(dtype)
        N = hidden_d.shape[0]
        elements = BLOCK_ELEMENTS if hidden.device.type == "cpu" else GPU_BLOCK_ELEMENTS
        block = max(1, elements // (K * V))
        loss = torch.zeros((), device=hidden.device)
        nats = torch.zeros(K, device=hidden.device)
        correct = torch.zeros(K, device=hidden.device)
        if with_grad:
            grad_hidden = torch.empty_like(hidden_d)
            grad_weight = torch.zeros(K * V, d, device=hidden.device)
        for start in range(0, N, block):
            h = hidden_d[start : start + block]
            t = targets[start : start + block].unsqueeze(-1)  # (n, K, 1)
            use = valid[start : start + block].float()  # (n, K)
            logits = (h @ flat.T).view(-1, K, V).float()
            at_target = logits.gather(-1, t)
            mean = logits.mean(-1) if smoothing else None
            # a hit is strictly above all others: ties, frequent in bf16, are none
            others = logits.scatter_(-1, t, -torch.inf).amax(-1, keepdim=True)
            correct += ((at_target > others).squeeze(-1) * use).sum(0)
            top = torch.maximum(others, at_target)
            logits.scatter_(-1, t, at_target)
            p = logits.sub_(top).exp_()
            total = p.sum(-1, keepdim=True)
            log_total = total.log() + top
            nll = (log_total - at_target).squeeze(-1)  # (n, K)
            nats += (nll * use).sum(0)
            scale = use * level_weights  # (n, K)
            if smoothing:
                nll = (1 - smoothing) * nll + smoothing * (log_total.squeeze(-1) - mean)
            loss += (nll * scale).sum()
            if not with_grad:
                continue
            # d nll / d logits = softmax - (1 - smoothing) onehot - smoothing / V
            p.mul_(scale.unsqueeze(-1) / total)
            p.scatter_add_(-1, t, -(1 - smoothing) * scale.unsqueeze(-1))
            if smoothing:
                p.sub_(scale.unsqueeze(-1) * (smoothing / V))
            g = p.view(-1, K * V).to(dtype)
            torch.mm(g, flat, out=grad_hidden[start : start + block])
            if dtype == torch.float32:
                grad_weight.addmm_(g.T, h)
            else:
                grad_weight += g.T @ h
        if with_grad:
            ctx.save_for_backward(grad_hidden, grad_weight.view(K, V, d))
            ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(nats, correct)
        return loss, nats, correct

    @staticmethod
    def backward(ctx, grad_loss, _nats, _correct):
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            (grad_hidden * grad_loss).to(hidden_dtype),
            (grad_weight * grad_loss).to(weight_dtype),
            *[None] * 6,
        )


class LinearHeads(nn.Module):
    """One linear classifier per level: weight (K, V, d)."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codebooks, codebook_size, dim))
        # zero: the first loss is exactly ln V
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> logits (..., K, V)."""
        K, V, d = self.weight.shape
        return nn.functional.linear(hidden, self.weight.view(K * V, d)).unflatten(-1, (K, V))

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        valid: Tensor,
        level_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> HeadLoss:
        """Sums of -log p over the valid targets.

        :param hidden: (N, d).
        :param targets: (N, K) integer codes; any value in range where not valid.
        :param valid: (N, K) bool.
        :param level_weights: (K,) factors of the loss, 1 by default.
        :param label_smoothing: share of the target spread evenly over the V codes.
        """
        device_type = hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
        if level_weights is None:
            level_weights = torch.ones(self.weight.shape[0], device=hidden.device)
        with torch.autocast(device_type, enabled=False):
            return HeadLoss(
                *_FusedHeadLoss.apply(
                    hidden,
                    self.weight,
                    targets.long(),
                    valid,
                    level_weights,
                    label_smoothing,
                    dtype,
                    torch.is_grad_enabled(),
                )
            )
