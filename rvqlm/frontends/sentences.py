"""Where a text can be divided that is too long to be said at once: behind its sentences, one that
is too long itself behind its clauses, and where there is none between its words.

A point is no end of a sentence behind an abbreviation (`rvqlm.frontends.text_numbers`), an initial
or the number of a list or an ordinal, nor before a small letter
where there are capital ones. ``[pause 0.5s]`` goes with what is
before it. Nothing of a text is lost but white space where it is divided.
"""

from __future__ import annotations

import re

from rvqlm.frontends.text_clean import has_word
from rvqlm.frontends.text_numbers import abbreviations

_CLOSING = r"[\"'”’»)\]]*(?:\s*\[\s*pause\b[^\[\]]*\])*"
_PAUSE = re.compile(r"\[\s*pause\b[^\[\]]*\]", re.IGNORECASE)
_SENTENCE = re.compile(rf"(?:[.!?…؟।]+{_CLOSING}(?=\s|$)|[。！？]+{_CLOSING}|\s*\n\s*)")
_CLAUSE = re.compile(rf"(?:[,;:—–،؛]+{_CLOSING}(?=\s|$)|[，、；：]+|(?<=\s)[-–—](?=\s))")
_WORD = re.compile(r"(?<!\[pause)\s+(?!\[\s*pause\b)", re.IGNORECASE)
_NO_END = re.compile(r"(?:(?<!\w)[^\W\d_]|(?:^|\n|[.!?:]\s)\s*\d{1,3})\.\Z")
_ORDINAL = re.compile(r"(?<!\w)\d{1,2}\.\Z")


def sentences(text: str, language: str | None = None) -> list[str]:
    """The sentences of a text, in order; lines end them too.

    :param language: a tag; None: English.

    >>> sentences("Dr. Ann went home. [pause 1s] Why? Nobody knows")
    ['Dr. Ann went home. [pause 1s]', 'Why?', 'Nobody knows']
    """
    return _parts(text, _sentence_ends(text, language))


def divide(
    text: str, longest: float, language: str | None = None, *, spoken: bool = False
) -> list[str]:
    """The sentences of a text, those of more than so many characters in parts of about equal
    length, as long as one can be divided.

    :param spoken: these are phonemes, whose every point ends a sentence.

    >>> divide("One, two and three. Four", 14)
    ['One,', 'two and three.', 'Four']
    """
    whole = _parts(text, _ends(_SENTENCE, text)) if spoken else sentences(text, language)
    return [part for sentence in whole for part in _fitting(sentence, longest)]


def _fitting(text: str, longest: float) -> list[str]:
    if len(text) <= longest:
        return [text]
    for pattern in (_CLAUSE, _WORD):
        parts = _parts(text, _ends(pattern, text))
        if len(parts) > 1:
            joined = _joined(text, parts, longest)
            if len(joined) > 1:
                return [piece for part in joined for piece in _fitting(part, longest)]
    return [text]


def _joined(text: str, parts: list[str], longest: float) -> list[str]:
    """As few runs of parts as may be, of about equal length."""
    number = -(-len(text) // max(1, int(longest)))
    aim, found, begin, end = len(text) / number, [], 0, 0
    for part in parts:
        at = text.index(part, end)
        middle = (at + len(part) / 2) if end > begin else begin
        if end > begin and (middle - begin > aim or at + len(part) - begin > longest):
            found.append(text[begin:end].strip())
            begin = at
        end = at + len(part)
    return [*found, text[begin:end].strip()]


def _ends(pattern: re.Pattern, text: str) -> list[int]:
    return [found.end() for found in pattern.finditer(text)]


def _sentence_ends(text: str, language: str | None) -> list[int]:
    code = (language or "en").partition("-")[0].lower()
    short = abbreviations(code)
    inside = {found.end() for found in short.finditer(text)} if short else set()
    ends, cased = [], text != text.lower()
    for found in _SENTENCE.finditer(text):
        if found[0].rstrip("\"'”’»)]") == ".":
            point = found.start() + 1
            after = text[found.end() :].lstrip()[:1]
            before = text[max(0, point - 12) : point]
            counted = code == "de" and _ORDINAL.search(before)
            if (cased and after.islower()) or point in inside or counted or _NO_END.search(before):
                continue
        ends.append(found.end())
    return ends


def _parts(text: str, ends: list[int]) -> list[str]:
    """What lies between; what has no word in it goes with the part before it, or else behind."""
    found, begin, last = [], 0, 0
    for end in [*ends, len(text)]:
        if has_word(_PAUSE.sub("", text[begin:end])):
            found.append((begin, end))
            begin = last = end
    if not found:
        return [text.strip()] if text.strip() else []
    if last < len(text):  # marks alone at the end
        found[-1] = (found[-1][0], len(text))
    return [text[b:e].strip() for b, e in found]
