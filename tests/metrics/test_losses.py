import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.metrics.losses import (
    Totals,
    bits_per_second,
    count_codes,
    evaluate_batches,
    unigram_nats,
)
from rvqlm.models.factory import build_model

INFO = CodecInfo("test", "0" * 16, 16000, 320, num_codebooks=2, codebook_size=5)


def make_model():
    torch.manual_seed(0)
    small = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "dropout": 0.5}
    model = build_model("codec-lm", small, INFO)
    with torch.no_grad():  # heads start at zero, which makes every code equally likely
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def test_figures_do_not_depend_on_the_batches():
    items = [torch.randint(5, (n, 2)) for n in (9, 7, 4, 4, 2, 1)]
    model = make_model()

    def metrics(*groups):
        batches = [Batch.from_codes(items[a:b]) for a, b in groups]
        return evaluate_batches(model, batches, INFO, torch.device("cpu")).metrics(Fraction(50))

    whole, split = metrics((0, 6)), metrics((0, 1), (1, 2), (2, 6))
    for name in ("loss", "nats", "accuracy", "bits_per_second", "frames", "end_nats"):
        assert whole[name] == pytest.approx(split[name], rel=1e-5), name
    assert whole["frames"] == 27 and whole["padding"] == pytest.approx(1 - 27 / 54)
    assert model.training  # dropout was off inside, and is on again


def test_bits_per_second():
    totals = Totals(2)
    totals.sums["nats"] = torch.tensor([[20 * math.log(2), 40 * math.log(2)], [10, 10]])
    metrics = totals.metrics(Fraction(50))
    assert metrics["nats"] == pytest.approx([2 * math.log(2), 4 * math.log(2)])
    assert metrics["loss"] == pytest.approx(3 * math.log(2))
    assert metrics["bits_per_second"] == pytest.approx(6 * 50)
    assert bits_per_second([math.log(2)], Fraction(44100, 512)) == pytest.approx(44100 / 512)


def test_no_level_counts_by_how_often_it_was_scored():
    """As in training where each item scores one level: whatever the dealing, the means stay."""
    totals = [Totals(3) for _ in range(2)]
    for total, counts in zip(totals, ([10.0, 40.0, 1.0], [5.0, 5.0, 5.0])):
        count = torch.tensor(counts, dtype=torch.float64)
        total.sums["nats"] = torch.stack([torch.tensor([1.0, 2.0, 6.0]) * count, count])
    assert [t.metrics(Fraction(50))["loss"] for t in totals] == [pytest.approx(3.0)] * 2
    totals[0].merge(totals[1])
    metrics = totals[0].metrics(Fraction(50))
    assert metrics["nats"] == [1.0, 2.0, 6.0] and metrics["loss"] == pytest.approx(3.0)
    assert metrics["bits_per_second"] == pytest.approx(3 * metrics["bits_per_token"] * 50)
    totals[0].sums["nats"][:, 2] = 0  # a level that nothing scored has no part in the loss
    metrics = totals[0].metrics(Fraction(50))
    assert metrics["loss"] == pytest.approx(1.5) and metrics["bits_per_second"] is None


def filled(x: float) -> Totals:
    """With metrics of a name and a shape that nothing but the model that returns them knows."""
    totals = Totals(2)
    for sums in totals.sums.values():
        sums += x
    totals.sums["end"] = torch.tensor([x, 1.0], dtype=torch.float64)
    totals.sums["top10"] = torch.tensor([[x, x], [4.0, 0.0]], dtype=torch.float64)
    totals.frames, totals.cells = 3, 4
    return totals


def test_totals_merge_reduce_and_survive_saving():
    a, b = filled(1.0), filled(2.0)
    a.merge(b)
    c = Totals(2)
    c.load_state_dict(a.state_dict())
    assert c.sums["nats"].tolist() == [[3.0] * 2] * 2
    metrics = c.metrics(Fraction(1))
    assert metrics["end"] == 1.5 and (c.frames, c.cells) == (6, 8)
    assert metrics["top10"] == [3 / 8, None] and metrics["accuracy"] == [1.0, 1.0]
    c.reduce(lambda sums: sums.mul_(2))  # two ranks with equal sums
    assert c.metrics(Fraction(1)) == {**metrics, "frames": 12}
    assert a.sums["top10"].tolist() == [[3.0, 3.0], [8.0, 0.0]]  # c's sums are its own
    c.clear()
    assert set(c.sums) == set(a.sums) and not any(v.any() for v in c.sums.values())


def test_the_layout_of_sums_in_checkpoints():
    state = {
        "sums": torch.tensor([[6.0, 9.0], [1.0, 2.0], [3.0, 4.0]], dtype=torch.float64),
        "extra": {"end_nats": torch.tensor([5.0, 2.0], dtype=torch.float64)},
        "frames": 3,
        "cells": 4,
    }
    totals = Totals(2)
    totals.load_state_dict(state)
    metrics = totals.metrics(Fraction(1))
    assert metrics["nats"] == [2.0, 2.25] and metrics["accuracy"] == [1 / 3, 0.5]
    assert metrics["end_nats"] == 2.5 and (totals.frames, totals.cells) == (3, 4)
    again = totals.state_dict()
    assert again.keys() == state.keys() and torch.equal(again["sums"], state["sums"])
    assert again["extra"]["end_nats"].tolist() == [5.0, 2.0]


def test_count_codes_leaves_padding_out():
    padded = np.array([[[0, 4], [0, 3]], [[1, 4], [-1, -1]]])
    assert count_codes([padded, np.array([[2, 2]])], INFO).tolist() == [
        [2, 1, 1, 0, 0],
        [0, 0, 1, 1, 2],
    ]


def test_unigram_is_the_smoothed_cross_entropy():
    train = np.array([[3, 0, 1, 0, 0]])
    held_out = np.array([[1, 1, 0, 0, 0]])
    expected = -(math.log(4 / 9) + math.log(1 / 9)) / 2
    assert unigram_nats(train, held_out) == [pytest.approx(expected)]
    many = np.array([[10**8] * 5])
    assert unigram_nats(many, held_out) == [pytest.approx(math.log(5), rel=1e-6)]
