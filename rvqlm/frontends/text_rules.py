"""What it takes to write numbers out in a language: its words, and the rules made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rvqlm.errors import UserError

ROMAN = r"(?=[IVX])X{0,3}(?:IX|IV|V?I{0,3})"
"""Roman numerals to 39: C, D, L and M are letters more often."""
_SIGNS = "½⅓⅔¼¾"
_FRACTIONS = ("1/2", "1/3", "2/3", "1/4", "3/4")
_POINT = r"(?!\w)(?:\.(?!\s*$))?"
Rule = tuple[re.Pattern, "str | Callable[[re.Match], str]", bool]


def numeral(number: int | str, language: str, to: str = "cardinal", **how) -> str:
    """A number in words by num2words; `UserError` where that is not installed."""
    try:
        from num2words import num2words
    except ImportError:
        raise UserError(
            "numbers in words need the package num2words; pip install num2words"
        ) from None
    return num2words(number, lang=language, to=to, **how)


@dataclass(frozen=True)
class Language:
    """The words of one language."""

    code: str
    fractions: tuple[str, ...]
    """Of `_FRACTIONS`."""
    mixed: str
    """Between a number and a fraction: two *and* a half."""
    range: str
    """Between two numbers of which the first is less: five *to* six; empty: nothing is said."""
    money: Mapping[str, tuple[str, str]]
    """Names of a unit and of its hundredth, as in `units`, by the sign."""
    units: Mapping[str, str]
    """After a number: "one|several", in Russian "one|two to four|more"."""
    abbreviations: Mapping[str, str]
    """By a regular expression; a point behind it, that is not the end of the text, goes, too."""
    own: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = ()
    """Rules of this language alone, before the others."""
    comma: bool = True
    """Whether decimals have a comma, and thousands a point."""
    cents: str = " "
    """Between units and hundredths: dollars *and* cents."""
    feminine: frozenset[str] = field(default_factory=frozenset)
    """Units that ask for another form of one and two."""

    def counted(self, number: str, forms: str) -> str:
        """A number and the form of a noun that goes with it."""
        one, *more = forms.split("|")
        decimal = "," if self.comma else "."
        whole, _, part = number.replace("." if self.comma else ",", "").partition(decimal)
        count = int(whole)
        if len(more) == 2:
            few, many = more
            last = count % 10 if count % 100 not in (11, 12, 13, 14) else 0
            noun = few if part or last in (2, 3, 4) else one if last == 1 else many
            if one in self.feminine and not part and last in (1, 2):
                number = numeral(count, self.code, gender="f")
        else:
            single = count < 2 if self.code == "fr" else count == 1 and not part
            noun = one if single else more[0] if more else one
        return f"{number} {noun}".rstrip()

    def price(self, number: str, scale: str | None, sign: str) -> str:
        """An amount of money in the order in which it is said."""
        unit, cents = self.money[sign]
        if scale:  # $1.5 million
            several = unit.split("|")[-1]
            of = {"fr": " d'" if several[0] in "aeiou" else " de ", "es": " de "}
            return f"{number} {scale}{of.get(self.code, ' ')}{several}"
        whole, part = re.fullmatch(r"(.*?)(?:[.,](\d\d))?", number).groups()
        said = self.counted(whole if part else number, unit)
        if part is None or not int(part):
            return said
        return f"{said}{self.cents}{self.counted(str(int(part)), cents)}"

    def fraction(self, found: re.Match) -> str:
        whole, written = found.groups()
        at = _SIGNS.index(written) if written in _SIGNS else _FRACTIONS.index(written)
        name = self.fractions[at]
        return f"{whole}{self.mixed}{name}" if whole else name

    def rules(self) -> list[Rule]:
        """(pattern, what takes the place of what it matches, whether that has a digit), in the
        order in which they are tried."""
        thousands, decimal = (r"\.", ",") if self.comma else (",", r"\.")
        number = rf"(?<![\d.,])(\d{{1,3}}(?:{thousands}\d{{3}})+|\d+)((?:{decimal}\d+)?)"
        signs = "".join(map(re.escape, self.money))
        scale = r"(?: ?(million|billion|thousand|Million(?:en)?|Milliarden?|Mio|Mrd|millions?"
        scale += (
            r"|milliards?|mil|mill[oó]n(?:es)?|тыс|млн|млрд|тысяч\w*|миллион\w*|миллиард\w*)\b)?"
        )
        units = "|".join(sorted(map(re.escape, self.units), key=len, reverse=True))
        found: list[tuple[str, str | Callable[[re.Match], str]]] = [
            (rf"(?<!\w){written}" + ("" if written[-1] in ".) " else _POINT), said)
            for written, said in self.abbreviations.items()
        ]
        if self.comma:  # English parts thousands by commas, which espeak knows
            grouped = r"(?<!\d)(?<!\d )(\d{1,3}(?: \d{3})+)(?! ?\d)"
            found.append((grouped, lambda m: m[1].replace(" ", "")))
        found += self.own
        found += [
            (rf"([{signs}]) ?{number}{scale}", lambda m: self.price(m[2] + m[3], m[4], m[1])),
            (rf"{number}{scale} ?([{signs}])", lambda m: self.price(m[1] + m[2], m[3], m[4])),
            (rf"(?<![\d/.,-])(?:(\d+)(?: (?=\d)| ?(?=[{_SIGNS}])))?"
             rf"([{_SIGNS}]|{'|'.join(_FRACTIONS)})(?![\d/])", self.fraction),
            (rf"{number} ?({units})(?![\w²³/])",
             lambda m: self.counted(m[1] + m[2], self.units[m[3]])),
        ]  # fmt: skip
        if self.range:
            ends = r"(?<![\d.,/–-])(\d{1,4})[-–](\d{1,4})(?![\d/–-]|[.,]\d)"
            found.append((ends, self._ranged))
        if self.code in ("en", "de"):
            year = r"(?<![\d.,:/-])(1[1-9]\d\d)(?![\d:/]|[.,]\d|-\d)"
            found.append((year, lambda m: numeral(int(m[1]), self.code, "year")))
        if self.code == "ru":  # last, as units go by the digits
            decimal = r"(?<![\d.,])(\d+),(\d+)(?![\d.,]*\d)"
            found.append((decimal, lambda m: numeral(f"{m[1]}.{m[2]}", "ru")))
        return [
            (re.compile(pattern), _careful(said) if callable(said) else said, r"\d" in pattern)
            for pattern, said in found
        ]

    def _ranged(self, found: re.Match) -> str:
        first, last = found.groups()
        phone = len(first) >= 3 and len(last) == 4 != len(first)
        return f"{first}{self.range if int(first) < int(last) and not phone else ' '}{last}"


def _careful(said: Callable[[re.Match], str]) -> Callable[[re.Match], str]:
    """`said`, or what is there where num2words knows no word for a number, as for those of many
    digits."""

    def tried(found: re.Match) -> str:
        try:
            return said(found)
        except (ArithmeticError, LookupError, ValueError, TypeError, NotImplementedError):
            return found[0]

    return tried


def roman_value(roman: str) -> int:
    """The number of a `ROMAN`."""
    values = [{"I": 1, "V": 5, "X": 10}[c] for c in roman]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))
