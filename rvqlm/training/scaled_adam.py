"""ScaledAdam: Adam whose updates are proportional to the size of the tensor they change.

Yao et al., 2023, Zipformer (arXiv:2310.11230, section 3.5): the update of a tensor is multiplied by
its root mean square, so that relative changes are alike in small and large ones, and besides each
tensor's scale is learnt by a second Adam that sees the gradient of the scale alone. Learning rates
are relative changes, 0.01 to 0.05, and there is no weight decay.

Clipping by the running median that came with it is left to ``--clip-grad-norm`` and the guards.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

MIN_RMS, MAX_RMS = 1e-5, 3.0
"""Sizes between which updates follow the tensor; a tensor of zeros has to be able to leave."""
SCALAR_LR = 0.1
"""Of the learning rate, for the scales and for parameters of one element."""
MAX_SCALE_STEP = 0.1
"""Largest relative change of a scale at once, in units of SCALAR_LR * lr steps."""


class ScaledAdam(torch.optim.Optimizer):
    """:param lr: relative change of a tensor per step, at most.
    :param betas: decay of the gradient's mean and square.
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
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group["lr"], group["betas"], group["eps"])

    def _update(self, params, lr: float, betas: tuple[float, float], eps: float) -> None:
        first, second = betas
        states = [self._state_of(p) for p in params]
        grads = [p.grad for p in params]
        # gradient of the logarithm of the scale; before the tensor moves
        along = torch._foreach_mul(params, grads)
        along = [a.sum() for a in along]
        number = [float(p.numel()) for p in params]
        rms = torch._foreach_div(torch._foreach_norm(params), [n**0.5 for n in number])
        means = [s["mean"] for s in states]
        squares = [s["square"] for s in states]
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1 - second)
        for state, p, size, n, scale_grad in zip(states, params, rms, number, along):
            state["step"] += 1
            t = int(state["step"])
            up, down = 1 - first**t, 1 - second**t
            direction = (state["mean"] / up).div_((state["square"] / down).sqrt_().add_(eps))
            if n == 1:
                p.add_(direction, alpha=-lr * SCALAR_LR)
                continue
            state["scale_mean"].lerp_(scale_grad, 1 - first)
            state["scale_square"].lerp_(scale_grad * scale_grad, 1 - second)
            root = (state["scale_square"] / down).sqrt_().add_(eps)
            step = (state["scale_mean"] / up).div_(root).mul_(lr * SCALAR_LR)
            step.clamp_(-MAX_SCALE_STEP, MAX_SCALE_STEP)
            p.mul_(1 - step)
            p.sub_(direction.mul_(size.clamp(MIN_RMS, MAX_RMS) * lr))

    def _state_of(self, p) -> dict:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"] = torch.zeros_like(p)
            state["square"] = torch.zeros_like(p)
            state["scale_mean"] = torch.zeros((), device=p.device)
            state["scale_square"] = torch.zeros((), device=p.device)
        return state
