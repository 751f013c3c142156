"""Edit distance against its definition, and error rates with known answers."""

from functools import lru_cache

import numpy as np
import pytest

from rvqlm.metrics.recognition import (
    Recognized,
    align,
    count_edits,
    edit_distances,
    error_rate,
    read_pairs,
    summarize,
    write_pairs,
)


def naive(reference, hypothesis):
    @lru_cache(None)
    def distance(i, j):
        if not i or not j:
            return i + j
        wrong = reference[i - 1] != hypothesis[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + wrong)

    return distance(len(reference), len(hypothesis))


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(0, 4, rng.integers(0, 12)).tolist()  # noqa: E731
    return [(draw(), draw()) for _ in range(150)]


def test_distances_equal_the_recursion(pairs):
    expected = [naive(*pair) for pair in pairs]
    assert edit_distances(*zip(*pairs)).tolist() == expected
    assert [int(edit_distances([r], [h])[0]) for r, h in pairs] == expected  # whatever the batch
    assert edit_distances([], []).tolist() == []


def test_alignments_are_a_shortest_way(pairs):
    for reference, hypothesis in pairs:
        aligned = align(reference, hypothesis)
        assert (None, None) not in aligned
        for side, whole in enumerate((reference, hypothesis)):
            assert [pair[side] for pair in aligned if pair[side] is not None] == whole
        assert sum(said != heard for said, heard in aligned) == naive(reference, hypothesis)
        edits = count_edits(aligned)
        assert edits.errors == naive(reference, hypothesis)
        assert edits.insertions - edits.deletions == len(hypothesis) - len(reference)
        assert min(edits) >= 0 and edits.substitutions + edits.deletions <= len(reference)


@pytest.mark.parametrize(
    "reference,hypothesis,expected",
    [
        ("kitten", "sitting", (2, 1, 0)),
        ("abc", "", (0, 0, 3)),
        ("", "ab", (0, 2, 0)),
        ("abcd", "acd", (0, 0, 1)),
        ("ab", "ba", (2, 0, 0)),
    ],
)
def test_known_edits(reference, hypothesis, expected):
    ids = [[ord(c) for c in word] for word in (reference, hypothesis)]
    assert tuple(count_edits(align(*ids))) == expected


def test_what_was_left_out_stands_at_its_place():
    said, heard = ([ord(c) for c in word] for word in ("abcd", "xbcdd"))
    symbols = {ord(c): c for c in "abcdx"}
    aligned = align(said, heard)
    lines = write_pairs(aligned, symbols.__getitem__)
    assert lines in (["a b c <eps> d", "x b c d d"], ["a b c d <eps>", "x b c d d"])
    assert [tuple(c and ord(c) for c in pair) for pair in read_pairs(lines)] == aligned
    assert read_pairs(write_pairs(align([7, 8], []), str)) == [("7", None), ("8", None)]
    with pytest.raises(ValueError):
        read_pairs(["a b", "a"])


def test_rate_is_of_all_symbols_together_and_its_interval_covers():
    rate = error_rate(np.array([1, 0, 9]), np.array([10, 80, 10]))
    assert rate["error_rate"] == 0.1  # not the mean of the rates, 0.33
    assert error_rate([3], [10]) == {"error_rate": 0.3, "interval": None}
    same = error_rate(np.full(20, 2), np.full(20, 10))
    assert same["interval"] == [0.2, 0.2]
    # errors of a known rate: the interval holds it in about 95 of 100 tries, and is as wide as the
    # normal approximation says
    rng, symbols, held, widths = np.random.default_rng(0), np.full(50, 50), 0, []
    for _ in range(100):
        low, high = error_rate(rng.binomial(50, 0.2, 50), symbols)["interval"]
        held += low <= 0.2 <= high
        widths.append(high - low)
    assert 88 <= held <= 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 2500) ** 0.5, rel=0.1)


def test_summary_of_items():
    items = [
        Recognized("a", [1, 2, 3], [1, 2, 3]),
        Recognized("b", [4, 5], [4, 6, 5]),
        Recognized("c", [7, 8, 9], [7, 9]),
    ]
    summary = summarize(items)
    assert (summary["items"], summary["symbols"], summary["errors"]) == (3, 8, 2)
    counted = [summary[k] for k in ("substitutions", "insertions", "deletions")]
    assert counted == [0, 1, 1]
    assert summary["error_rate"] == 0.25
    assert summary["identified"] == (3, 3)
    # no two share a symbol: each costs the longer of text and transcript, 17 errors in 16 symbols
    assert summary["chance"] == 17 / 16
    assert items[1].row(lambda ids: " ".join(map(str, ids)), str) == {
        "name": "b",
        "reference": "4 5",
        "recognized": "4 6 5",
        "symbols": 2,
        "errors": 1,
        "substitutions": 0,
        "insertions": 1,
        "deletions": 0,
        "aligned": ["4 <eps> 5", "4 6 5"],
    }
    assert summarize([items[0], items[0]])["chance"] is None


def test_word_boundaries_apart():
    items = [
        Recognized("a", [1, 9, 2, 3], [1, 2, 9, 3]),  # a boundary at the wrong place
        Recognized("b", [4, 9, 5], [4, 9, 6]),
        Recognized("c", [9], [1]),  # nothing that could be heard
    ]
    assert summarize(items)["sounds"] is None
    summary = summarize(items, silent={9})
    assert summary["sounds"]["error_rate"] == 1 / 5
    assert summary["error_rate"] == 4 / 8
    assert summarize(items[2:], silent={9})["sounds"] is None


def test_chance_compares_with_every_other_text():
    items = [Recognized("a", [1], [1]), Recognized("b", [1], [1, 2]), Recognized("c", [3, 4], [3])]
    # a and b against c: 2 and 2 errors in 2 x 2 symbols; c against a and b: 1 and 1 in 2
    assert summarize(items)["chance"] == 6 / 6
    items[2].recognized = [1]
    assert summarize(items)["chance"] == 4 / 6
    assert summarize(items[:2])["chance"] is None


def test_identified_are_those_nearest_to_their_own_text():
    said = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 9]]
    heard = [[1, 2, 3], [1, 2, 6], [1, 2, 9]]  # as near to the first as to the third; lost; found
    items = [Recognized(str(i), s, h) for i, (s, h) in enumerate(zip(said, heard))]
    assert summarize(items)["identified"] == (1, 3)
