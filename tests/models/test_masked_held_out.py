"""masked outside training: nats that bound those of all codes, without bias and reproducible."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from entropy_source import MarkovSource
from masked_models import INFO, K, V, make, random_items

from rvqlm.batch import Batch
from rvqlm.metrics.losses import evaluate_batches
from rvqlm.metrics.uncertainty import ByRecording
from rvqlm.modules.masking import MASKINGS


def exact_bound(model, codes):
    """Of one item: the mean over all sets of hidden units of a kind, of N / n times their nats,
    averaged over n; level by level where that is the order."""
    T = len(codes)
    batch = Batch.from_codes([codes])

    def of(levels, units, hide):
        total = torch.zeros(K)
        by_size = [[] for _ in range(len(units))]
        for bits in range(1, 1 << len(units)):
            chosen = [u for i, u in enumerate(units) if bits >> i & 1]
            hidden = torch.zeros(1, T, K, dtype=torch.bool)
            for t, k in hide:
                hidden[0, t, k] = True
            for unit in chosen:
                for t, k in unit:
                    hidden[0, t, k] = True
            state = model.hidden(batch.codes.long().masked_fill(hidden, V), batch.lengths, None)
            log_p = model.heads(state)[0].log_softmax(-1)
            nats = torch.zeros(K)
            for unit in chosen:
                for t, k in unit:
                    if k in levels:
                        nats[k] -= log_p[t, k, codes[t, k]]
            by_size[len(chosen) - 1].append(nats * len(units) / len(chosen))
        for found in by_size:
            total += torch.stack(found).mean(0) / len(by_size)
        return total

    everything = range(K)
    if model.masking == "frame":
        return of(everything, [[(t, k) for k in everything] for t in range(T)], [])
    if model.masking == "level":
        return of(everything, [[(t, k)] for t in range(T) for k in everything], [])
    return sum(
        of(
            [q],
            [[(t, q)] for t in range(T)],
            [(t, k) for t in range(T) for k in everything if k > q],
        )
        for q in everything
    )


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("masking", MASKINGS)
@torch.no_grad()
def test_nats_of_a_level_are_those_of_what_scored_it(masking, draws):
    """One cell at a time, in float64: no level's mean nats depend on how often it was scored."""
    model = make(masking=masking, predict_length=False, eval_draws=draws).double().eval()
    items, prompts = random_items([6, 3, 5, 4, 7], seed=3), [2, 0, 1, 0, 3]
    batches = [
        Batch.from_codes(items[:3], prompt_lengths=prompts[:3]),
        Batch.from_codes(items[3:], prompt_lengths=prompts[3:]),
    ]
    batches[1].index += 3
    nats, hits, weights = torch.zeros(3, 5, K, dtype=torch.float64)
    for batch, draw in itertools.product(batches, range(draws)):
        mask = model.held_out_mask(batch, draw)
        for b, t, k in mask.predicted.nonzero().tolist():
            codes = batch.codes[b : b + 1, : batch.lengths[b]].long()
            seen = codes.masked_fill(mask.hidden[b : b + 1, : batch.lengths[b]], V)
            logits = model.heads(model.hidden(seen, batch.lengths[b : b + 1], None))[0, t, k]
            scored = batch.lengths[b] - batch.prompt_lengths[b]
            weight, item = scored / mask.predicted[b].sum(), int(batch.index[b])
            nats[item, k] -= weight * logits.log_softmax(-1)[codes[0, t, k]]
            hits[item, k] += weight * (logits.argmax() == codes[0, t, k])
            weights[item, k] += weight
    recordings = ByRecording(K)
    found = evaluate_batches(model, batches, INFO, torch.device("cpu"), recordings=recordings)
    metrics = found.metrics(INFO.frame_rate)
    of_level = weights.sum(0)
    scored = of_level > 0
    want = (nats.sum(0) / of_level)[scored].tolist()
    assert [n for n in metrics["nats"] if n is not None] == pytest.approx(want, rel=1e-6)
    want_hits = (hits.sum(0) / of_level)[scored].tolist()
    assert [a for a in metrics["accuracy"] if a is not None] == pytest.approx(want_hits, rel=1e-6)
    assert max(want_hits) <= 1
    assert metrics["loss"] == pytest.approx(sum(want) / len(want), rel=1e-6)
    if masking != "coarse_first" or draws > 1:
        assert scored.all()
        bits = sum(want) / math.log(2) * float(INFO.frame_rate)
        assert metrics["bits_per_second"] == pytest.approx(bits)
    # what each recording adds
    factor = K / draws
    for item in range(5):
        expected = torch.stack([nats[item], weights[item]]) * factor
        np.testing.assert_allclose(recordings.sums[item], expected, rtol=1e-6)


