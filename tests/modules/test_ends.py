"""The distribution of lengths: it sums to 1, draws follow it, nothing overflows."""

import math

import pytest
import torch

from rvqlm.modules.conditioning import Context
from rvqlm.modules.ends import LengthHead


@pytest.mark.parametrize("centre,scale", [(1.5, 0.4), (3.0, 0.05), (0.0, 0.3), (4.0, 0.01)])
def test_probabilities_sum_to_one(centre, scale):
    frames = torch.arange(1, 200_000)
    nats = LengthHead.nats(torch.tensor(centre), torch.tensor(scale), frames)
    assert float(nats.neg().exp().double().sum()) == pytest.approx(1, abs=2e-4)
    if scale < 0.1:
        assert int(nats.argmin()) + 1 == round(math.exp(centre))


def test_nats_equal_the_plain_formula():
    centre, scale, frames = torch.tensor(2.0), torch.tensor(0.5), torch.tensor([1, 5, 8, 30])
    f = lambda n: torch.sigmoid((n.double().log() - centre) / scale)  # noqa: E731
    p = (f(frames + 0.5) - f(frames - 0.5)) / (1 - f(torch.tensor(0.5)))
    torch.testing.assert_close(
        LengthHead.nats(centre, scale, frames), -p.log().float(), rtol=1e-4, atol=1e-4
    )


def test_far_lengths_have_finite_nats_and_gradients():
    centre = torch.tensor([0.0, 12.0], requires_grad=True)
    scale = torch.tensor([0.001, 0.001], requires_grad=True)
    LengthHead.nats(centre, scale, torch.tensor([100_000, 1])).sum().backward()
    assert centre.grad.isfinite().all() and scale.grad.isfinite().all()
    assert centre.grad[0] < 0 < centre.grad[1]


@pytest.mark.parametrize("least", [1, 9, 60])
def test_draws_follow_the_distribution_given_the_least(least):
    n = 20_000
    uniform = (torch.arange(n) + 0.5) / n
    centre, scale = torch.full((n,), 2.5), torch.full((n,), 0.3)
    drawn = LengthHead.draw(centre, scale, uniform, torch.full((n,), least))
    assert int(drawn.min()) >= least
    frames = torch.arange(least, 4000)
    p = LengthHead.nats(centre[:1], scale[:1], frames).neg().exp()
    p = p / p.sum()
    for frame in (least, least + 2, least + 10):
        share = float((drawn == frame).float().mean())
        assert share == pytest.approx(float(p[frame - least]), abs=1e-3)


def test_temperature_and_limits_of_draws():
    uniform, least = torch.tensor([0.01, 0.99, 0.0]), torch.tensor([1, 1, 500])
    centre, scale = torch.full((3,), math.log(40.0)), torch.full((3,), 0.5)

    def draw(temperature):
        return LengthHead.draw(centre, scale, uniform, least, temperature)

    assert draw(0).tolist() == [40, 40, 500]
    wide, narrow = draw(1.0).tolist(), draw(0.1).tolist()
    assert wide[0] < narrow[0] < 40 < narrow[1] < wide[1]
    # so far above what the distribution has that nothing is left of it
    far = LengthHead.draw(centre, scale * 0.001, uniform, torch.full((3,), 10**6))
    assert (far >= 10**6).all() and (far < 2 * 10**6).all()


def test_begins_where_the_conditions_end():
    head = LengthHead(8, typical=250)
    positions = torch.tensor([[0.0, 40.0, 80.0], [0.0, 40.0, 80.0], [-31.0, -30.0, -29.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    _, base = head.begin(Context(torch.zeros(3, 3, 8), mask, positions, {}), 3)
    torch.testing.assert_close(base.exp(), torch.tensor([80.0, 40.0, 250.0]))
    step, base = head.begin(None, 2)
    assert step.shape == (2, 1, 8)
    torch.testing.assert_close(base.exp(), torch.tensor([250.0, 250.0]))
