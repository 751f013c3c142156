"""Languages as manifests write them ("Russian", "ru-RU", "rus", "en_US"), espeak's tags for them,
and the scripts that espeak reads in each.

espeak spells a letter that it does not know in words of another language ("Chinese letter", or a
Cyrillic letter in English), which is no transcript of anything; so texts are checked before they
are spoken. Latin words in a text of another script (names of brands) are an exception: espeak
speaks these as English, and they are counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from rvqlm.errors import UserError
from rvqlm.frontends import espeak

# other codes of what espeak has, of ISO 639-2 and -3 above all, and what is meant where several
# voices share a language
_CODES = """
en-us en eng,en-gb british en-uk en-au en-nz en-ie en-in en-za,fr-fr fr fra fre,de deu
ger,es spa,ru rus,it ita,nl nld dut,pl pol,pt por,uk ukr,cs ces cze,sk slk slo,sl slv,sv
swe,da dan,fi fin,et est,nb norwegian no nor nob nn nno,lv lav,lt lit,hu hun,ro ron rum,bg
bul,hr hrv hbs,sr srp,bs bos,mk mkd mac,el ell gre,tr tur,az aze,kk kaz,ky kir,uz uzb,tt
tat,ba bak,cv chv,be bel,ka kat geo,hy hye arm,ar ara arb,fa fas per,he heb iw,ur urd,hi
hin,bn ben,pa pan,gu guj,or ori,ta tam,te tel,kn kan,ml mal,mr mar,ne nep,si sin,as asm,sd
snd,th tha,my mya bur,vi vie,id ind in,ms msa may,cmn zh zho chi mandarin,yue zh-hk
cantonese,ja jpn,ko kor,sw swa swh,am amh,ti tir,om orm,tn tsn,af afr,cy cym wel,ga gle
irish,gd gla scottish,eu eus baq,ca cat,an arg,la lat,eo epo,is isl ice,mt mlt,sq sqi alb,lb
ltz,ht hat,mi mri mao,ku kur,ug uig,tk tuk,kl kal,gn grn,qu que,es-419 es-mx es-ar es-cl
es-co es-pe es-us
"""
_SAME = {other: tag for tag, *others in map(str.split, _CODES.split(",")) for other in others}

LATIN, CYRILLIC = "LATIN", "CYRILLIC"
_SCRIPTS: dict[str, frozenset[str]] = {
    tag: frozenset(scripts.split("+"))
    for scripts, tags in {
        "CYRILLIC": "ba be bg cv kk ky nog ru tt uk",
        "LATIN+CYRILLIC": "bs hr lfn mk sr uz",
        "ARABIC": "ar fa sd ur",
        "LATIN+ARABIC": "fa-latn ug",
        "HEBREW": "he",
        "GREEK": "el",
        "LATIN+GREEK": "grc",
        "ARMENIAN": "hy hyw",
        "GEORGIAN": "ka",
        "ETHIOPIC": "am ti",
        "DEVANAGARI": "hi kok mr ne",
        "BENGALI": "as bn bpy",
        "GURMUKHI": "pa",
        "GUJARATI": "gu",
        "ORIYA": "or",
        "TAMIL": "ta",
        "TELUGU": "te",
        "KANNADA": "kn",
        "MALAYALAM": "ml",
        "SINHALA": "si",
        "THAI": "th",
        "MYANMAR": "my shn",
        "HANGUL": "ko",
        "HIRAGANA+KATAKANA": "ja",
        "CJK": "cmn",
        "LATIN+CJK": "cmn-latn-pinyin yue",
        "CHEROKEE": "chr",
        "LATIN+SHAVIAN": "en-shaw",
    }.items()
    for tag in tags.split()
}
_KNOWN = frozenset.union(frozenset({LATIN}), *_SCRIPTS.values()) | {
    "TIBETAN", "KHMER", "LAO", "MONGOLIAN", "THAANA", "SYRIAC", "GOTHIC", "RUNIC", "BOPOMOFO"
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
# letters that only look like those of the other script, as they get into words by mistake
_LATIN_ALIKE, _CYRILLIC_ALIKE = "aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ"
_LATIN_LETTER, _CYRILLIC_LETTER = re.compile("[A-Za-z]"), re.compile("[\u0400-\u04ff]")
_TO_CYRILLIC = str.maketrans(_LATIN_ALIKE, _CYRILLIC_ALIKE)
_TO_LATIN = str.maketrans(_CYRILLIC_ALIKE, _LATIN_ALIKE)


@lru_cache(maxsize=1024)
def tag_of(language: str) -> str:
    """espeak's tag of a language, however it is written; `UserError` unless espeak speaks it.

    English of no country is American (en-us), Chinese Mandarin.

    >>> tag_of("Russian"), tag_of("ru-RU"), tag_of("rus"), tag_of("en_US")
    ('ru', 'ru', 'ru', 'en-us')
    """
    tags = {tag.lower(): tag for tag in espeak.voices()}
    given = re.sub(r"[.@].*", "", language.strip().replace("_", "-").lower())  # ru_RU.UTF-8
    given = espeak.names().get(given, given)
    while given:
        if tag := tags.get(given) or _SAME.get(given):
            return tag
        given = given.rpartition("-")[0]  # a region that no voice is of
    espeak.voice_of(language)  # says what there is
    raise AssertionError(language)


def scripts_of(tag: str) -> frozenset[str]:
    """The scripts that espeak reads in the language of a tag, by the names of Unicode."""
    tag = tag.lower()
    return _SCRIPTS.get(tag) or _SCRIPTS.get(tag.partition("-")[0]) or frozenset({LATIN})


@lru_cache(maxsize=1 << 14)
def script_of(letter: str) -> str | None:
    """The script of a letter, None for one that belongs to all (ª, µ, ʼ).

    >>> script_of("я"), script_of("今"), script_of("ª")
    ('CYRILLIC', 'CJK', None)
    """
    name = unicodedata.name(letter, "").replace("-HIRAGANA", "")
    script = name.partition(" ")[0]
    return script if script in _KNOWN else None


def mend_letters(text: str) -> tuple[str, int]:
    """`text` with letters that look like others put right, and how many words had some: the Latin
    ones of a word that has Cyrillic ones, too, or the other way round, whichever are fewer."""
    mended = 0

    def mend(found: re.Match) -> str:
        nonlocal mended
        word = found[0]
        latin = sum(script_of(c) == LATIN for c in word)
        cyrillic = sum(script_of(c) == CYRILLIC for c in word)
        if not latin or not cyrillic:
            return word
        tables = (_TO_CYRILLIC, _TO_LATIN) if latin <= cyrillic else (_TO_LATIN, _TO_CYRILLIC)
        for new in map(word.translate, tables):
            if len({script_of(c) for c in new}) == 1:
                mended += 1
                return new
        return word  # meant so, or beyond repair

    if _LATIN_LETTER.search(text) and _CYRILLIC_LETTER.search(text):
        text = _WORD.sub(mend, text)
    return text, mended


def require_script(text: str, tag: str) -> int:
    """Check that espeak can read `text` in the language of `tag`; returns the number of its words
    that are spoken as English, those in Latin letters where the language has others.

    Raises `UserError` for letters of other scripts, and where no letter is one of the language's.
    """
    own = scripts_of(tag)
    if {script_of(c) for c in set(text)} <= {*own, None}:
        return 0
    is_own, foreign = False, []
    for word in _WORD.findall(text):
        scripts = {script_of(c) for c in word} - {None}
        if other := scripts - own - {LATIN}:
            if other == {"GREEK"} and len(word) == 1:
                continue  # a symbol: espeak knows its name
            named = _named(sorted(other)[:1])
            raise UserError(f"{word!r} is written in {named} letters{_reads(tag, own)}")
        if scripts & own:
            is_own = True
        elif scripts:
            foreign.append(word)
    if foreign and not is_own:
        raise UserError(f"{foreign[0]!r} is written in Latin letters{_reads(tag, own)}")
    return len(foreign)


def _reads(tag: str, own: frozenset[str]) -> str:
    remedy = "write it in kana" if tag.lower() == "ja" else "name the language of the text"
    return f", and the language {tag} is read from {_named(own)} ones; {remedy}"


def _named(scripts: Iterable[str]) -> str:
    return " or ".join("Chinese" if s == "CJK" else s.capitalize() for s in sorted(scripts))
