"""Standard errors of held-out figures, against what drawing other recordings does."""

from fractions import Fraction
from math import log

import numpy as np
import pytest
import torch

from rvqlm.metrics.uncertainty import ByRecording, deviations


def draw(rng, recordings: int, one_level: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and counts (M, 2): of unequal lengths, where a long recording costs less a code, its
    levels go together, and with ``one_level`` either level is scored of each."""
    counts = rng.integers(2, 30, (recordings, 1)) * np.ones((1, 2))
    if one_level:
        counts = counts * np.eye(2)[np.arange(recordings) % 2]
    means = 3 + rng.normal(0, 0.5, (recordings, 1)) + 4 / (counts.max(1, keepdims=True) + 1)
    nats = counts * (means + np.array([0.0, 1.0]))
    return torch.from_numpy(nats), torch.from_numpy(counts)


@pytest.mark.parametrize("one_level", [False, True])
def test_errors_are_the_scatter_over_other_recordings(one_level):
    rng = np.random.default_rng(0)
    levels, bits, errors, within = [], [], [], []
    for _ in range(400):
        nats, counts = draw(rng, 60, one_level)
        found = ByRecording(2)
        found.add(torch.arange(40), (nats[:40], counts[:40]))
        found.add(torch.arange(40, 60), (nats[40:], counts[40:]))
        unsure = found.uncertainty(Fraction(50))
        assert unsure["recordings"] == 60
        levels.append((nats.sum(0) / counts.sum(0)).numpy())
        bits.append(levels[-1].sum() / log(2) * 50)
        errors.append([*unsure["nats"], unsure["bits_per_second"]])
        within.append(unsure["plus_minus"])
    scatter = [*np.std(levels, axis=0), np.std(bits)]
    assert np.mean(errors, axis=0) == pytest.approx(scatter, rel=0.15)
    inside = np.abs(np.array(bits) - np.mean(bits)) < within
    assert 0.91 < inside.mean() < 0.985


def test_parts_of_a_recording_are_one():
    whole, parts = ByRecording(1), ByRecording(1)
    whole.add(torch.tensor([4, 9]), (torch.tensor([[3.0], [5.0]]), torch.tensor([[2.0], [2.0]])))
    nats, count = torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([[1.0], [2.0], [1.0]])
    parts.add(torch.tensor([4, 9, 4]), (nats, count))
    assert whole.uncertainty(Fraction(1)) == parts.uncertainty(Fraction(1))


def test_what_one_recording_scored_is_not_known():
    found = ByRecording(2)
    assert found.uncertainty(Fraction(1))["bits_per_second"] is None
    nats = torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    found.add(torch.tensor([0, 1]), (nats, (nats > 0).double()))
    unsure = found.uncertainty(Fraction(1))
    assert unsure["nats"] == [pytest.approx(1.0), None] and unsure["plus_minus"] is None


def test_few_recordings_want_more_deviations():
    for freedom, quantile in ((5, 2.571), (9, 2.262), (29, 2.045)):  # of tables
        assert deviations(freedom) == pytest.approx(quantile, abs=0.03)
