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
    totals.sums[0] = torch.tensor([20 * math.log(2), 40 * math.log(2)])
    totals.sums[2] = 10
    metrics = totals.metrics(Fraction(50))
    assert metrics["nats"] == pytest.approx([2 * math.log(2), 4 * math.log(2)])
    assert metrics["loss"] == pytest.approx(3 * math.log(2))
    assert metrics["bits_per_second"] == pytest.approx(6 * 50)
    assert bits_per_second([math.log(2)], Fraction(44100, 512)) == pytest.approx(44100 / 512)


def test_totals_merge_and_survive_saving():
    a, b = Totals(2), Totals(2)
    for totals, x in ((a, 1.0), (b, 2.0)):
        totals.sums += x
        totals.extra["end"] = torch.tensor([x, 1.0], dtype=torch.float64)
        totals.frames, totals.cells = 3, 4
    a.merge(b)
    c = Totals(2)
    c.load_state_dict(a.state_dict())
    assert c.sums.tolist() == [[3.0] * 2] * 3
    assert c.metrics(Fraction(1))["end"] == 1.5 and (c.frames, c.cells) == (6, 8)


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
