"""The source of known entropy: its figures against plain sums, and a model that reaches them."""

import importlib.util
import itertools
from math import log
from pathlib import Path

import numpy as np
import pytest
from entropy_source import MarkovSource

BENCH = Path(__file__).parents[2] / "tools/bench/known_entropy.py"


def entropy_by_enumeration(source, T, what, given):
    """H(what | given) from all sequences of T frames; both are sets of (frame, level)."""
    joint, margin = {}, {}
    for path in itertools.product(range(len(source.stationary)), repeat=T):
        p = source.stationary[path[0]]
        for a, b in itertools.pairwise(path):
            p *= source.transition[a, b]
        cell = lambda at: tuple(source.digits[path[t]][k] for t, k in at)  # noqa: B023, E731
        joint[cell(given + what)] = joint.get(cell(given + what), 0) + p
        margin[cell(given)] = margin.get(cell(given), 0) + p
    h = lambda d: -sum(p * log(p) for p in d.values() if p > 0)  # noqa: E731
    return h(joint) - h(margin)


def test_bounds_equal_enumeration():
    source, T = MarkovSource(2, 2, seed=3), 5
    a, b = (lambda t: (t, 0)), (lambda t: (t, 1))
    level0 = sum(
        entropy_by_enumeration(
            source, T, [a(t)], [a(i) for i in range(t)] + [b(i) for i in range(t - 1)]
        )
        for t in range(T)
    )
    level1 = sum(
        entropy_by_enumeration(
            source, T, [b(t)], [a(i) for i in range(t + 1)] + [b(i) for i in range(t)]
        )
        for t in range(T)
    )
    np.testing.assert_allclose(source.delay_bound(T) * T, [level0, level1], rtol=1e-9)
    parallel = [
        sum(
            entropy_by_enumeration(source, T, [(t, k)], [f(i) for i in range(t) for f in (a, b)])
            for t in range(T)
        )
        for k in range(2)
    ]
    np.testing.assert_allclose(source.parallel_bound(T) * T, parallel, rtol=1e-9)
    everything = [f(i) for i in range(T) for f in (a, b)]
    np.testing.assert_allclose(
        source.entropy(T) * T, entropy_by_enumeration(source, T, everything, []), rtol=1e-9
    )


def test_bounds_are_ordered_and_apart():
    source = MarkovSource(2, 4)
    entropy, delay = source.entropy(64), source.delay_bound(64).sum()
    parallel = source.parallel_bound(64).sum()
    assert entropy * 1.03 < delay and entropy * 1.03 < parallel


def test_samples_follow_the_chain():
    source = MarkovSource(2, 3, seed=1)
    codes = source.sample(400, 100, seed=0)
    state = codes[..., 0] * 3 + codes[..., 1]
    counts = np.zeros((9, 9))
    np.add.at(counts, (state[:, :-1].ravel(), state[:, 1:].ravel()), 1)
    rows = counts / counts.sum(1, keepdims=True)
    assert np.abs(rows - source.transition).max() < 0.05


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten", "depth"])
def test_a_trained_model_reaches_its_bound(pattern):
    spec = importlib.util.spec_from_file_location("known_entropy", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    source = MarkovSource(2, 4)
    nats = bench.train(source, pattern, steps=400, num_frames=32, items=24).sum()
    bound = bench.bounds(source, num_frames=32)[pattern]
    assert 0.99 * bound < nats < 1.03 * bound
