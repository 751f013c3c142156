"""Marks that nobody says: removed and counted; what is said, or is a letter, stays."""

import unicodedata

import pytest

from rvqlm.frontends.text_clean import clean, has_word


@pytest.mark.parametrize(
    ("text", "cleaned", "removed"),
    [
        ("за\u0301мок", "замок", {"stress marks": 1}),
        ("з+амок и +этот", "замок и этот", {"stress marks": 2}),
        ("замо´к", "замок", {"stress marks": 1}),
        ("«З+амок»", "Замок", {"quotes": 2, "stress marks": 1}),
        ("co\xadop\u200be\u2060\ufeffr\u200e", "cooper", {"unseen": 5}),
        ("“yes,” he „said‟", "yes, he said", {"quotes": 4}),
        ('say"hi"now', "say hi now", {"quotes": 2}),
        ("‘no’ don’t d’accord", "no don't d'accord", {"quotes": 2}),
        ("**bold** and *it*, `x`", "bold and it, x", {"markdown": 8}),
        ("a_b", "a b", {"markdown": 1}),
        ("## Head", "Head", {"markdown": 3}),
        ("hi 😀\u2764\ufe0f", "hi    ", {"pictures": 3}),
        ("ﬁne Ａ", "fine A", {}),
        ("п’ять п\u02bcять", "п'ять п'ять", {}),
    ],
)
def test_marks(text, cleaned, removed):
    assert clean(text) == (cleaned, removed)
    assert clean(cleaned) == (cleaned, {})


@pytest.mark.parametrize(
    "text",
    [
        "ё й Й ї ѓ ќ", "café naïve Ångström", "2+2 и 5+а", "press * or # now", "5 * 3 * 2",
        "don't 'tis rock'n'roll '90s", "a-b — c… (d) [e] f/g @ h & i %", "¿Qué? ¡No!",
        "می\u200cخواهم", "क्\u200dष", "ทดสอบ\u200bคำ", "C# a + b = c", "x^2 < 5 > 3", "nˈoʊ",
    ],
)  # fmt: skip
def test_what_is_said_stays(text):
    text = unicodedata.normalize("NFC", text)
    assert clean(text) == (text, {})


def test_words():
    assert has_word("a") and has_word("5") and has_word("«я»") and has_word("今")
    assert not any(map(has_word, ["", " ", "!!!", '""', "…", "—+-", "\u0301"]))
