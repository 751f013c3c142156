"""Texts as phonemes (IPA) by espeak, with the punctuation that carries pauses, and as symbols.

`speak` gives words apart by spaces, punctuation right behind the word that it follows:

    "Hello, world!" -> "həlˈoʊ, wˈɜːld!"

espeak drops punctuation but works clause by clause, and says how far it read for each. The marks at
the end of what it read are the ones it breaks at, so that a point in "U.S. army" or 3.14 is none.

`symbols` divides such a string: a letter with the diacritics that belong to it is one symbol
("ɔ̃", "t͡ʃ"); the marks of stress and length are symbols of their own, and so are punctuation and
the space between words (``<space>``). A phoneme written with two letters is two symbols.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice

from rvqlm.frontends import espeak
from rvqlm.frontends.text_numbers import written_out
from rvqlm.runtime import in_order

STRESS = "ˈˌ"
PUNCTUATION = ".,;:!?…—"
# marks of other scripts sound like these: one small table for all languages
_SAME = str.maketrans("。，、；：！？،؛؟।۔։·–．", ".,,;:!?,;?..:;—.")
_OTHER_VOICE = re.compile(r"\([a-z-]+\)")  # "(en)": a word of another language
# signs of its own that espeak has no IPA for: length, the glottal stop, and others
_AS_IPA = str.maketrans(":?", "ːʔ")
_OWN_SIGNS = re.compile(r"[!-/;-@\[-`{-~]")
_TAIL = re.compile(r"[^\w]*\Z")  # from the last letter or digit on
_TIES = "\u0361\u035c"
_CHUNK = 128  # texts that a process gets at a time
_CHUNKS = 160  # of them in the life of a process: 80 MB lost


def speak(text: str, language: str = "en-us", plain: bool = True) -> str:
    """Phonemes of `text`; empty where there is nothing to say.

    language: a tag of `rvqlm.frontends.espeak.voices`.
    plain: numbers that espeak misreads are written out before, and its own signs are made IPA or
    left out. Without, all is as espeak says it.

    Raises `UserError` for a language that is none.
    """
    espeak.voice_of(language)
    text = " ".join(text.replace("\0", " ").split())
    if plain:
        text = written_out(text, language)
    if not text:
        return ""
    words: list[str] = []
    for written, ipa in espeak.clauses(text, language):
        ipa = _OTHER_VOICE.sub("", ipa).strip()
        if plain:
            ipa = _OWN_SIGNS.sub("", ipa.translate(_AS_IPA))
        marks = _marks(written)
        if ipa:
            words.append(ipa + marks)
        elif words:  # marks alone: they belong to the word before
            words[-1] += marks
    return " ".join(" ".join(words).split())


def strip_marks(spoken: str, stress: bool = True, punctuation: bool = True) -> str:
    """A phoneme string without its marks of stress, or without punctuation, where these are not
    to be kept."""
    drop = ("" if stress else STRESS) + ("" if punctuation else PUNCTUATION)
    return "".join(c for c in spoken if c not in drop)


def _marks(written: str) -> str:
    """Punctuation at the end of a clause, "?!" as it is, "!!!" as "!", "..." as "…"."""
    tail = _TAIL.search(written)[0].translate(_SAME).replace("...", "…")
    return re.sub(r"(.)\1+", r"\1", "".join(c for c in tail if c in PUNCTUATION))


def symbols(phonemes: str) -> list[str]:
    """The symbols of a phoneme string.

    >>> symbols("bɔ̃ː ʃ")
    ['b', 'ɔ̃', 'ː', '<space>', 'ʃ']
    """
    found: list[str] = []
    for word in unicodedata.normalize("NFC", phonemes).split():
        if found:
            found.append("<space>")
        first = len(found)
        for c in word:
            mark = unicodedata.category(c).startswith("M")
            if len(found) > first and (mark or found[-1][-1] in _TIES):
                found[-1] += c
            else:
                found.append(c)
    return found


def _speak_all(texts: list[tuple[str, str]], plain: bool) -> list[str]:
    return [speak(text, language, plain) for text, language in texts]


def speak_all(texts: Iterable[tuple[str, str]], workers: int, plain: bool = True) -> Iterator[str]:
    """`speak` for a stream of (text, language), in order, by `workers` processes (0: by this one).

    Takes from `texts` only a little ahead of what it gives. A text takes espeak 2 ms and leaves
    4 kB behind that it never frees, so processes are replaced now and then, and memory stays flat.
    """
    texts = iter(texts)
    chunks = iter(lambda: list(islice(texts, _CHUNK)), [])
    work = partial(_speak_all, plain=plain)
    for chunk in chunks:
        share = chain([chunk], islice(chunks, max(1, workers) * _CHUNKS - 1))
        for _, spoken in in_order(work, share, workers, "spawn", "--workers"):
            yield from spoken
