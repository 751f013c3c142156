"""Filters and draws against their definitions."""

import itertools
import math

import pytest
import torch

from rvqlm.generation.sampling import SamplingConfig, sample, uniforms, without_repetition


def naive(logits: list[float], temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> list[float]:
    """The distribution that codes are drawn from, one by one in the words of the definitions."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda v: -weights[v])
    kept = order[:top_k] if top_k else order
    total = sum(weights[v] for v in kept)
    nucleus, held = [], 0.0
    for v in kept:
        if held >= top_p * total:
            break
        nucleus.append(v)
        held += weights[v]
    likeliest = weights[order[0]]
    kept = [v for v in nucleus if weights[v] >= min_p * likeliest]
    total = sum(weights[v] for v in kept)
    return [weights[v] / total if v in kept else 0.0 for v in range(len(logits))]


SETTINGS = [
    dict(zip(("temperature", "top_k", "top_p", "min_p"), values))
    for values in itertools.product((0.7, 1.0), (0, 1, 4, 99), (0.5, 1.0), (0.0, 0.2))
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_filter_is_what_its_definition_says(setting):
    """A fine comb of uniforms finds the measure of each code."""
    torch.manual_seed(0)
    comb = (torch.arange(4000) + 0.5) / 4000
    for logits in (torch.randn(9) * 2, torch.tensor([0.0, -1.0, -torch.inf, 2.0, 0.5])):
        drawn = sample(logits.expand(len(comb), -1), comb, SamplingConfig(**setting))
        share = torch.bincount(drawn, minlength=len(logits)) / len(comb)
        wanted = torch.tensor(naive(logits.tolist(), **setting))
        torch.testing.assert_close(share, wanted, atol=1e-3, rtol=0)
        assert not share[wanted == 0].any()


def test_levels_have_temperatures_of_their_own():
    torch.manual_seed(0)
    logits, uniform = torch.randn(50, 4, 9) * 2, torch.rand(50, 4)
    config = SamplingConfig(level_temperatures=(1.5, 0.0, 0.6))
    drawn = sample(logits, uniform, config)
    for level, temperature in enumerate((1.5, 0.0, 0.6, 0.6)):  # the last for all further ones
        alone = SamplingConfig(temperature=temperature)
        wanted = sample(logits[:, level], uniform[:, level], alone)
        assert torch.equal(drawn[:, level], wanted)
        assert torch.equal(sample(logits[:, level], uniform[:, level], config, level), wanted)
    assert torch.equal(sample(logits[:, 2:], uniform[:, 2:], config, 2), drawn[:, 2:])


def test_a_code_that_repeats_is_drawn_again_among_all():
    torch.manual_seed(0)
    N, W, k, V = 40, 10, 3, 5
    logits, uniform = torch.randn(N, k, V), torch.rand(N, k)
    recent = torch.randint(-1, V, (N, W, k))
    config = SamplingConfig(top_k=1, repetition_window=W, repetition_threshold=0.2)
    first = logits.argmax(-1)
    drawn = without_repetition(first, logits, uniform, recent, config)
    plain = sample(logits, uniform, SamplingConfig())
    again = 0
    for n, level in itertools.product(range(N), range(k)):
        code = int(first[n, level])
        repeats = recent[n, :, level].tolist().count(code) / W > 0.2
        assert drawn[n, level] == (plain[n, level] if repeats else code)
        again += repeats
    assert 0 < again < N * k and not torch.equal(drawn, first)


def test_extremes():
    logits = torch.tensor([[0.0, 2.0, -torch.inf]])
    for u in (0.0, 1 - 2**-24):
        assert sample(logits, torch.tensor([u]), SamplingConfig()) < 2
    assert sample(logits, torch.tensor([0.0]), SamplingConfig(temperature=0)) == 1


def splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_uniforms_are_a_function_of_seed_row_step_and_column():
    rows = [7, 0, 1 << 40, -3, 2**64 + 5]
    for seed in (3, -1, 2**70 + 9):
        found = uniforms(seed, rows, 4, 3, first=11)
        for (b, row), s, column in itertools.product(enumerate(rows), range(4), range(3)):
            x = splitmix(splitmix(seed % 2**64) + row)
            x = splitmix(splitmix(x % 2**64 + 11 + s) + column)
            assert found[b, s, column] == (x >> 40) / 2**24
    a, b = uniforms(3, [0, 1], 5, 4), uniforms(3, [7, 0, 1], 9, 6)
    assert torch.equal(a, b[1:, :5, :4])
    assert not torch.equal(a[0], a[1]) and not torch.equal(a, uniforms(4, [0, 1], 5, 4))


def test_uniforms_are_uniform_and_unrelated():
    x = uniforms(0, range(20), 200, 10).double()
    assert 0 <= x.min() < 1e-3 and 1 - 1e-3 < x.max() < 1
    counts = torch.histc(x.flatten(), 100, 0, 1)
    assert ((counts - 400) ** 2 / 400).sum() < 160  # chi square of 99 degrees, p < 1e-4
    for dim in range(3):  # neighbours along rows, steps, columns
        n = x.shape[dim] - 1
        pair = x.narrow(dim, 0, n).flatten(), x.narrow(dim, 1, n).flatten()
        assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 4 / len(pair[0]) ** 0.5


def test_bad_options_all_named():
    bad = SamplingConfig(-1, -2, 0, min_p=2, level_temperatures=(-1,), best_of=0)
    bad.ban = ("0:1", "0,1")
    bad.repetition_window, bad.repetition_threshold = -1, 2
    assert [problem.split()[0] for problem in bad.problems()] == [
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--level-temperatures",
        "--repetition-window",
        "--repetition-threshold",
        "--ban",
        "--best-of",
    ]
