"""Word and character errors of what a recogniser heard, counted by jiwer.

Both texts are normalised as Whisper's are (Radford et al., 2022, arXiv:2212.04356, appendix C), by
the code in transformers: English by its English normaliser (contractions and titles written out,
number words as digits, fillers left out; without the table of British spellings, which comes with
Whisper's weights), other languages by its basic one (lower case, punctuation and what stands in
brackets left out). Character errors are those of the same texts, spaces included.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import lru_cache

from rvqlm.frontends.pauses import split_pauses
from rvqlm.judging.judge import Column, Nothing, NotRun, Score

COLUMNS = (
    Column("wer", "lower", "word errors over the words of the text", percent=True),
    Column("cer", "lower", "character errors over the characters of the text", percent=True),
)


def is_english(language: str) -> bool:
    """
    >>> is_english("en-us"), is_english("English"), is_english("ru")
    (True, True, False)
    """
    return language.lower().replace("_", "-").split("-")[0] in ("en", "eng", "english")


@lru_cache(maxsize=2)
def normalizer(english: bool) -> Callable[[str], str]:
    """Whisper's normaliser of English or of any other language."""
    from transformers.models.whisper import english_normalizer

    if english:
        return english_normalizer.EnglishTextNormalizer({})
    return english_normalizer.BasicTextNormalizer()


def normalizer_name(english: bool) -> str:
    return "whisper-english" if english else "whisper-basic"


def require_jiwer() -> str:
    """Its name and release.

    :raises NotRun: not installed.
    """
    try:
        import jiwer  # noqa: F401
    except ImportError:
        raise NotRun("jiwer is not installed: pip install 'rvqlm[judges]'") from None
    return f"jiwer-{importlib.metadata.version('jiwer')}"


def count_errors(text: str, heard: str, english: bool) -> dict[str, Score]:
    """Errors of a transcript against the text that was to be said, whose pauses are no words.

    :raises Nothing: no word in the text.
    """
    import jiwer

    said, heard = (_plain(t, english) for t in (" ".join(split_pauses(text)[0]), heard))
    if not said:
        raise Nothing("no word in its text")
    words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    found = {}
    for name, counts in (("wer", words), ("cer", characters)):
        length = counts.hits + counts.substitutions + counts.deletions
        errors = counts.substitutions + counts.deletions + counts.insertions
        found[name] = Score(errors / length, length)
    return found


def _plain(text: str, english: bool) -> str:
    """Normalised words; of punctuation alone, which the normaliser leaves here and there, none."""
    words = normalizer(english)(text).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))
