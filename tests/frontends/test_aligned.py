"""Items of an aligner on the symbols of a text, with and without agreement."""

import numpy as np
import pytest

from rvqlm.errors import UserError
from rvqlm.frontends.aligned import Item, Labels, fill_between
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings


def labels_of(type, symbols, **settings):
    return Labels(TextFrontEnd(TextSettings(type, **settings), SymbolTable.of(symbols)))


PHONES = labels_of("phonemes", ["<space>", ",", *"aɪoʊtnk"], stress=False)
CHARS = labels_of("chars", ["<space>", ",", "'", *"abcd"], lowercase=True)


def ids(labels, text):
    front_end = labels.front_end
    if labels.type == "phonemes":
        return front_end.encode_phonemes(text)
    return front_end.encode(text)


def items(*given):
    return [Item(*item) for item in given]


def test_phones_of_several_symbols_and_pauses():
    text = ids(PHONES, "tˈaɪ, noʊ")
    said = items(("sil", 0, 0.1), ("t", 0.1, 0.2), ("ˈaɪ", 0.2, 0.4), ("", 0.4, 0.6),
                 ("n", 0.6, 0.7), ("oʊ", 0.7, 0.9))  # fmt: skip
    placed = PHONES.place(text, said, "phone", 1.0)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]  # t a ɪ , <space> n o ʊ
    np.testing.assert_allclose(placed.times[:, 0], expected[:-1])
    np.testing.assert_allclose(placed.times[:, 1], expected[1:])
    known = [(1, 1), (1, 0), (0, 1), (0, 0), (0, 0), (1, 1), (1, 0), (0, 1)]
    assert placed.known.astype(int).tolist() == [list(k) for k in known]
    # the cut's end is a little before that of the last item
    assert PHONES.place(text, said, "phone", 0.88).times.max() == 0.88


def test_words():
    text = ids(PHONES, "toʊ, kan")
    assert [word.tolist() for word in PHONES.words(text)] == [[0, 1, 2], [5, 6, 7]]
    said = items(("to", 0, 0.3), (",", 0.3, 0.35), ("can", 0.4, 0.7))
    placed = PHONES.place(text, said, "word", 1.0)
    np.testing.assert_allclose(placed.times[:3], [[0, 0.1], [0.1, 0.2], [0.2, 0.3]])
    assert placed.known.sum() == 4
    with pytest.raises(UserError, match="1 words where the text has 2"):
        PHONES.place(text, said[:1], "word", 1.0)
    text = ids(CHARS, "a, b'd")
    placed = CHARS.place(text, items(("A,", 0.1, 0.2), ("B'D", 0.2, 0.6)), "word", 1.0)
    np.testing.assert_allclose(placed.times[-1], [0.4, 0.6])
    with pytest.raises(UserError, match="the word 'BC' where the text has"):
        CHARS.place(text, items(("a", 0.1, 0.2), ("BC", 0.2, 0.6)), "word", 1.0)


def test_pieces_begin_words():
    pytest.importorskip("sentencepiece")
    from rvqlm.frontends.pieces import train_pieces

    model = train_pieces(iter(["the cat sat", "a cat, a hat", "that cat sat at the hat"] * 9), 20)
    labels = Labels(TextFrontEnd.of_pieces(TextSettings("bpe"), model))
    text = labels.front_end.encode("the cat, sat")
    assert [labels.label(text[word]) for word in labels.words(text)] == ["the", "cat", "sat"]
    said = items(("the", 0.0, 0.1), ("cat", 0.2, 0.4), ("sat", 0.5, 0.8))
    placed = labels.place(text, said, "word", 1.0)
    assert (np.diff(placed.times.ravel()) >= 0).all() and placed.known.sum() == 6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "no items"),
        ([("sil", 0, 1)], "no items"),
        ([("T", 0, 0.1), ("AH0", 0.1, 0.2)], "labels T A H 0 are no symbols of the table"),
        ([("t", 0, 0.1), ("oʊ", 0.1, 0.2)], "the items say o ʊ where the text has a ɪ"),
        ([("t", 0, 0.1)], "the items say nothing where the text has a ɪ"),
        ([("t", 0, 0.1), ("aɪ", 0.1, 0.2), ("k", 0.2, 0.3)], "say k where the text has nothing"),
        ([("t", 0, 0.2), ("aɪ", 0.1, 0.3)], "'t' ends after 'aɪ' begins"),
        ([("t", 0, 0.1), ("aɪ", 0.1, 1.3)], "'aɪ' from 0.1 to 1.3 s in a cut of 1 s"),
        ([("t", -1, 0.1), ("aɪ", 0.1, 0.3)], "'t' from -1 to 0.1 s"),
    ],
)
def test_what_does_not_agree_is_named(said, message):
    with pytest.raises(UserError, match=message):
        PHONES.place(ids(PHONES, "taɪ"), items(*said), "phone", 1.0)


def test_unknown_times_share_what_is_between():
    nan = [np.nan, np.nan]
    times = fill_between(np.array([nan, [0.2, 0.4], nan, nan, [0.6, 0.6], nan]), 1.0)
    expected = [[0, 0.2], [0.2, 0.4], [0.4, 0.5], [0.5, 0.6], [0.6, 0.6], [0.6, 1.0]]
    np.testing.assert_allclose(times, expected)
    np.testing.assert_allclose(fill_between(np.full((2, 2), np.nan), 1.0), [[0, 0.5], [0.5, 1]])
