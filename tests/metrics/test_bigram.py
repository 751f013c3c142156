"""Decoding with a bigram against all ways there are, against the greedy one, and where it helps."""

import itertools

import numpy as np
import pytest
import torch

from rvqlm.metrics.bigram import DISCOUNT, Bigram, bigram_log_probs
from rvqlm.metrics.viterbi import BLANK
from rvqlm.models.recognizer import greedy


def random_log_probs(rng, *shape, spread=2.0):
    logits = torch.from_numpy(spread * rng.standard_normal(shape))
    return logits.float().log_softmax(-1).numpy()


def written(decisions):
    """The text of a way: repetitions become one, blanks nothing."""
    return [k for k, _ in itertools.groupby(decisions) if k != BLANK]


def score(log_probs, way, bigram):
    text = [0, *written(way), 0]
    heard = sum(float(log_probs[t, v]) for t, v in enumerate(way))
    heard += bigram.weight * bigram.bonus * len(written(way))
    return heard + bigram.weight * bigram.log_probs[text[:-1], text[1:]].sum()


def test_the_best_of_all_ways():
    rng, differ = np.random.default_rng(0), 0
    for _ in range(150):
        S, V = rng.integers(1, 6), rng.integers(2, 4)
        log_probs = random_log_probs(rng, S, V)
        bigram = Bigram(
            random_log_probs(rng, V, V), rng.choice([0.3, 1.0, 3.0]), rng.choice([0.0, 1.5])
        )
        ways = list(itertools.product(range(V), repeat=S))
        best = max(ways, key=lambda way: score(log_probs, way, bigram))
        found = bigram.transcribe(log_probs[None], [S])[0]
        assert found == written(best)
        differ += found != written(log_probs.argmax(1))
    assert differ > 30


def test_without_weight_it_is_the_greedy_transcript():
    rng = np.random.default_rng(1)
    log_probs, decisions = random_log_probs(rng, 8, 60, 5), rng.integers(0, 61, 8)
    bigram = Bigram(random_log_probs(rng, 5, 5), 0.0)
    expected = greedy(torch.from_numpy(log_probs), torch.from_numpy(decisions))
    assert bigram.transcribe(log_probs, decisions) == expected


def test_an_item_is_the_same_in_any_batch_and_padding():
    rng = np.random.default_rng(2)
    log_probs, decisions = random_log_probs(rng, 4, 20, 6), [20, 7, 1, 0]
    bigram = Bigram(random_log_probs(rng, 6, 6), 0.7)
    together = bigram.transcribe(log_probs, decisions)
    assert together[3] == []
    for item, n, text in zip(log_probs, decisions, together):
        assert bigram.transcribe(item[None, :n], [n]) == [text]
        item[n:] = np.nan
    assert bigram.transcribe(log_probs, decisions) == together


def test_equal_symbols_have_a_blank_between_them():
    bigram = Bigram(bigram_log_probs([np.array([1, 1])] * 50, 3), 5.0)
    sure = np.log(np.array([[0.01, 0.98, 0.01]] * 2, np.float32))
    assert bigram.transcribe(sure[None], [2]) == [[1]]  # no room for the blank, whatever the weight
    apart = np.log(np.array([[0.01, 0.98, 0.01], [0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]))
    assert bigram.transcribe(apart[None], [3]) == [[1, 1]]


def test_what_is_ambiguous_is_what_the_texts_have_there():
    a, b, c, d = 1, 2, 3, 4
    texts = [np.array([a, b, c, d])] * 20 + [np.array([d, c])]
    # a, then b or c (rather c), then c, d; each heard for one decision with a blank after it
    heard = np.full((8, 5), 0.01)
    for t, symbol in zip(range(0, 8, 2), (a, c, c, d)):
        heard[t, symbol] = heard[t + 1, BLANK] = 0.96
    heard[2, b], heard[2, c] = 0.4, 0.57
    log_probs = np.log(heard)[None]
    counted = bigram_log_probs(texts, 5)
    assert Bigram(counted, 0.0).transcribe(log_probs, [8]) == [[a, c, c, d]]
    assert Bigram(counted, 0.5).transcribe(log_probs, [8]) == [[a, b, c, d]]


def test_what_is_usual_costs_nothing():
    texts = [np.array([1, 2, 3])] * 9 + [np.array([3, 1])]
    bigram = Bigram.of(texts, 4, 0.5)
    given = [bigram.log_probs[[0, *t], [*t, 0]] for t in texts]
    assert bigram.bonus == pytest.approx(-np.concatenate(given).mean())
    # of symbols drawn at random no text is better for being short
    rng = np.random.default_rng(3)
    bigram = Bigram.of([rng.integers(1, 5, 400) for _ in range(20)], 5, 1.0)
    log_probs = random_log_probs(rng, 1, 300, 5, spread=3.0)
    heard = len(bigram.transcribe(log_probs, [300])[0])
    assert heard == pytest.approx(len(written(log_probs[0].argmax(1))), rel=0.05)
    without = Bigram(bigram.log_probs, 1.0)
    assert len(without.transcribe(log_probs, [300])[0]) < 0.9 * heard


def test_counts_are_discounted_and_filled_up():
    texts = [np.array([1, 2, 1]), np.array([1]), np.array([2, 1])]
    found = np.exp(bigram_log_probs(texts, 4))
    assert found.sum(1) == pytest.approx(np.ones(4)) and (found > 0).all()
    # 1 four times, 2 twice, 3 never, three ends; after 1: one 2, three ends
    single = np.array([4, 5, 3, 1]) / 13
    left = DISCOUNT * 2 / 4
    expected = np.array([3 - DISCOUNT, 0, 1 - DISCOUNT, 0]) / 4 + left * single
    assert found[1] == pytest.approx(expected)
    assert found[3] == pytest.approx(single)  # never seen: only the symbols by themselves
