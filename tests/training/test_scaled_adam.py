import pytest
import torch
from torch import nn

from rvqlm import dtensors
from rvqlm.training.scaled_adam import ScaledAdam

SHAPES = [(5, 7), (9,), (5, 7), (1,), (), (5, 7), (9,), (2, 3, 4), (1, 1)]


class Naive:
    """The paper's formulas for one tensor in float64; the gradient of the scale is the slope of the
    loss <gradient, s x> by log s, as autograd finds it."""

    def __init__(self, x: torch.Tensor, lr: float, betas: tuple[float, float], eps: float):
        self.x, self.lr, self.betas, self.eps = x.double(), lr, betas, eps
        self.t, self.moments = 0, {}

    def adam(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        m, v = self.moments.get(name, (torch.zeros_like(gradient),) * 2)
        b, c = self.betas
        m, v = b * m + (1 - b) * gradient, c * v + (1 - c) * gradient**2
        self.moments[name] = m, v
        return m / (1 - b**self.t) / ((v / (1 - c**self.t)).sqrt() + self.eps)

    def step(self, gradient: torch.Tensor) -> None:
        gradient, x, self.t = gradient.double(), self.x, self.t + 1
        change = self.adam("tensor", gradient)
        if x.numel() == 1:
            self.x = x - 0.1 * self.lr * change
            return
        log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((gradient * x * log_scale.exp()).sum(), log_scale)
        size = (x**2).mean().sqrt().clamp(1e-5, 3.0)
        self.x = x - self.lr * size * change - 0.1 * self.lr * self.adam("scale", slope) * x


@pytest.mark.parametrize("max_elements", [2**24, 80])  # all of a shape at once, two at a time
def test_equals_the_formulas_one_tensor_at_a_time(max_elements, monkeypatch):
    monkeypatch.setattr(dtensors, "MAX_ELEMENTS", max_elements)
    torch.manual_seed(0)
    # sizes within, above and below the bounds; a tensor of zeros
    starts = [torch.randn(s) * 10.0 ** (n % 4 - 2) for n, s in enumerate(SHAPES)]
    starts[2] = torch.zeros(5, 7)
    params = [nn.Parameter(s.clone()) for s in starts]
    flags = {"lr": 0.2, "betas": (0.8, 0.9), "eps": 1e-3}
    naive = [Naive(s, **flags) for s in starts]
    optimizer = ScaledAdam(params, **flags)
    for step in range(6):
        for n, (p, reference) in enumerate(zip(params, naive)):
            p.grad = None
            if step != 2 or n % 3:  # some have no gradient at times
                p.grad = torch.randn(p.shape) * 0.1 + 0.05
                reference.step(p.grad)
        optimizer.step()
    for p, reference in zip(params, naive):
        assert not torch.equal(p, torch.zeros_like(p))
        torch.testing.assert_close(p.detach(), reference.x.float(), rtol=1e-4, atol=1e-9)


def test_trains_whatever_the_size_of_the_weights():
    """The loss is that of w / scale, so a tensor of any size has the same way to go; AdamW at its
    default learning rate leaves it for the large one."""
    x, target = torch.randn(64, 8), torch.randn(8, 4)
    ends = {}
    for scale in (0.01, 1.0):
        for make, lr in ((ScaledAdam, 0.05), (torch.optim.AdamW, 0.0005)):
            torch.manual_seed(0)
            w = nn.Parameter(torch.randn(8, 4) * scale)
            optimizer = make([w], lr=lr)
            for step in range(200):
                optimizer.param_groups[0]["lr"] = lr * (1 - step / 200)
                optimizer.zero_grad()
                loss = ((x @ w / scale - x @ target) ** 2).mean()
                loss.backward()
                optimizer.step()
            ends[make, scale] = loss.item()
    first = ((x @ target) ** 2).mean().item()
    assert ends[ScaledAdam, 0.01] < 0.01 * first and ends[ScaledAdam, 1.0] < 0.01 * first
    assert ends[torch.optim.AdamW, 1.0] > 0.3 * first
