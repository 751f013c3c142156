"""Where texts are divided, in several languages, and that nothing of them is lost."""

import random

import pytest

from rvqlm.frontends.sentences import divide, sentences


@pytest.mark.parametrize(
    "text,language,wanted",
    [
        ("Dr. Ann left. Why? Nobody knows", None, ["Dr. Ann left.", "Why?", "Nobody knows"]),
        ("J. Smith met Mr. X. He ran.", None, ["J. Smith met Mr. X. He ran."]),
        ("It is e.g. this. So.", None, ["It is e.g. this.", "So."]),
        ("Pi is 3.14. Good!", "en-us", ["Pi is 3.14.", "Good!"]),
        ("List: 1. One. 2. Two.", None, ["List: 1. One.", "2. Two."]),
        ("He said “Go.” Then (he left.) Yes… No", None,
         ["He said “Go.”", "Then (he left.)", "Yes…", "No"]),
        ("Am 3. Mai z. B. war es. Im Jahr 1984. Gut.", "de",
         ["Am 3. Mai z. B. war es.", "Im Jahr 1984.", "Gut."]),
        ("Это т. е. то. Он ушёл! Всё.", "ru", ["Это т. е. то.", "Он ушёл!", "Всё."]),
        ("今日は。元気！", "ja", ["今日は。", "元気！"]),
        ("Title\nA line, and\n\nmore", None, ["Title", "A line, and", "more"]),
        ("[pause 1s] Hi. [pause 0.5s] Ho! [PAUSE 2s]", None,
         ["[pause 1s] Hi. [pause 0.5s]", "Ho! [PAUSE 2s]"]),
        ("Oh. !!! ...", None, ["Oh. !!! ..."]),
        ("... Oh.", None, ["... Oh."]),
        ("so it is. and e.g. that. or not", None, ["so it is.", "and e.g. that.", "or not"]),
        ("!!!", None, ["!!!"]),
        (" \n ", None, []),
    ],
)  # fmt: skip
def test_sentences(text, language, wanted):
    assert sentences(text, language) == wanted


def test_too_long_a_sentence_is_divided_at_clauses_and_then_between_words():
    text = "The fox jumps over the dog, and then it runs from the very angry farmer; he shouts. Ok."
    assert divide(text, 200) == [text[:-4], "Ok."]
    assert divide(text, 45) == [
        "The fox jumps over the dog,",
        "and then it runs from the very angry farmer;",
        "he shouts.",
        "Ok.",
    ]
    assert all(len(part) <= 12 for part in divide(text, 12))
    assert divide("a" * 30 + " " + "b" * 10, 8) == ["a" * 30, "b" * 10]
    assert divide("one [pause 0.5s] two three", 8) == ["one [pause 0.5s]", "two", "three"]


def test_every_point_of_phonemes_ends_a_sentence():
    assert divide("ðə fˈɑːks. hiː ɹˈæn, ænd. ænd", 99, spoken=True) == [
        "ðə fˈɑːks.",
        "hiː ɹˈæn, ænd.",
        "ænd",
    ]


def test_nothing_is_lost():
    rng = random.Random(0)
    parts = ["Mr. A", "b,", "c.", "d!", "—", "e;", "[pause 1s]", "5.", "«f»", "\n", "…", "гд.", "h"]
    for _ in range(300):
        text = " ".join(rng.choices(parts, k=rng.randint(1, 25)))
        for found in (sentences(text), divide(text, rng.randint(1, 40), "de")):
            assert "".join("".join(found).split()) == "".join(text.split())
            assert all(part == part.strip() and part for part in found)
