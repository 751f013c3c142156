"""ScaledAdam: Adam whose updates are proportional to the size of the tensor they change.

Yao et al., 2023, Zipformer (arXiv:2310.11230, section 3.5). With m and v Adam's means of gradient
and squared gradient, biases corrected, and r the root mean square of a tensor x, a step changes

    x   by   -lr r m / (sqrt(v) + eps)   and by   -0.1 lr n / (sqrt(w) + eps) x

where n and w are Adam's means of another gradient, that of the loss by the logarithm of x's scale,
which is the sum of x times its gradient: direction and size are learnt apart. The learning rate is
a relative change, about 0.045 at its peak, and there is no weight decay.

As in the paper, tensors of one shape are updated together. The clipping by a running median that
icefall's recipes add is left out: ``--clip-grad-norm`` bounds the gradient and the guards drop the
steps that it was for, with every optimizer alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rvqlm.dtensors import batches, local, total

MIN_RMS, MAX_RMS = 1e-5, 3.0
"""Sizes between which updates follow the tensor's; one of zeros has to be able to leave."""
SCALE_LR = 0.1
"""Of the learning rate, for the scales, and for parameters of one element, which have no other."""


class ScaledAdam(torch.optim.Optimizer):
    """Parameters may be DTensors: sizes and scales are those of the whole tensor.

    :param lr: change of a tensor in a step, relative to its root mean square.
    :param betas: decay of the means of gradients and of their squares.
    :param eps: added to the root of the latter.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.045,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None, "this optimizer takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    self._begin(p)
            # by steps made, too: what had no gradient at times has other biases
            for batch in batches(group["params"], lambda p: int(self.state[p]["step"])):
                self._update(batch, group["lr"], group["betas"], group["eps"])

    def _begin(self, p: Tensor) -> None:
        self.state[p].update(
            step=torch.zeros(()),  # on the CPU, where it is read
            mean=torch.zeros_like(p),
            square=torch.zeros_like(p),
            scale_mean=torch.zeros((), device=p.device),
            scale_square=torch.zeros((), device=p.device),
        )

    def _update(
        self, params: list[Tensor], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """Step of parameters of one shape."""
        first, second = betas
        states = [self.state[p] for p in params]
        for state in states:
            state["step"] += 1
        steps = int(states[0]["step"])
        up, down = 1 - first**steps, 1 - second**steps
        shards, grads = [local(p) for p in params], [local(p.grad) for p in params]
        means, squares = ([local(s[k]) for s in states] for k in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1 - second)

        x, g = _rows(shards), _rows(grads)  # (n, elements)
        sums = total(torch.stack([(x * x).sum(1), (x * g).sum(1)]), params[0])  # (2, n)
        change = _rows(means).div_(up).div_(_rows(squares).div_(down).sqrt_().add_(eps))
        if params[0].numel() == 1:
            x.sub_(change, alpha=lr * SCALE_LR)
        else:
            size = (sums[0] / params[0].numel()).sqrt_().clamp_(MIN_RMS, MAX_RMS)
            ratio = self._of_scales(states, sums[1], betas, up, down, eps)
            x.mul_(1 - lr * SCALE_LR * ratio[:, None]).addcmul_(change, size[:, None], value=-lr)
        torch._foreach_copy_(shards, x.view(len(shards), *shards[0].shape).unbind(0))

    def _of_scales(
        self, states: list[dict], grads: Tensor, betas, up: float, down: float, eps: float
    ) -> Tensor:
        """Adam's update of the n scales, for gradients (n,) by their logarithms."""
        mean, square = (torch.stack([s[k] for s in states]) for k in ("scale_mean", "scale_square"))
        mean.lerp_(grads, 1 - betas[0])
        square.lerp_(grads * grads, 1 - betas[1])
        for n, state in enumerate(states):
            state["scale_mean"], state["scale_square"] = mean[n], square[n]
        return (mean / up) / ((square / down).sqrt_() + eps)


def _rows(tensors: list[Tensor]) -> Tensor:
    """Copies of n tensors as the rows of a matrix."""
    return torch.stack([t.flatten() for t in tensors])
