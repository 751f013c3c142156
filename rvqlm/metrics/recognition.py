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
"""Items whose transcripts are compared with each other's texts, at most."""


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


def error_rate(errors: np.ndarray, symbols: np.ndarray) -> dict:
    """Rate of all items together, with the interval that holds it with 95 % confidence.

    The interval is that of the bootstrap over items (Bisani & Ney, 2004, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation", ICASSP): how the rate scatters when other
    items are drawn, 2000 times. None for a single item, which says nothing about others.

    :param errors, symbols: (N,) of each item.
    """
    errors, symbols = np.asarray(errors, float), np.asarray(symbols, float)
    interval = None
    if len(errors) > 1:
        drawn = np.random.default_rng(0).integers(len(errors), size=(2000, len(errors)))
        rates = errors[drawn].sum(1) / symbols[drawn].sum(1)
        interval = np.percentile(rates, [2.5, 97.5]).tolist()
    return {"error_rate": float(errors.sum() / symbols.sum()), "interval": interval}


def summarize(items: Sequence[Recognized]) -> dict:
    """Rates over `items`, by kind of error, and by chance; see `error_rate` and `compare_texts`."""
    edits = [count_edits(item.reference, item.recognized) for item in items]
    symbols = [len(item.reference) for item in items]
    return {
        **error_rate([e.errors for e in edits], symbols),
        **compare_texts(items),
        "items": len(items),
        "symbols": sum(symbols),
        "errors": sum(e.errors for e in edits),
        **{name: sum(getattr(e, name) for e in edits) for name in Edits._fields},
    }


def compare_texts(items: Sequence[Recognized]) -> dict:
    """Each of `CANDIDATES` items, drawn where there are more, against the texts of the others.

    ``chance`` is the error rate against other texts: what a recogniser gets that knows the language
    and does not listen, or a model that speaks and does not read. ``identified`` counts the items,
    of how many, whose transcript is nearer to their own text than to any other, distances relative
    to the text. Both are None where all say the same.
    """
    chosen = np.random.default_rng(0).permutation(len(items))[:CANDIDATES]
    items = [items[i] for i in chosen]
    texts = [item.reference for item in items]
    symbols = np.array([len(text) for text in texts])
    errors = compared = found = 0
    for number, item in enumerate(items):
        distances = edit_distances(texts, [item.recognized] * len(texts))
        others = np.array([text != item.reference for text in texts])
        errors += int(distances[others].sum())
        compared += int(symbols[others].sum())
        shares = distances / symbols
        found += bool((shares[number] < shares[others]).all())
    if not compared:
        return {"chance": None, "identified": None}
    return {"chance": errors / compared, "identified": (found, len(items))}
