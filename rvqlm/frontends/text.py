"""`TextFrontEnd`: text to symbol ids and back, the same in preparation and in generation.

======== ==================================================== =========================
type     a text becomes                                       unknown ones
======== ==================================================== =========================
chars    its characters                                       an error that names them
phonemes IPA symbols by espeak (`rvqlm.frontends.phonemes`)   an error that names them
bpe      pieces of words (`rvqlm.frontends.pieces`)           ``<unk>``
======== ==================================================== =========================

Id 0 is ``<eps>`` and occurs in no text, so that a recogniser trained with CTC on the same table has
its blank. There are no symbols for begin and end: a condition comes with its length. A space is the
symbol ``<space>``, in pieces the "▁" of sentencepiece.

Before all else Unicode is composed (NFC; NFKC for bpe, which makes one of letters that only look
different), marks that nobody says are removed (`rvqlm.frontends.text_clean`), letters that only
look like those of the other script put right, and any white space or control characters become
single spaces. A text without a letter or a digit says nothing. What espeak is given is checked for
its script (`rvqlm.frontends.text_language`), with the numbers that it misreads in words
(`rvqlm.frontends.text_numbers`).
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.files import fits
from rvqlm.frontends import phonemes
from rvqlm.frontends.pieces import UNKNOWN, load_pieces
from rvqlm.frontends.symbols import SymbolTable, read_symbol, write_symbol
from rvqlm.frontends.text_clean import clean, has_word
from rvqlm.frontends.text_language import mend_letters, require_script, tag_of

TYPES = ("phonemes", "chars", "bpe")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_INLINE = re.compile(r"(?<![^\s(\[\"“«—-])/([^/\[\]]*[^\W\d_][^/\[\]]*)/(?![\w/])")


@dataclass(frozen=True)
class TextSettings:
    """How text becomes symbols, apart from the table."""

    type: str
    """One of `TYPES`."""
    language: str = "en-us"
    """phonemes: espeak's language for texts that come without one."""
    stress: bool = True
    """phonemes: keep the marks of stress."""
    punctuation: bool = True
    """phonemes: keep the punctuation at which espeak pauses."""
    lowercase: bool = False
    """chars, bpe: capitals become small letters."""
    normalization: int = 1
    """Its version. 0, that of descriptions without one: Unicode and white space alone."""

    def __post_init__(self):
        if self.type not in TYPES:
            raise UserError(f"text of type {self.type!r}: choose one of {', '.join(TYPES)}")
        if self.normalization not in (0, 1):
            raise UserError(
                f"text of normalization {self.normalization!r}: this version knows 0 and 1; "
                "update rvqlm"
            )

    def names(self) -> tuple[str, ...]:
        """Those settings that the type has, but for the version of normalization."""
        if self.type == "phonemes":
            return ("type", "language", "stress", "punctuation")
        return ("type", "lowercase")

    def normalize(self, text: str, said: Counter[str] | None = None) -> str:
        """`text` as the front end sees it; `UserError` where it is no Unicode text.

        said: counts what was done to it, by kind.
        """
        if not text.isascii():
            text = unicodedata.normalize("NFKC" if self.type == "bpe" else "NFC", text)
            require_unicode(text)
        if self.normalization:
            text, removed = clean(text)
            if removed and not text.isascii():  # what was apart may be one letter
                text = unicodedata.normalize("NFC", text)
            text, mended = mend_letters(text)
            if said is not None:
                said.update({f"{kind} removed": count for kind, count in removed.items()})
                said["words with letters of another script put right"] += mended
        text = " ".join(_CONTROL.sub(" ", text).split())
        if self.normalization and not has_word(text):
            return ""
        return text.lower() if self.lowercase else text

    def words(self, text: str, language: str | None = None, said: Counter | None = None) -> str:
        """`normalize` for what goes to espeak; `UserError` for what is phonemes already, and for
        what espeak cannot read in `language`, a tag (None: that of the settings)."""
        if re.search(f"[{phonemes.STRESS}ː]", text):
            raise UserError(f"text {shorten(text)}: these are phonemes, not written words")
        text = self.normalize(text, said)
        if self.normalization:
            foreign = require_script(text, language or self.language)
            if said is not None:
                said["words in Latin letters spoken as English"] += foreign
        return text

    def of_phonemes(self, spoken: str) -> list[str]:
        """Symbols of a ready phoneme string."""
        return phonemes.symbols(phonemes.strip_marks(spoken, self.stress, self.punctuation))

    def of_chars(self, text: str) -> list[str]:
        """Symbols of a text that `normalize` gave, one a character."""
        return [write_symbol(c) if c == " " else c for c in text]

    def word_with(self, symbol: str, text: str, tag: str | None = None) -> str | None:
        """The first word of `text` that has a symbol.

        tag: the language in which it is spoken; None: it is made of symbols itself.
        """
        for word in text.split():
            if tag is None:
                made = word
            else:
                made = phonemes.speak(self.normalize(word), tag, bool(self.normalization))
            if symbol in made:
                return word
        return None


