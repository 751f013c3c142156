"""Marks of written texts that nobody says: removed, and counted by what they are.

=============== ===================================================================================
unseen          soft hyphens, zero-width characters, byte order marks, marks of direction
stress marks    U+0301 and U+0300 on Cyrillic vowels ("за́мок"; й and ё are letters), and the + and
                acute before or behind one ("з+амок")
quotes          double quotes of any form, and ‘these’ around words; apostrophes stay, all as '
markdown        emphasis (*, **, _, `, ~~) and the # of headings; a * or # that stands alone is
                said, as a key of a telephone is
pictures        emoji
=============== ===================================================================================

Ligatures and full-width letters become the letters that they show.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_VOWELS = "аеёиоуыэюяіїєўАЕЁИОУЫЭЮЯІЇЄЎ"
_JOINED = "\u0590-\u0fff\u1780-\u18af"  # scripts in which joiners between letters mean something
_UNSEEN = "\xad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
_PICTURES = "\u2600-\u27bf\u2b50\u2b55\ufe0e\ufe0f\U0001f000-\U0001faff"
_QUOTES = '"“”„‟«»‹›〝〞〟「」『』'
_EMPHASIS = r"(?<![*~`])(\*{1,3}|~~|`{1,3})(?![*~`\s])([^*~`]*[^*~`\s])\1(?![*~`])"
# kind, characters of which one is in every match, pattern, what takes its place
_RULES = tuple(
    (kind, re.compile(f"[{of}]"), re.compile(pattern, re.MULTILINE), replacement)
    for kind, of, pattern, replacement in (
        ("unseen", _UNSEEN, f"[{_UNSEEN}]", ""),
        ("unseen", "\u200b-\u200d", rf"(?<![{_JOINED}])[\u200b-\u200d]", ""),
        ("pictures", _PICTURES, f"[{_PICTURES}]", " "),
        ("stress marks", "\u0300\u0301´", rf"(?<=[{_VOWELS}])[\u0300\u0301´]", ""),
        ("stress marks", "+´`", rf"(?<![0-9+])[+´`](?=[{_VOWELS}])", ""),
        ("quotes", _QUOTES, rf"(?<=\w)[{_QUOTES}](?=\w)", " "),
        ("quotes", _QUOTES, rf"[{_QUOTES}]", ""),
        ("quotes", "‘‚‛", r"[‘‚‛]([^‘‚‛’]*)[’‘](?!\w)", r"\1"),
        ("markdown", "#", r"^#+ +(?=\w)", ""),
        ("markdown", "*~`", _EMPHASIS, r"\2"),
        ("markdown", "*~`", _EMPHASIS, r"\2"),  # of what the first was within
        ("markdown", "_", r"_+", " "),
    )
)
_SUSPECT = re.compile("|".join(sorted({of.pattern for _, of, _, _ in _RULES})))
_APOSTROPHES = re.compile(r"(?<=\w)[’ʼ´`′＇](?=\w)|’")
_PRESENTED = re.compile("[\ufb00-\ufb06\uff01-\uff5e]+")


def clean(text: str) -> tuple[str, Counter[str]]:
    """`text`, composed (NFC), without the marks above, and how many of each were removed.

    >>> clean("«З+амок»")
    ('Замок', Counter({'quotes': 2, 'stress marks': 1}))
    """
    removed: Counter[str] = Counter()
    if not text.isascii():
        text = _PRESENTED.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text)
    if _SUSPECT.search(text):
        for kind, of, pattern, replacement in _RULES:
            if not of.search(text):
                continue
            before = len(text)
            text, times = pattern.subn(replacement, text)
            if times:  # one that spaces take the place of, or several characters of a pair
                removed[kind] += max(times, before - len(text))
    if not text.isascii():
        text = _APOSTROPHES.sub("'", text)
    return text, removed


def has_word(text: str) -> bool:
    """Whether there is a letter or a digit in it: anything that could be said."""
    return any(c.isalnum() for c in text)
