"""Word and character errors against counts by hand, and what counts as a word."""

import numpy as np
import pytest

pytest.importorskip("jiwer")

from rvqlm.judging.judge import Clip, Nothing, Options, Sound
from rvqlm.judging.recognizers import RecognizerJudge
from rvqlm.judging.words import count_errors, is_english
from rvqlm.metrics.recognition import edit_distances


def errors(text, heard, english=True):
    found = count_errors(text, heard, english)
    return [(round(s.value * s.weight), s.weight) for s in found.values()]


def test_errors_by_hand():
    assert errors("good morning to you", "good morning to you") == [(0, 4), (0, 19)]
    # one left out, one put in, one other
    assert errors("a b c d", "a x c d e", english=False) == [(2, 4), (3, 7)]
    assert errors("a b", "", english=False) == [(2, 2), (3, 3)]
    assert errors("a", "a b c", english=False)[0] == (2, 1)


@pytest.mark.parametrize(
    "said, heard",
    [
        ("You're at extension 21.", "you are at extension twenty one"),
        ("Press ONE, please!", "press one please"),
        ("Mr. Smith", "mister smith"),
        ("Wait. [pause 0.5s] Now.", "wait now"),
    ],
)
def test_the_same_words_written_otherwise_are_no_errors(said, heard):
    assert errors(said, heard)[0][0] == 0


def test_other_languages():
    assert errors("Доброе утро, мир!", "доброе утро мир", english=False)[0] == (0, 3)
    assert errors("Доброе утро", "доброе утра", english=False) == [(1, 2), (1, 11)]
    assert is_english("en_GB") and not is_english("de") and not is_english("")


def test_counts_are_edit_distances():
    a, b = (
        ["the", "old", "captain", "carried", "lanterns"],
        ["the", "cold", "captain", "lanterns", "home"],
    )
    ids = {word: n for n, word in enumerate({*a, *b})}
    expected = edit_distances([[ids[w] for w in a]], [[ids[w] for w in b]])[0]
    assert errors(" ".join(a), " ".join(b))[0] == (expected, 5)


def test_a_text_without_words():
    for text in ("?!", "...[pause 1s]!", ""):
        with pytest.raises(Nothing, match="no word"):
            count_errors(text, "hello", True)
    assert errors("yes", "... !") == [(1, 1), (3, 3)]


class Echo(RecognizerJudge):
    """Hears what it is told to."""

    name, languages = "echo", "en"

    def load(self, options):
        self.model = "echo-1"

    def transcribe(self, audio, language):
        return "good morning"


def test_a_recogniser_of_english_hears_no_other_language():
    def score(text, language=None, known="en"):
        sound = Sound(np.zeros((1, 800), np.float32), 16000)
        item = Clip("a", "samples", "a", sound, text=text, language=language)
        return Echo(Options(language=known)).score(item)["wer"].value

    assert score("Good morning!") == score("good morning", "en-us", known="") == 0
    assert score("good night") == 0.5
    with pytest.raises(Nothing, match="English only"):
        score("Доброе утро", "ru")
    with pytest.raises(Nothing, match="no text"):
        score(None)
    with pytest.raises(Nothing, match="give --language"):
        score("good morning", known="")
