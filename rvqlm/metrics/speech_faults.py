"""What goes wrong in speech beside single errors, from what a recogniser heard: something said
twice (stutter), something behind the end, something put in that is as long as a word. Sequences are
of ids of symbols that have a sound; a recogniser makes such errors too: compare with recordings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rvqlm.metrics.recognition import align


def doubled(symbols: Sequence[int], least: int = 2) -> int:
    """Blocks of at least so many symbols that stand twice in a row, from the left, the longest
    first; those said three times count twice.

    >>> doubled([1, 2, 3, 2, 3, 4]), doubled([7, 7, 7]), doubled([1, 2, 1, 2, 1, 2])
    (1, 0, 2)
    """
    symbols, count, at = list(symbols), 0, 0
    while at + 2 * least <= len(symbols):
        longest = (len(symbols) - at) // 2
        for n in range(longest, least - 1, -1):
            block = symbols[at : at + n]
            if block == symbols[at + n : at + 2 * n] and len(set(block)) > 1:
                count, at = count + 1, at + n
                break
        else:
            at += 1
    return count


def stutters(reference: Sequence[int], heard: Sequence[int]) -> int:
    """Blocks that were heard twice in a row, more than are to be said so.

    >>> stutters([1, 2, 3], [1, 2, 1, 2, 3]), stutters([1, 2, 1, 2], [1, 2, 1, 2])
    (1, 0)
    """
    return max(0, doubled(heard) - doubled(reference))


def behind_end(reference: Sequence[int], heard: Sequence[int]) -> int:
    """Symbols heard behind the last that was to be said.

    >>> behind_end([1, 2, 3], [1, 2, 3, 2, 3]), behind_end([1, 2, 3], [9, 1, 2])
    (2, 0)
    """
    pairs = align(reference[::-1], heard[::-1])  # from the end: what is put in comes last
    count = 0
    for said, _ in pairs:
        if said is not None:
            return count
        count += 1
    return count


def longest_insertion(reference: Sequence[int], heard: Sequence[int]) -> int:
    """Symbols in the longest run that was heard and not to be said.

    >>> longest_insertion([1, 2, 3], [1, 7, 8, 9, 2, 3])
    3
    """
    most = run = 0
    for said, _ in align(reference, heard):
        run = run + 1 if said is None else 0
        most = max(most, run)
    return most


def coverage(reference: Sequence[int], heard: Sequence[int], parts: int = 3) -> list[float]:
    """Share of the symbols of each part of a text, from the first to the last, that were heard.

    >>> coverage([1, 2, 3, 4, 5, 6], [1, 2, 3, 9])
    [1.0, 0.5, 0.0]
    """
    told = [(said, found) for said, found in align(reference, heard) if said is not None]
    edges = [len(told) * n // parts for n in range(parts + 1)]
    found = []
    for start, end in pairwise(edges):
        right = sum(said == heard for said, heard in told[start:end])
        found.append(right / max(1, end - start))
    return found
