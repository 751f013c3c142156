"""Praat's TextGrid files: tiers of labelled intervals, as aligners write and people edit them.

Reading takes what Praat takes: of a text file, in its long or short form, only the numbers, the
quoted strings and the flags between free-standing words count; in UTF-8 or, with its mark, UTF-16.
Tiers of points are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvqlm.errors import UserError, reason_of
from rvqlm.files import MOST, write_text
from rvqlm.frontends.aligned import Item

_TOKEN = re.compile(
    r'"((?:[^"]|"")*)"|(?<!\S)(<\w+>|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?)(?!\S)|![^\n]*|\S+'
)


SHORTEST = 1e-4
"""Seconds of an interval, at least, as it is written."""


def read_textgrid(path: str | os.PathLike) -> dict[str, list[Item]]:
    """The intervals of each tier by its name, in seconds, those without a label included.

    Raises `UserError` for a file that is missing, damaged or something else.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
    except OSError as e:
        raise UserError(f"{path}: {reason_of(e)}") from None
    try:
        if len(data) > MOST:
            raise ValueError(f"more than {MOST >> 20} MB")
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return _tiers(_Tokens(data.decode("utf-16" if utf16 else "utf-8-sig")))
    except (ValueError, OverflowError) as e:
        raise UserError(f"{path} is no TextGrid ({e}); export it again as a text file") from None


class _Tokens:
    """The strings, numbers and flags of a text, one after another."""

    def __init__(self, text: str):
        self._found = (m for m in _TOKEN.finditer(text) if m.lastindex)

    def _next(self) -> re.Match:
        found = next(self._found, None)
        if found is None:
            raise ValueError("cut short")
        return found

    def string(self) -> str:
        found = self._next()
        if found[1] is None:
            raise ValueError(f"{found[0]} where a string is wanted")
        return found[1].replace('""', '"')

    def number(self) -> float:
        found = self._next()
        try:
            number = float(found[2] or "")
        except ValueError:
            raise ValueError(f"{found[0][:40]} where a number is wanted") from None
        if not 0 <= number < 1e9:
            raise ValueError(f"the time or number {found[0][:40]}")
        return number

    def flag(self) -> str:
        return self._next()[2] or ""


def _tiers(tokens: _Tokens) -> dict[str, list[Item]]:
    kind = (tokens.string(), tokens.string())
    if kind != ("ooTextFile", "TextGrid"):
        raise ValueError("it begins with {!r} and {!r}".format(*kind))
    tokens.number(), tokens.number()  # of the whole
    found: dict[str, list[Item]] = {}
    if tokens.flag() != "<exists>":
        return found
    for _ in range(int(tokens.number())):
        of, name = tokens.string(), tokens.string()
        tokens.number(), tokens.number()  # of the tier
        count = int(tokens.number())
        if of == "TextTier":
            for _ in range(count):
                tokens.number(), tokens.string()
            continue
        if of != "IntervalTier":
            raise ValueError(f"a tier of the kind {of!r}")
        items = []
        for _ in range(count):
            start, end = tokens.number(), tokens.number()
            items.append(Item(tokens.string(), start, end))
        found.setdefault(name, items)
    return found


def write_textgrid(
    path: str | os.PathLike, tiers: Mapping[str, Sequence[Item]], seconds: float
) -> None:
    """Write tiers in the long form, in UTF-8; what lies between items becomes empty intervals, and
    items last `SHORTEST` at least, as Praat has none without duration."""
    filled_tiers = {name: _filled(items, seconds) for name, items in tiers.items()}
    seconds = max([seconds, *(items[-1].end for items in filled_tiers.values() if items)])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0"]
    lines += [f"xmax = {_time(seconds)}", "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, filled) in enumerate(filled_tiers.items(), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"']
        lines += [f"        name = {_quoted(name)}", "        xmin = 0"]
        lines += [f"        xmax = {_time(seconds)}", f"        intervals: size = {len(filled)}"]
        for n, item in enumerate(filled, 1):
            lines += [f"        intervals [{n}]:", f"            xmin = {_time(item.start)}"]
            lines += [f"            xmax = {_time(item.end)}"]
            lines += [f"            text = {_quoted(item.label)}"]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")


def _filled(items: Sequence[Item], seconds: float) -> list[Item]:
    found: list[Item] = []
    at = 0.0
    for item in items:
        if item.start >= at + SHORTEST:
            found.append(Item("", at, item.start))
            at = item.start
        found.append(Item(item.label, at, max(item.end, at + SHORTEST)))
        at = found[-1].end
    if at + SHORTEST <= seconds:
        found.append(Item("", at, seconds))
    return found


def _time(seconds: float) -> str:
    return f"{seconds:.5f}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
