"""What a sample says as the page shows it: symbols said and heard beside each other with errors
marked, and how long each symbol lasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rvqlm.cli import counted
from rvqlm.frontends.symbols import read_symbol
from rvqlm.metrics.recognition import align, count_edits, read_pairs

SIGNS = {"right": "", "substitution": "≠", "insertion": "+", "deletion": "−"}
GROUP = 14
"""Columns that stay on one line, at most: a narrow screen has room for them."""


class Column(NamedTuple):
    """One step of an alignment."""

    said: str | None
    heard: str | None

    @property
    def kind(self) -> str:
        if self.said == self.heard:
            return "right"
        if self.said is None:
            return "insertion"
        return "deletion" if self.heard is None else "substitution"

    @property
    def sign(self) -> str:
        return SIGNS[self.kind]

    @property
    def shown(self) -> list[str]:
        """The two as something to be seen."""
        return ["·" if symbol is None else visible(symbol) for symbol in self]


def visible(symbol: str) -> str:
    """A symbol with its white space as something to be seen.

    >>> visible("<space>"), visible(" "), visible("ɔ")
    ('␣', '␣', 'ɔ')
    """
    return "".join("␣" if c.isspace() else c for c in read_symbol(symbol))


@dataclass
class Heard:
    """What a recogniser wrote down of a sample, beside what it should say."""

    errors: int
    symbols: int
    columns: list[Column]

    @classmethod
    def of(cls, row: dict) -> Heard:
        """Of a row of `rvqlm recognize`; those of earlier versions have texts alone, of which each
        character counts as a symbol."""
        if "aligned" in row:
            pairs = read_pairs(row["aligned"])
        else:
            ids = ([ord(c) for c in row.get(name, "")] for name in ("reference", "recognized"))
            pairs = [[None if id is None else chr(id) for id in pair] for pair in align(*ids)]
        return cls(row["errors"], row["symbols"], [Column(*pair) for pair in pairs])

    @property
    def rate(self) -> float:
        return self.errors / max(1, self.symbols)

    @property
    def kinds(self) -> list[str]:
        """Errors by kind, in words."""
        edits = count_edits(self.columns)
        named = zip(edits._fields, edits)
        return [counted(n, kind.removesuffix("s")) for kind, n in named if n]

    @property
    def groups(self) -> list[list[Column]]:
        """The columns word by word, a space at the end of its word; long ones in pieces."""
        found: list[list[Column]] = [[]]
        for column in self.columns:
            starts = (column.said or "").startswith("▁")  # a word of pieces
            if found[-1] and (starts or len(found[-1]) == GROUP):
                found.append([])
            found[-1].append(column)
            if visible(column.said or column.heard) == "␣":
                found.append([])
        return [group for group in found if group]

    def said(self) -> list[Column]:
        return [column for column in self.columns if column.said is not None]


class Box(NamedTuple):
    """A symbol on the time axis."""

    symbol: str
    left: float
    """Percent of the whole clip."""
    width: float
    kind: str
    """As that of a `Column`; ``space`` of white space."""
    words: str
    """For who points at it."""


def boxes(alignment: Iterable[Sequence], seconds: float, heard: Heard | None = None) -> list[Box]:
    """Where the symbols of a clip lie.

    :param alignment: symbol, begin and end in seconds.
    :param seconds: of the clip; what lies behind is cut.
    :param heard: marks those that were heard otherwise, where its symbols are the same ones.
    """
    alignment = list(alignment)
    names = [read_symbol(symbol) for symbol, _, _ in alignment]
    said = heard.said() if heard else []
    if [read_symbol(column.said) for column in said] != names:
        said = []
    found = []
    for place, (name, (_, begin, end)) in enumerate(zip(names, alignment)):
        left, right = (min(max(t / seconds, 0.0), 1.0) for t in (begin, end))
        if left == 1:
            continue
        kind = said[place].kind if said else "right"
        words = f"{visible(name)} {1000 * (end - begin):.0f} ms, at {begin:.2f} s"
        if kind != "right":
            words += f"; heard {said[place].shown[1]}"
        kind = "space" if kind == "right" and name.isspace() else kind
        found.append(
            Box(visible(name), round(100 * left, 2), round(100 * (right - left), 2), kind, words)
        )
    return found
