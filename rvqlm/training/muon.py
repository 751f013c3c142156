"""Muon: momentum of matrices replaced by its nearest orthogonal matrix.

Jordan et al., 2024 (kellerjordan.github.io/posts/muon), found with a few Newton-Schulz iterations.
torch.optim.Muon always iterates in bf16, which a CPU without bf16 units emulates hundreds of times
slower, and takes one matrix at a time; here the precision follows the hardware, matrices of one
shape are iterated together, and stacks of matrices count as so many matrices.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rvqlm.dtensors import batches, local, own, whole
from rvqlm.runtime import has_fast_bf16

_NS = (3.4445, -4.7750, 2.0315)  # quintic with the steepest slope at zero that stays bounded
_NS_STEPS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values near 1 (0.7 to 1.2): (..., M, N) -> (..., M, N), same dtype."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    flat = x.reshape(-1, *x.shape[-2:])
    # Each step multiplies x from the left by a polynomial of its Gram matrix. For oblong matrices
    # it is cheaper to collect these factors first; in bf16 that loses too many digits.
    oblong = x.shape[-1] >= 2 * x.shape[-2] and dtype == torch.float32
    x = (_gram_iteration(flat) if oblong else _plain_iteration(flat)).reshape(x.shape)
    return (x.mT if tall else x).to(matrices.dtype)


def _plain_iteration(x: Tensor) -> Tensor:
    a, b, c = _NS
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _gram_iteration(x: Tensor) -> Tensor:
    """`_plain_iteration` by the Gram matrix alone: with P = a + b G + c G^2, x becomes P x and G
    becomes P G P."""
    a, b, c = _NS
    gram, product = x @ x.mT, None
    for step in range(_NS_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < _NS_STEPS - 1:
            gram = factor @ (gram @ factor)
    return product @ x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; updates scaled to the root mean square of AdamW's
    (0.2 sqrt(max(M, N)), Liu et al., 2025, arXiv:2502.16982) so that learning rate and weight
    decay carry over.

    Parameters (..., M, N) may be DTensors: each rank orthogonalises the whole matrices, gathered
    by one exchange for all of a shape, and keeps its part.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None, "this optimizer takes no closure"
        for group in self.param_groups:
            for batch in batches(group["params"]):
                self._update(batch, group["lr"], group["momentum"], group["weight_decay"])

    def _update(
        self, params: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Step of matrices of one shape."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [local(self.state[p]["momentum_buffer"]) for p in params]
        shards, grads = [local(p) for p in params], [local(p.grad) for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        ahead = whole(torch.stack(torch._foreach_lerp(grads, buffers, momentum)), params[0])
        dtype = torch.bfloat16 if has_fast_bf16(ahead.device) else torch.float32
        updates = own(orthogonalize(ahead, dtype), params[0]).unbind(0)
        torch._foreach_mul_(shards, 1 - lr * weight_decay)
        torch._foreach_add_(shards, updates, alpha=-lr * 0.2 * max(params[0].shape[-2:]) ** 0.5)
