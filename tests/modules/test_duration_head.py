"""Durations of symbols: a distribution that is learnt, and drawn from."""

import math

import torch

from rvqlm.modules.durations import (
    BINS,
    LONGEST,
    SHORTEST,
    DurationHead,
    durations_of,
    times_of,
)

RATE = 50.0


def edges() -> list[float]:
    """Seconds between which a bin lies; the first holds all that is shorter."""
    ratio = (LONGEST / SHORTEST) ** (1 / BINS)
    return [0.0, *(SHORTEST * ratio**n for n in range(BINS + 1))]


def test_every_duration_has_a_bin_and_their_probabilities_are_one():
    head, logits = DurationHead(8, RATE), torch.randn(1, 1, BINS + 1)
    middles = [(a + b) / 2 for a, b in zip(edges(), edges()[1:])]
    frames = torch.tensor(middles)[None] * RATE
    nats = head.nats(logits.expand(1, len(middles), -1), frames)
    torch.testing.assert_close(nats.neg().exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(nats[0], -logits[0, 0].log_softmax(-1))
    # nothing, less than nothing and more than the longest
    odd = head.nats(logits.expand(1, 3, -1), torch.tensor([[0.0, -3.0, 1e4]]))
    torch.testing.assert_close(odd[0], nats[0, [0, 0, -1]])


def test_draws_have_the_distribution_and_fill_their_bins():
    head, number = DurationHead(8, RATE), 4000
    logits = torch.randn(1, 1, BINS + 1).expand(1, number, -1)
    uniform = ((torch.arange(number) + 0.5) / number)[None]
    drawn = head.draw(logits, uniform, 1.0)
    assert drawn.dtype == torch.float32 and (drawn.diff() >= 0).all()
    bounds = torch.tensor(edges()) * RATE
    of_bin = torch.bucketize(drawn[0].double(), bounds[1:].double(), right=True)
    share = of_bin.bincount(minlength=BINS + 1) / number
    torch.testing.assert_close(share, logits[0, 0].softmax(-1), rtol=0, atol=1.5 / number)
    assert (drawn[0, of_bin == 0] == 0).all() and drawn.max() <= LONGEST * RATE * (1 + 1e-6)
    # the loss sees them where they were drawn
    likely = head.nats(logits, drawn)[0]
    assert (likely == head.nats(logits, bounds[of_bin][None] * 1.0001)[0]).float().mean() > 0.99


def test_medians_and_temperature():
    head, logits = DurationHead(8, RATE), torch.randn(2, 5, BINS + 1)
    uniform = torch.rand(2, 5)
    median = head.draw(logits, uniform, 0.0)
    assert torch.equal(median, head.draw(logits, torch.full((2, 5), 0.5), 1.0))
    for n, row in enumerate(logits.flatten(0, 1).softmax(-1)):  # by a loop
        until, index = 0.0, 0
        while until + float(row[index]) <= 0.5:
            until, index = until + float(row[index]), index + 1
        low, high = edges()[index], edges()[index + 1]
        inside = (0.5 - until) / float(row[index])
        want = low * (high / low) ** inside * RATE if index else 0.0
        assert math.isclose(float(median.flatten()[n]), want, rel_tol=1e-4, abs_tol=1e-6)
    sharp = torch.zeros(1, 1, BINS + 1).index_fill_(2, torch.tensor(30), 5.0)
    low, high = (RATE * e for e in edges()[30:32])
    for uniform in (0.001, 0.999):  # cold: the most likely bin alone
        drawn = float(head.draw(sharp, torch.full((1, 1), uniform), 0.1))
        assert low <= drawn <= high
        assert not low <= float(head.draw(sharp, torch.full((1, 1), uniform), 1.0)) <= high


def test_padding_changes_nothing():
    torch.manual_seed(0)
    head = DurationHead(8, RATE)
    torch.nn.init.normal_(head.linear.weight)
    x, mask = torch.randn(2, 6, 8), torch.arange(6) < torch.tensor([[6], [3]])
    logits = head(x, mask)
    torch.testing.assert_close(head(x[1:, :3], mask[1:, :3]), logits[1:, :3])
    assert head(x[:, :1], mask[:, :1]).shape == (2, 1, BINS + 1)  # a text of nothing
    assert not torch.allclose(head(x.flip(1), mask).flip(1)[0], logits[0])  # neighbours count


def test_times_and_durations():
    durations = torch.tensor([[2.0, 1.0, 0.0, 3.5], [0.0, 0.5, 0.5, 1.0]])
    times = times_of(durations)
    assert times[0].tolist() == [[2.0, 3.0], [3.0, 3.0], [3.0, 6.5]]
    assert torch.equal(durations_of(times), durations)
    assert durations_of(torch.empty(2, 0, 2)).isnan().all()
