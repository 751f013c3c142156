"""Between the symbols of a text and the phones or words of an aligner: which are the same, and when
each symbol is said if these are known.

An aligner gives items, a label with begin and end, and says nothing of white space and punctuation:
symbols of these have what lies between two items.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from rvqlm.errors import UserError
from rvqlm.frontends.symbols import read_symbol
from rvqlm.frontends.text import TextFrontEnd

WORD = "word"
UNITS = {"phonemes": "phone", "chars": "char", "bpe": "piece"}
"""What a symbol of a type of text is to an aligner."""
PAUSES = frozenset(("", "sil", "sp", "spn", "silence", "pau", "<eps>", "<sil>", "h#", "#"))
"""Labels, in small letters, of what is no speech."""
_PIECE = "▁"  # begins the pieces that begin a word
_TOLERANCE = 0.05
"""Seconds that an item may reach past its cut; lengths are rounded to whole frames."""


class Item(NamedTuple):
    """A phone or word, in seconds from the beginning of its cut."""

    label: str
    start: float
    end: float


class Placed(NamedTuple):
    """When the symbols of a text are said by an aligner's items."""

    times: np.ndarray
    """(S, 2) float64 seconds, begin and end, in order and without overlaps."""
    known: np.ndarray
    """(S, 2) bool: the items say so; elsewhere a symbol is a part of an item or lies between."""


class Labels:
    """The symbols of a front end as an aligner sees them."""

    def __init__(self, front_end: TextFrontEnd):
        self.front_end, self.type = front_end, front_end.settings.type
        table = front_end.table
        self._texts = {id: read_symbol(table[id]) for id in table.ids}
        self._sounds = {id: sounds(text) for id, text in self._texts.items() if id}

    def words(self, ids: np.ndarray) -> list[np.ndarray]:
        """Where the words of a text are: the places (n,) of the symbols of each, without those of
        white space and punctuation."""
        found: list[list[int]] = [[]]
        for place, id in enumerate(ids.tolist()):
            if self._texts[id][0] in (" ", _PIECE):
                found.append([])
            if self._sounds[id]:
                found[-1].append(place)
        return [np.array(word) for word in found if word]

    def spoken(self, ids: np.ndarray) -> list[int]:
        """The places of all symbols but those of white space and punctuation."""
        return [place for place, id in enumerate(ids.tolist()) if self._sounds[id]]

    def spelling(self, id: int) -> str:
        """What a symbol stands for, white space as a space."""
        return self._texts[id].replace(_PIECE, " ")

    def label(self, ids: np.ndarray) -> str:
        """What these symbols are called, together."""
        return self.front_end.decode(ids).strip()

    def place(self, ids: np.ndarray, items: Sequence[Item], tier: str, seconds: float) -> Placed:
        """The times of the symbols of a text by the items of a tier.

        Phones have to be the text's symbols, those of a phone of several share it equally. Words
        have to be as many, of characters the same ones; their symbols share them equally.

        :param tier: `WORD`, or else of phones, characters or pieces.
        :param seconds: of the cut.
        :raises UserError: where they are not, or lie outside the cut or over each other.
        """
        items = [i for i in items if i.label.strip().lower() not in PAUSES and sounds(i.label)]
        _check_order(items, seconds)
        places = self._by_word(ids, items) if tier == WORD else self._by_unit(ids, items)
        times = np.full((len(ids), 2), np.nan)
        known = np.zeros((len(ids), 2), bool)
        for item, of in zip(items, places):
            edges = np.linspace(item.start, item.end, len(of) + 1).clip(0.0, seconds)
            times[of, 0], times[of, 1] = edges[:-1], edges[1:]
            known[of[0], 0] = known[of[-1], 1] = True
        times = np.maximum.accumulate(fill_between(times, seconds).ravel()).reshape(-1, 2)
        return Placed(times, known)

    def _by_unit(self, ids: np.ndarray, items: Sequence[Item]) -> list[list[int]]:
        names = [self._symbols(item.label) for item in items]
        said = [name for symbols in names for name in symbols]
        spoken = self.spoken(ids)
        wanted = [self.front_end.table[int(ids[place])] for place in spoken]
        if said != wanted:
            unknown = [name for name in dict.fromkeys(said) if name not in self.front_end.table]
            if unknown:
                raise UserError(f"labels {' '.join(unknown[:8])} are no symbols of the table")
            differ = (n for n, pair in enumerate(zip(said, wanted)) if pair[0] != pair[1])
            at = next(differ, min(len(said), len(wanted)))
            here = (" ".join(names[at : at + 4]) or "nothing" for names in (said, wanted))
            raise UserError("the items say {} where the text has {}".format(*here))
        parts = np.cumsum([0, *(len(symbols) for symbols in names)])
        return [spoken[a:b] for a, b in pairwise(parts)]

    def _by_word(self, ids: np.ndarray, items: Sequence[Item]) -> list[np.ndarray]:
        words = self.words(ids)
        if len(words) != len(items):
            raise UserError(f"{len(items)} words where the text has {len(words)}")
        if self.type != "phonemes":
            for item, word in zip(items, words):
                mine = self.label(ids[word])
                if _letters(mine) != _letters(item.label):
                    raise UserError(f"the word {item.label!r} where the text has {mine!r}")
        return words

    def _symbols(self, label: str) -> list[str]:
        settings, found = self.front_end.settings, [label]
        if self.type == "phonemes":
            found = settings.of_phonemes(label)
        elif self.type == "chars":
            found = settings.of_chars(settings.normalize(label))
        return [symbol for symbol in found if sounds(read_symbol(symbol))]


def fill_between(times: np.ndarray, seconds: float) -> np.ndarray:
    """Let symbols of unknown times (NaN) share equally what lies between those of known ones."""
    found = times.copy()
    for missing, group in groupby(range(len(times)), lambda n: np.isnan(times[n, 0])):
        if missing:
            of = list(group)
            start = times[of[0] - 1, 1] if of[0] else 0.0
            end = times[of[-1] + 1, 0] if of[-1] + 1 < len(times) else seconds
            edges = np.linspace(start, end, len(of) + 1)
            found[of, 0], found[of, 1] = edges[:-1], edges[1:]
    return found


def _check_order(items: Sequence[Item], seconds: float) -> None:
    if not items:
        raise UserError("no items")
    for item, following in zip(items, [*items[1:], None]):
        if not -_TOLERANCE <= item.start <= item.end <= seconds + _TOLERANCE:
            raise UserError(
                f"{item.label!r} from {item.start:g} to {item.end:g} s in a cut of {seconds:g} s"
            )
        if following is not None and item.end > following.start + 1e-3:
            raise UserError(f"{item.label!r} ends after {following.label!r} begins")


def sounds(text: str) -> bool:
    """Whether a symbol has a sound of its own: something but white space, marks, punctuation."""
    return any(unicodedata.category(c)[0] in "LNMS" for c in text if c not in _PIECE)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
