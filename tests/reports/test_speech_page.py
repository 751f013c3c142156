"""Symbols said and heard, their marks, and how long they last."""

import pytest

from rvqlm.reports.speech import GROUP, Heard, boxes


def heard(said: str, transcript: str) -> Heard:
    row = {"errors": 0, "symbols": len(said.split()), "aligned": [said, transcript]}
    return Heard.of(row)


def test_every_kind_of_error_has_its_sign():
    found = heard("a b <eps> c", "a x y <eps>")
    assert [c.kind for c in found.columns] == ["right", "substitution", "insertion", "deletion"]
    assert [c.sign for c in found.columns] == ["", "≠", "+", "−"]
    assert [c.shown for c in found.columns] == [["a", "a"], ["b", "x"], ["·", "y"], ["c", "·"]]
    assert found.kinds == ["1 substitution", "1 insertion", "1 deletion"]


def test_rows_of_earlier_versions_are_aligned_by_character():
    row = {"reference": "ab d", "recognized": "ab cd", "errors": 1, "symbols": 4}
    columns = Heard.of(row).columns
    assert "".join(c.said or "" for c in columns) == "ab d"
    assert "".join(c.heard or "" for c in columns) == "ab cd"
    assert [c.kind for c in columns].count("insertion") == 1
    # one that has no reference either
    assert [c.kind for c in Heard.of(row | {"reference": ""}).columns] == ["insertion"] * 5


def test_lines_break_between_words_and_long_words_are_broken():
    said = "a b <space> c <space> " + " ".join("d" * (GROUP + 1))
    assert [len(group) for group in heard(said, said).groups] == [3, 2, GROUP, 1]
    pieces = "▁th e ▁cat"
    assert [len(group) for group in heard(pieces, pieces).groups] == [2, 1]
    assert heard("<space>", "<space>").columns[0].shown == ["␣", "␣"]


def test_boxes_are_as_wide_as_their_symbols_last():
    alignment = [("a", 0.0, 0.5), (" ", 0.5, 1.0), ("b", 1.0, 3.0), ("c", 4.0, 5.0)]
    found = boxes(alignment, seconds=4.0)
    assert [(b.symbol, b.left, b.width) for b in found] == [
        ("a", 0.0, 12.5), ("␣", 12.5, 12.5), ("b", 25.0, 50.0),
    ]  # fmt: skip
    assert [b.kind for b in found] == ["right", "space", "right"]
    assert found[2].words == "b 2000 ms, at 1.00 s"
    assert boxes([], seconds=1.0) == []


@pytest.mark.parametrize(
    "said,kinds",
    [("a <space> b", ["right", "space", "substitution"]), ("a b", ["right", "space", "right"])],
)
def test_boxes_show_errors_where_their_symbols_are_those_of_the_transcript(said, kinds):
    transcript = heard(said, said.replace("b", "x"))
    found = boxes([("a", 0, 1), ("<space>", 1, 2), ("b", 2, 3)], 3.0, transcript)
    assert [b.kind for b in found] == kinds
    assert found[2].words.endswith("; heard x") == (kinds[2] == "substitution")
