"""What a recogniser got wrong: edit distance, error rates with their uncertainty, and the rate that
chance would give.

An error is a substitution, insertion or deletion in the shortest way from the reference to what was
recognised (Levenshtein, 1966); a rate is the errors over the symbols of the references, of all
items together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rvqlm.metrics.bootstrap import ratio_interval

GAP = "<eps>"
"""What stands for no symbol in an alignment; that of symbol tables."""
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


def align(
    reference: Sequence[int], hypothesis: Sequence[int]
) -> list[tuple[int | None, int | None]]:
    """What was recognised beside what should have been, in the fewest steps: a pair a step, with
    None for what was left out, or put in.

    >>> align([1, 2, 3], [1, 3, 3, 4])
    [(1, 1), (2, 3), (3, 3), (None, 4)]
    """
    table = np.stack([row[0] for row in _rows([reference], [hypothesis])]).tolist()
    i, j = len(reference), len(hypothesis)
    pairs: list[tuple[int | None, int | None]] = []
    while i or j:
        here = table[i][j]
        if i and j and here == table[i - 1][j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and here == table[i - 1][j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def count_edits(pairs: Iterable[tuple[object, object]]) -> Edits:
    """The edits of an alignment.

    >>> count_edits(align([1, 2, 3], [1, 3, 3, 4]))
    Edits(substitutions=1, insertions=1, deletions=0)
    """
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    insertions = sum(said is None for said, _ in wrong)
    deletions = sum(heard is None for _, heard in wrong)
    return Edits(len(wrong) - insertions - deletions, insertions, deletions)


def write_pairs(
    pairs: Iterable[tuple[int | None, int | None]], symbol: Callable[[int], str]
) -> list[str]:
    """An alignment as two lines of symbols apart by spaces, ``<eps>`` where there is none.

    >>> write_pairs([(1, 1), (None, 2)], "? a <space>".split().__getitem__)
    ['a <eps>', 'a <space>']
    """
    sides = zip(*pairs)
    return [" ".join(GAP if id is None else symbol(id) for id in side) for side in sides]


def read_pairs(lines: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """What `write_pairs` wrote, of symbols.

    :raises ValueError: lines of unequal lengths.
    """
    sides = ([None if s == GAP else s for s in line.split(" ")] for line in lines)
    return list(zip(*sides, strict=True))


@dataclass
class Recognized:
    """One item: what it was to say, and what was recognised."""

    name: str
    """Path of the file or id of the cut."""
    reference: list[int]
    """Symbol ids; at least one."""
    recognized: list[int]

    def row(self, decode: Callable[[Sequence[int]], str], symbol: Callable[[int], str]) -> dict:
        """Plain values for a record; ``aligned`` is `write_pairs` of the two.

        :param decode: makes text of ids.
        :param symbol: what one is in a symbol table, without white space.
        """
        pairs = align(self.reference, self.recognized)
        edits = count_edits(pairs)
        return {
            "name": self.name,
            "reference": decode(self.reference),
            "recognized": decode(self.recognized),
            "symbols": len(self.reference),
            "errors": edits.errors,
            **edits._asdict(),
            "aligned": write_pairs(pairs, symbol),
        }


def error_rate(errors: np.ndarray, symbols: np.ndarray) -> dict:
    """Rate of all items together, with the interval that holds it with 95 % confidence.

    The interval is that of the bootstrap over items (Bisani & Ney, 2004, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation", ICASSP): how the rate scatters when other
    items are drawn, 2000 times. None for a single item, which says nothing about others.

    :param errors, symbols: (N,) of each item.
    """
    errors, symbols = np.asarray(errors, float), np.asarray(symbols, float)
    within = ratio_interval(errors, symbols)
    return {"error_rate": float(errors.sum() / symbols.sum()), "interval": within}


def summarize(items: Sequence[Recognized], silent: Collection[int] = ()) -> dict:
    """Rates over `items`, by kind of error, and by chance; see `error_rate` and `compare_texts`.

    :param silent: ids of symbols that have no sound of their own, such as that of a word boundary;
        ``sounds`` is the rate of all others, aligned without these; None without any.
    """
    edits = [count_edits(align(item.reference, item.recognized)) for item in items]
    symbols = [len(item.reference) for item in items]
    return {
        **error_rate([e.errors for e in edits], symbols),
        **compare_texts(items),
        "sounds": _without(items, silent) if silent else None,
        "items": len(items),
        "symbols": sum(symbols),
        "errors": sum(e.errors for e in edits),
        **{name: sum(getattr(e, name) for e in edits) for name in Edits._fields},
    }


def _without(items: Sequence[Recognized], silent: Collection[int]) -> dict | None:
    """`error_rate` with these symbols left out of both sides; None where nothing is left."""
    sides = (
        [[id for id in side if id not in silent] for side in (item.reference, item.recognized)]
        for item in items
    )
    pairs = [(said, heard) for said, heard in sides if said]
    if not pairs:
        return None
    said, heard = zip(*pairs)
    return error_rate(edit_distances(said, heard), [len(side) for side in said])


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
