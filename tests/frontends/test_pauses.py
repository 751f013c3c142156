"""Pauses in a text, of each type of table: which symbols hold them, and what is none."""

import numpy as np
import pytest

from rvqlm.errors import UserError
from rvqlm.frontends.aligned import Labels
from rvqlm.frontends.pauses import encode_with_pauses, split_pauses, words_of
from rvqlm.frontends.pieces import train_pieces
from rvqlm.frontends.symbols import SymbolTable, read_symbol
from rvqlm.frontends.text import TextFrontEnd, TextSettings

TEXTS = ["the cat sat.", "a cat, a hat", "that cat sat at the hat."]


def labels_of(type, symbols, **settings):
    return Labels(TextFrontEnd(TextSettings(type, **settings), SymbolTable.of(symbols)))


CHARS = labels_of("chars", ["<space>", *"thecas.,-"])
PHONES = labels_of("phonemes", ["<space>", ".", *"ðəkætsˈ"])
WORDLESS = labels_of("chars", [*"thecas."])


@pytest.fixture(scope="module")
def pieces():
    return Labels(TextFrontEnd.of_pieces(TextSettings("bpe"), train_pieces(iter(TEXTS * 9), 20)))


def symbols(labels, text):
    """(symbol, seconds) of the lead, called "", and of each symbol of a text."""
    ids, seconds = encode_with_pauses(labels, text)
    names = ["", *(read_symbol(labels.front_end.table[int(id)]) for id in ids)]
    return list(zip(names, [None if np.isnan(s) else round(s, 6) for s in seconds]))


def held(labels, text):
    """The symbols that have a duration, between those beside them."""
    found = symbols(labels, text)
    return [pair for pair in found if pair[1] is not None]


def test_silence_is_shared_by_white_space_and_punctuation():
    found = symbols(CHARS, "the cat. [pause 0.5s] the hat")
    assert "".join(name for name, _ in found) == "the cat. the hat"
    assert [s for _, s in found] == [*[None] * 8, 0.25, 0.25, *[None] * 7]
    assert held(CHARS, "the[pause 500ms]cat") == [(" ", 0.5)]
    assert held(PHONES, "the cat. [pause .4s] The cat.") == [(".", 0.2), (" ", 0.2)]
    plain = PHONES.front_end.encode("the cat. The cat.")
    assert encode_with_pauses(PHONES, "the cat. [pause 1s] The cat.").ids.tolist() == plain.tolist()


def test_pieces_hold_a_pause_by_what_parts_them(pieces):
    names = [name for name, _ in symbols(pieces, "the cat [pause 1s] sat")]
    assert held(pieces, "the cat [pause 1s] sat") == [("▁", 1.0)]  # a piece of its own
    assert "".join(names) == "▁the▁cat▁▁sat"
    text = "a cat, [pause 1s] a hat"
    assert held(pieces, text) == [(",", 1.0)]
    plain = pieces.front_end.encode("a cat, a hat").tolist()
    assert encode_with_pauses(pieces, text).ids.tolist() == plain


def test_before_behind_and_beside_each_other():
    assert held(CHARS, "[pause 1s] the cat") == [("", 1.0)]
    assert held(CHARS, "- [pause 1s] the cat") == [("", 0.0), ("-", 1.0)]
    assert held(CHARS, "the cat[pause 2s]") == [(" ", 2.0)]
    assert symbols(CHARS, "the cat. [PAUSE 2 s]")[-2:] == [("t", None), (".", 2.0)]
    assert held(CHARS, "the cat [pause 2s].") == [(".", 2.0)]
    several = "the [pause 100ms][pause 0.2s], [pause 0.3s] cat [pause 0s] sat"
    assert held(CHARS, several) == [(",", 0.3), (" ", 0.3), (" ", 0.0)]
    assert words_of(several) == "the, cat sat" and words_of("[the] cat") == "[the] cat"
    assert len(encode_with_pauses(CHARS, "[pause 1s]").ids) == 0


def test_a_text_without_pauses_is_as_it_was(pieces):
    for labels in (CHARS, PHONES, pieces):
        ids, seconds = encode_with_pauses(labels, "the cat. the cat")
        assert seconds is None
        assert ids.tolist() == labels.front_end.encode("the cat. the cat").tolist()
    others = "[laugh] a [pauses] [pause_x] (pause 1s)"
    assert split_pauses(others) == ([others], [])
    with pytest.raises(UserError, match=r"no symbol for '\['"):  # as the front end treats it
        encode_with_pauses(CHARS, "the [cat]")


@pytest.mark.parametrize(
    "mark",
    ["[pause]", "[pause -1s]", "[pause 0.5]", "[pause0.5s]", "[pause 1 min]", "[pause: 1s]",
     "[pause nans]", "[pause 1e9s]", "[pause 99999s]", "[pause 0,5s]", "[pause ٣s]",
     "[ Pause s ]", "[pause 1s", "[pause 1s [pause 1s]"],
)  # fmt: skip
def test_a_malformed_pause_is_refused(mark):
    for call in (split_pauses, words_of, lambda text: encode_with_pauses(CHARS, text)):
        with pytest.raises(UserError, match=r"is no pause; write \[pause 0.5s\] or \[pause 500ms"):
            call(f"the {mark} cat")


def test_a_table_without_white_space():
    assert held(WORDLESS, "the. [pause 1s]cat") == [(".", 1.0)]
    with pytest.raises(UserError, match="no symbol of white space to hold a pause"):
        encode_with_pauses(WORDLESS, "the [pause 1s] cat")