class TextFrontEnd:
    """Encodes and decodes texts with one table.

    >>> table = SymbolTable.of(["<space>", *"abc"])
    >>> front_end = TextFrontEnd(TextSettings("chars"), table)
    >>> front_end.encode("a  cab").tolist()
    [2, 1, 4, 2, 3]
    >>> TextFrontEnd.from_info(front_end.info(rate=4.5)).decode([4, 2, 3, 0])
    'cab'
    """

    def __init__(self, settings: TextSettings, table: SymbolTable, model: bytes | None = None):
        """model: of sentencepiece, for bpe."""
        if table.ids != list(range(len(table))):
            raise UserError("the symbol table of a text has gaps between its ids; number them")
        self.settings, self.table, self._model = settings, table, model
        self._pieces = load_pieces(model) if settings.type == "bpe" else None

    @classmethod
    def of_pieces(cls, settings: TextSettings, model: bytes) -> TextFrontEnd:
        """The front end of a sentencepiece model, whose pieces are the table."""
        pieces = load_pieces(model)
        symbols = {id: write_symbol(pieces.id_to_piece(id)) for id in range(len(pieces))}
        return cls(settings, SymbolTable(symbols), model)

    @classmethod
    def from_info(cls, info: ConditionInfo) -> TextFrontEnd:
        """Rebuild it from ``text.json`` or a checkpoint; `UserError` if incomplete."""
        given = dict(info.settings)
        try:
            names = TextSettings(given["type"]).names()
            version = {"normalization": given.get("normalization", 0)}
            settings = fits({**{n: given[n] for n in names}, **version}, TextSettings)
            symbols = fits(given["symbols"], list[str])
            bpe = settings.type == "bpe"
            model = base64.b64decode(given["model"], validate=True) if bpe else None
            table = SymbolTable(dict(enumerate(symbols)))
        except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as e:
            raise UserError(
                f"incomplete description of a text condition ({type(e).__name__} {e}); "
                "run rvqlm text again"
            ) from None
        if info.kind != "text" or info.sizes != (len(table),):
            raise UserError(
                f"a {info.kind} condition of sizes {info.sizes} where text of {len(table)} symbols "
                "is wanted; run rvqlm text again"
            )
        return cls(settings, table, model)

    def info(self, rate: float) -> ConditionInfo:
        """All that rebuilds this front end; rate: frames of codes per symbol."""
        settings = {name: getattr(self.settings, name) for name in self.settings.names()}
        if self.settings.normalization:
            settings["normalization"] = self.settings.normalization
        settings["symbols"] = [self.table[id] for id in self.table.ids]
        if self._model is not None:
            settings["model"] = base64.b64encode(self._model).decode()
        return ConditionInfo("text", (len(self.table),), rate, settings)

    def encode(self, text: str, language: str | None = None, *, inline: bool = False) -> np.ndarray:
        """(S,) int32 ids; S is 0 for a text with nothing to say.

        language: of this text, for phonemes, as `rvqlm.frontends.text_language.tag_of` knows it;
        None: that of the settings. inline: where the table is of phonemes, what is between two
        strokes is a word of them, said as it is: "Ask /tɪm/.", with or without spaces between its
        symbols. Raises `UserError` that names symbols without an id and the words that they are
        in, and for unknown languages or other scripts than theirs.
        """
        settings = self.settings
        if settings.type == "phonemes":
            tag = tag_of(language or settings.language)
            spoken = self._spoken(text, tag, inline)
            return self._ids(settings.of_phonemes(spoken), text, tag)
        if language is not None:
            raise UserError(
                f"language {language!r}: only phonemes have one, this text is made of "
                f"{self.settings.type}; leave it out"
            )
        if self._pieces is not None:
            return np.array(self.encode_pieces(settings.normalize(text))[0], np.int32)
        return self._ids(settings.of_chars(settings.normalize(text)), text)

    def _spoken(self, text: str, tag: str, inline: bool) -> str:
        """Phonemes of a text, those that it gives itself among them."""
        plain = bool(self.settings.normalization)
        parts = _INLINE.split(text) if inline else [text]
        spoken = []
        for number, part in enumerate(parts):
            if number % 2:
                word = "".join(part.split())
                if unknown := lookup(self.table, self.settings.of_phonemes(word))[1]:
                    raise UserError(
                        f"text {shorten(text)}: /{part}/: no symbol "
                        f"{', '.join(map(describe, dict.fromkeys(unknown)))} among the "
                        f"{len(self.table)} of the table"
                    )
                spoken.append(word)
                continue
            marks = ""
            if number:  # what is right behind belongs to the phonemes
                marks = re.match(r"[^\w\s]*", part)[0]
                spoken[-1] += "".join(c for c in marks if c in phonemes.PUNCTUATION)
            spoken.append(phonemes.speak(self.settings.words(part[len(marks) :], tag), tag, plain))
        return " ".join(filter(None, spoken))

    def encode_pieces(self, text: str) -> tuple[list[int], list[str]]:
        """bpe: ids of a text that `TextSettings.normalize` gave, and what is ``<unk>`` in it."""
        ids = self._pieces.encode(text)
        if UNKNOWN not in ids:
            return ids, []
        pieces = zip(self._pieces.encode(text, out_type=str), ids)
        return ids, [piece for piece, id in pieces if id == UNKNOWN]

    def encode_phonemes(self, spoken: str, text: str | None = None) -> np.ndarray:
        """(S,) int32 ids of a ready phoneme string (IPA, words apart by spaces).

        text: what to call it in messages.
        """
        if self.settings.type != "phonemes":
            raise UserError(
                f"phonemes {shorten(spoken)}: the text of this table is made of "
                f"{self.settings.type}; give written text"
            )
        return self._ids(self.settings.of_phonemes(spoken), spoken if text is None else text)

    def _ids(self, symbols: Sequence[str], text: str, tag: str | None = None) -> np.ndarray:
        ids, unknown = lookup(self.table, symbols)
        if unknown:
            named = []
            for symbol in dict.fromkeys(unknown):
                word = self.settings.word_with(symbol, text, tag)
                named.append(describe(symbol) + (f" of the word {word!r}" if word else ""))
            raise UserError(
                f"text {shorten(text)}: no symbol for {', '.join(named)} among the "
                f"{len(self.table)} of the table; write it without, or make the table from texts "
                "that have it"
            )
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text, or the phonemes, of ids; ``<eps>`` is passed over.

        Raises `UserError` for ids that are not in the table.
        """
        ids = [int(id) for id in np.asarray(ids).ravel()]
        for id in ids:
            if id not in self.table:
                raise UserError(f"symbol id {id}: the table has 0 to {len(self.table) - 1}")
        ids = [id for id in ids if id != 0]
        if self._pieces is not None:
            return self._pieces.decode(ids)
        return "".join(read_symbol(self.table[id]) for id in ids)


def require_unicode(text: str) -> None:
    """`UserError` for what JSON can hold and no file: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"text {shorten(text)}: half a character (a lone surrogate); correct the text"
        ) from None


def lookup(table: SymbolTable, symbols: Sequence[str]) -> tuple[list[int], list[str]]:
    """(ids of those that the table has, the others)."""
    found = [table.find(symbol) for symbol in symbols]
    if None not in found:
        return found, []
    return (
        [id for id in found if id is not None],
        [symbol for symbol, id in zip(symbols, found) if id is None],
    )


def describe(symbol: str) -> str:
    """A symbol and its code points, which tell apart what looks the same."""
    return f"{symbol!r} ({' '.join(f'U+{ord(c):04X}' for c in symbol)})"


def shorten(text: str) -> str:
    """A text in quotes, not too long for a message."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
