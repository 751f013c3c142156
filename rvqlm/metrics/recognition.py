"""What a recogniser got wrong: edit distance, error rates with their uncertainty, and the rate that
chance would give.

An error is a substitution, insertion or deletion in the shortest way from the reference to what was
recognised (Levenshtein, 1966); a rate is the errors over the symbols of the references, of all
items together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CANDIDATES = 100
"""Texts that an item is to be told from, at most."""


class Edits(NamedTuple):
    """What makes a hypothesis of a reference, in the fewest steps."""

    substitutions: int
    insertions: int
    deletions: int

    @property
    def errors(self) -> int:
        return sum(self)


def _rows(
    references: Sequence[Sequence[int]], hypotheses: Sequence[Sequence[int]]
) -> Iterator[np.ndarray]:
    """The table of distances between beginnings, row by row: row i is (B, M + 1), from the first i
    symbols of each reference to the first j of its hypothesis."""
    right, found = _padded(references, -1), _padded(hypotheses, -2)
    columns = np.arange(found.shape[1] + 1)
    row = np.broadcast_to(columns, (len(found), len(columns)))
    yield row
    for i in range(right.shape[1]):
        step = row + 1  # a deletion
        step[:, 1:] = np.minimum(step[:, 1:], row[:, :-1] + (found != right[:, i : i + 1]))
        # insertions: from the left, d[j] = min over j' <= j of d[j'] + j - j', all columns at once
        row = np.minimum.accumulate(step - columns, axis=1) + columns
        yield row


def _padded(items: Sequence[Sequence[int]], value: int) -> np.ndarray:
    """(B, longest) int64."""
    out = np.full((len(items), max(map(len, items), default=0)), value, np.int64)
    for row, item in zip(out, items):
        row[: len(item)] = item
    return out


def edit_distances(
    references: Sequence[Sequence[int]], hypotheses: Sequence[Sequence[int]]
) -> np.ndarray:
    """(B,) int64 edit distances of pairs of sequences of ids from 0 on.

    >>> edit_distances([[1, 2, 3], []], [[1, 3, 4], [7]]).tolist()
    [2, 1]
    """
    ends, columns = (np.array([len(i) for i in items], int) for items in (references, hypotheses))
    found = np.zeros(len(ends), np.int64)
    for i, row in enumerate(_rows(references, hypotheses)):
        here = np.flatnonzero(ends == i)
        found[here] = row[here, columns[here]]
    return found


def count_edits(reference: Sequence[int], hypothesis: Sequence[int]) -> Edits:
    """The edits of one pair; where several ways are equally short, the one with most
    substitutions.

    >>> count_edits([1, 2, 3], [1, 3, 3, 4])
    Edits(substitutions=1, insertions=1, deletions=0)
    """
    table = np.stack([row[0] for row in _rows([reference], [hypothesis])])
    i, j = len(reference), len(hypothesis)
    substitutions = insertions = deletions = 0
    while i or j:
        here = table[i, j]
        if i and j and here == table[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            substitutions += int(reference[i - 1] != hypothesis[j - 1])
            i, j = i - 1, j - 1
        elif i and here == table[i - 1, j] + 1:
            deletions, i = deletions + 1, i - 1
        else:
            insertions, j = insertions + 1, j - 1
    return Edits(substitutions, insertions, deletions)


@dataclass
class Recognized:
    """One item: what it was to say, and what was recognised."""

    name: str
    """Path of the file or id of the cut."""
    reference: list[int]
    """Symbol ids; at least one."""
    recognized: list[int]

    def row(self, decode) -> dict:
        """Plain values for a record; `decode` makes text of ids."""
        edits = count_edits(self.reference, self.recognized)
        return {
            "name": self.name,
            "reference": decode(self.reference),
            "recognized": decode(self.recognized),
            "symbols": len(self.reference),
            "errors": edits.errors,
            **edits._asdict(),
        }


def error_rate(errors: np.ndarray, symbols: np.ndarray, seed: int = 0) -> dict:
    """Rate of all items together, with the interval that holds it with 95 % confidence.

    The interval is that of the bootstrap over items (Bisani & Ney, 2004, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation", ICASSP): how the rate scatters when other
    items are drawn, 2000 times. None for a single item, which says nothing about others.

    :param errors, symbols: (N,) of each item.
    """
    errors, symbols = np.asarray(errors, float), np.asarray(symbols, float)
    interval = None
    if len(errors) > 1:
        drawn = np.random.default_rng(seed).integers(len(errors), size=(2000, len(errors)))
        rates = errors[drawn].sum(1) / symbols[drawn].sum(1)
        interval = np.percentile(rates, [2.5, 97.5]).tolist()
    return {"error_rate": float(errors.sum() / symbols.sum()), "interval": interval}


def summarize(items: Sequence[Recognized], seed: int = 0) -> dict:
    """Rates over `items`, by kind of error, and by chance.

    ``chance`` is the rate against what another item was to say, drawn by `seed`: what a recogniser
    gets that knows the language and does not listen, or a model that speaks and does not read.
    None where all say the same. ``identified`` counts the items whose transcript is nearer to their
    own text than to any other's, distances relative to the text; of those in a draw of `CANDIDATES`
    where there are more.
    """
    edits = [count_edits(item.reference, item.recognized) for item in items]
    symbols = np.array([len(item.reference) for item in items])
    others = other_items([item.reference for item in items], seed)
    chance = None
    if others is not None:
        said = [items[i].reference for i in others]
        errors = edit_distances(said, [item.recognized for item in items])
        chance = float(errors.sum() / symbols[others].sum())
    kinds = {name: sum(getattr(e, name) for e in edits) for name in Edits._fields}
    errors = np.array([e.errors for e in edits])
    return {
        **error_rate(errors, symbols, seed),
        "chance": chance,
        "identified": identified(items, seed) if others is not None else None,
        "items": len(items),
        "symbols": int(symbols.sum()),
        "errors": int(errors.sum()),
        **kinds,
    }


def identified(items: Sequence[Recognized], seed: int) -> tuple[int, int]:
    """How many of how many items are recognised for what they are among all that were said."""
    chosen = np.random.default_rng(seed).permutation(len(items))[:CANDIDATES]
    texts = [items[i].reference for i in chosen]
    found = 0
    for number, i in enumerate(chosen):
        errors = edit_distances(texts, [items[i].recognized] * len(texts))
        shares = errors / np.array([max(1, len(t)) for t in texts])
        # another item that says the same is no other text
        found += all(shares[number] < s for s, t in zip(shares, texts) if t != items[i].reference)
    return found, len(chosen)


def other_items(references: Sequence[Sequence[int]], seed: int) -> np.ndarray | None:
    """(N,) for each item the number of another one with another reference, drawn by `seed`; None
    where there is none such."""
    kinds = {}
    kind = np.array([kinds.setdefault(tuple(r), len(kinds)) for r in references])
    if len(kinds) < 2:
        return None
    rng = np.random.default_rng(seed)
    others = rng.integers(len(kind), size=len(kind))
    while len(same := np.flatnonzero(kind[others] == kind)):
        others[same] = rng.integers(len(kind), size=len(same))
    return others