@pytest.mark.parametrize("masking", MASKINGS)
def test_held_out_nats_estimate_the_bound_without_bias(masking):
    """Against the sum over every possible mask: 2 ** 9 of cells, 2 ** 3 of frames."""
    model = make(masking=masking, predict_length=False).eval()
    codes, n = random_items([3], seed=2)[0], 3000
    with torch.no_grad():
        want = exact_bound(model, codes)
        found, counts = [], torch.zeros(K)
        for start in range(0, n, 500):
            batch = Batch.from_codes([codes] * 500)
            batch.index += start
            out = model(batch)
            found.append(out.nats / 500)
            counts += out.count
    assert (counts / (3 * n) - 1).abs().max() < (1e-5 if masking == "frame" else 0.02)
    ratio = torch.stack(found).sum(0) * 500 / counts * 3  # what is reported: nats of an item
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert (error / want).max() < 0.03
    assert ((found.mean(0) - want).abs() < 5 * error + 1e-3).all()
    assert ((ratio - want).abs() < 5 * error + 1e-3).all()


@pytest.mark.parametrize("masking", MASKINGS)
@torch.no_grad()
def test_without_context_the_bound_is_the_cross_entropy(masking, monkeypatch):
    """Codes of an independent source, and a model that knows its distribution and sees nothing:
    every order of making them costs the same."""
    p = torch.rand(K, V, generator=torch.Generator().manual_seed(1)).softmax(-1)
    model = make(masking=masking, predict_length=False).eval()
    ones = torch.ones(400, 5, model.config.decoder_dim)
    monkeypatch.setattr(model, "_masked_hidden", lambda *_: ones)
    torch.nn.init.zeros_(model.heads.weight)[..., 0] = p.log()
    codes = torch.multinomial(p, 400 * 5, replacement=True).T.reshape(400, 5, K)
    batch = Batch(
        codes, torch.full((400,), 5), torch.ones(400, dtype=torch.bool), torch.arange(400)
    )
    want = -torch.stack([p[k].log()[codes[..., k]].sum() for k in range(K)])
    out = model(batch)
    torch.testing.assert_close(out.nats / out.count * 2000, want, rtol=0.02, atol=0)
    # all alike: no matter which cells are drawn
    torch.nn.init.zeros_(model.heads.weight)
    out = model(batch)
    torch.testing.assert_close(out.nats / out.count, torch.full((K,), float(V)).log())


@pytest.mark.parametrize("masking", MASKINGS)
def test_how_much_is_hidden_goes_evenly_over_all_amounts(masking):
    model = make(masking=masking)
    batch = Batch.from_codes([torch.zeros(4, K)] * 500)
    sizes = []
    for draw in range(4):
        mask = model.held_out_mask(batch, draw)
        level = mask.predicted.any(1).int().argmax(1) if masking == "coarse_first" else 0
        sizes.append(mask.predicted.sum((1, 2)) + 100 * level)
    counts = torch.stack(sizes).unique(return_counts=True)[1]
    assert len(counts) == (4 if masking == "frame" else 12)
    assert counts.max() - counts.min() < 12  # of 2000 / 12; at random about 45


@pytest.mark.parametrize("masking", MASKINGS)
def test_held_out_nats_are_the_same_every_time_and_in_any_batch(masking):
    model = make(masking=masking).eval()
    batch = Batch.from_codes(random_items([9, 3, 5]), prompt_lengths=[2, 0, 1])
    batch.index = torch.tensor([70_000, 3, 9])
    out = model(batch)
    torch.manual_seed(8)
    again = model(batch)
    assert torch.equal(out.loss, again.loss) and torch.equal(out.nats, again.nats)
    order = torch.tensor([2, 1])
    part = Batch(
        *(x[order] for x in (batch.codes[:, :5], batch.lengths, batch.ends, batch.index)),
        prompt_lengths=batch.prompt_lengths[order],
    )
    alone = Batch.from_codes([batch.codes[0]], prompt_lengths=[2])
    alone.index = batch.index[:1]
    parts = [model(part), model(alone)]
    torch.testing.assert_close(out.loss, sum(o.loss for o in parts))
    torch.testing.assert_close(out.nats, sum(o.nats for o in parts))
    torch.testing.assert_close(out.sums["accuracy"][0], sum(o.sums["accuracy"][0] for o in parts))
    torch.testing.assert_close(out.count, sum(o.count for o in parts))
    batch.index += 1
    assert not torch.isclose(model(batch).nats, out.nats).any()


def test_bound_of_frames_in_random_order_equals_enumeration():
    """What the bench compares a trained model with: a mean over all orders of three frames."""
    path = Path(__file__).parents[2] / "tools/bench/known_entropy.py"
    spec = importlib.util.spec_from_file_location("known_entropy", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    source, T = MarkovSource(2, 2, seed=1), 3
    p, q = source.stationary, source.transition
    joint = np.einsum("a,ab,bc->abc", p, q, q)
    member = source.digits[:, :, None] == np.arange(2)  # (states, K, V)
    entropy = lambda p: float(-(p * np.log(p)).sum())  # noqa: E731
    total = np.zeros(2)
    for order in itertools.permutations(range(T)):
        for place, t in enumerate(order):
            unseen = tuple(order[place + 1 :])
            for k in range(2):
                levels = np.moveaxis(joint.sum(unseen, keepdims=True), t, -1) @ member[:, k]
                total[k] += (entropy(levels) - entropy(levels.sum(-1))) / 6
    np.testing.assert_allclose(bench.masked_bound(source, T) * T, total, rtol=1e-9)
