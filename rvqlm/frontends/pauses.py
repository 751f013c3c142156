"""``[pause 0.5s]`` in a text: so much silence between two words, or before or behind all of them.

Silence belongs to the symbols of white space and punctuation between two words, which share it
equally, as in the alignments that models learn from (`rvqlm.frontends.aligned`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np

from rvqlm.errors import UserError
from rvqlm.frontends.aligned import Labels, sounds
from rvqlm.frontends.symbols import SPACE, read_symbol
from rvqlm.frontends.text import shorten
from rvqlm.frontends.text_clean import has_word

LONGEST = 600.0
"""Seconds of a pause, at most."""
_MARK = re.compile(r"\[\s*pause(?![^\W\d])([^\[\]]*)(\]?)", re.IGNORECASE)
_LENGTH = re.compile(r"\s+([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(s|ms)\s*", re.IGNORECASE)
_WHITE = (" ", "▁")


class WithPauses(NamedTuple):
    """The symbols of a text."""

    ids: np.ndarray
    """(S,) int32."""
    seconds: np.ndarray | None
    """(1 + S,) of the silence before the first and of each symbol, where pauses say it, elsewhere
    NaN; None for a text without pauses."""


def split_pauses(text: str) -> tuple[list[str], list[float]]:
    """What is said before, between and after the pauses, and the seconds of these.

    :raises UserError: a pause that does not say how long it is.

    >>> split_pauses("Wait. [pause 0.5s] Now.")
    (['Wait. ', ' Now.'], [0.5])
    """
    parts, seconds, end = [], [], 0
    for mark in _MARK.finditer(text):
        length = _LENGTH.fullmatch(mark[1])
        number = float(length[1]) / (1000 if length[2].lower() == "ms" else 1) if length else 0.0
        if length is None or not mark[2] or number > LONGEST:
            raise UserError(
                f"text {shorten(text)}: {shorten(mark[0])} is no pause; write [pause 0.5s] or "
                f"[pause 500ms], {LONGEST:g} s at most"
            )
        parts.append(text[end : mark.start()])
        seconds.append(number)
        end = mark.end()
    return [*parts, text[end:]], seconds


def words_of(text: str) -> str:
    """A text without its pauses; `UserError` as `split_pauses`."""
    said, pauses = _between_words(text)
    return text if all(pause is None for pause in pauses) else " ".join(said)


def encode_with_pauses(labels: Labels, text: str, language: str | None = None) -> WithPauses:
    """Symbols of a text, the parts between pauses encoded apart, with the phonemes that it gives
    itself.

    :raises UserError: as `TextFrontEnd.encode`; a malformed pause; one that no symbol could hold.
    """
    encode = partial(labels.front_end.encode, inline=True)
    said, pauses = _between_words(text)
    if all(pause is None for pause in pauses):
        return WithPauses(encode(text, language), None)
    ids: list[int] = []
    silences: list[tuple[int, float]] = []  # what is before so many symbols and after the others
    for pause, part in zip(pauses, [*said, ""]):
        more = encode(part, language).tolist() if part else []
        if pause is not None:
            ids += white_space(labels, ids, more, text)
            silences.append((len(ids), pause))
        ids += more
    spoken = {-1, len(ids), *labels.spoken(np.array(ids))}
    shares: dict[tuple[int, int], float] = defaultdict(float)
    for place, pause in silences:
        first = max(n for n in spoken if n < place) + 1
        shares[first, min(n for n in spoken if n >= place)] += pause
    seconds = np.full(1 + len(ids), np.nan)
    for (first, end), pause in shares.items():
        if first == 0:
            seconds[0] = 0.0 if end else pause
        seconds[1 + first : 1 + end] = pause / max(1, end - first)
    return WithPauses(np.array(ids, np.int32), seconds)


def _between_words(text: str) -> tuple[list[str], list[float | None]]:
    """The parts of a text that have words, and the pause before each and after the last; None where
    there is none. Punctuation between two pauses, or behind the last, goes with what is before."""
    said: list[str] = []
    pauses: list[float | None] = [None]
    before = ""
    parts, seconds = split_pauses(text)
    for part, pause in zip(parts, [*seconds, None]):
        if has_word(part):
            said.append(before + part.strip())
            pauses.append(None)
        elif said:
            said[-1] += part.strip()
        else:
            before += part.strip()
        if pause is not None:
            pauses[-1] = (pauses[-1] or 0.0) + pause
    return said, pauses


def white_space(labels: Labels, before: list[int], after: list[int], text: str) -> list[int]:
    """The symbol between two parts of a text, or behind the last, if one is wanted: to part two
    words, or to hold a pause."""
    table = labels.front_end.table
    if not before:
        return []
    beside = [read_symbol(table[id]) for id in (before[-1], *after[:1])]
    apart = not after or beside[0].endswith(_WHITE) or beside[1].startswith(_WHITE)
    if apart and any(not sounds(symbol) for symbol in beside):
        return []
    white = next((table[name] for name in (SPACE, "▁") if name in table), None)
    if white is not None:
        return [white]
    if any(not sounds(symbol) for symbol in beside):
        return []
    raise UserError(
        f"text {shorten(text)}: the table has no symbol of white space to hold a pause; write it "
        "after punctuation that the table has"
    )
