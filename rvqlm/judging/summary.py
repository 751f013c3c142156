"""Means of what judges found, with intervals over recordings, and the table of them.

Clips of one recording (several samples of it, or the ones before and after) are not independent: an
interval says how a mean would scatter with other recordings, drawn with replacement (bootstrap over
clusters). Distances of sets, which drawing the same vector twice would enlarge, have theirs from
leaving out a tenth of the recordings at a time (jackknife).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rvqlm.cli import counted
from rvqlm.metrics.uncertainty import deviations

DRAWS = 2000
PARTS = 10
"""Of the recordings, one of which is left out at a time."""


def mean_of(values, weights, recordings: Sequence[str]) -> dict:
    """Weighted mean with its 95 % interval over recordings; None for less than two of them.

    :param values, weights, recordings: of each clip.

    >>> found = mean_of([0.0, 1.0, 1.0, 0.0], [1, 1, 2, 4], ["a", "a", "b", "c"])
    >>> found["mean"], found["clips"], found["recordings"]
    (0.375, 4, 3)
    """
    values, weights = np.asarray(values, float), np.asarray(weights, float)
    names, group = np.unique(np.asarray(recordings), return_inverse=True)
    sums, totals = (np.bincount(group, x) for x in (values * weights, weights))
    interval = None
    if len(names) > 1 and totals.sum() > 0:
        drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
        drawn_totals = totals[drawn].sum(1)
        kept = drawn_totals > 0
        means = sums[drawn].sum(1)[kept] / drawn_totals[kept]
        interval = np.percentile(means, [2.5, 97.5]).tolist()
    mean = float(sums.sum() / totals.sum()) if totals.sum() > 0 else None
    return {"mean": mean, "interval": interval, "clips": len(values), "recordings": len(names)}


def distance_of(
    distance: Callable[[np.ndarray, np.ndarray], float],
    reference: dict[str, np.ndarray],
    other: dict[str, np.ndarray],
) -> dict:
    """A distance of two sets of vectors with its 95 % interval over recordings.

    :param reference, other: (N, D) vectors by recording; one that is in both is left out of both.
    """
    names = sorted(reference.keys() | other.keys())

    def without(left_out: set[str]) -> float | None:
        sides = [
            [v for name, v in side.items() if name not in left_out] for side in (reference, other)
        ]
        if not all(sides):
            return None
        a, b = (np.concatenate(side) for side in sides)
        return distance(a, b) if min(len(a), len(b)) > 1 else None

    found = without(set())
    parts = min(PARTS, len(names))
    interval = None
    if found is not None and parts > 2:
        values = [without(set(names[n::parts])) for n in range(parts)]
        if None not in values:
            scatter = np.sum((np.array(values) - np.mean(values)) ** 2) * (parts - 1) / parts
            within = deviations(parts - 1) * np.sqrt(scatter)
            interval = [float(found - within), float(found + within)]
    clips = len(other)
    vectors = [int(sum(map(len, side.values()))) for side in (reference, other)]
    return {
        "mean": found, "interval": interval, "clips": clips, "recordings": len(names),
        "vectors": vectors,
    }  # fmt: skip


def halves_of(vectors: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Every other recording, and the rest: what their distance is, no model can be below."""
    names = sorted(vectors)
    return ({n: vectors[n] for n in names[::2]}, {n: vectors[n] for n in names[1::2]})


def cell(entry: dict | None, percent: bool = False) -> str:
    """A mean with its interval.

    >>> cell({"mean": 0.1234, "interval": [0.1, 0.2]}, percent=True), cell(None)
    ('12.3 % (10.0 to 20.0)', '-')
    """
    if entry is None or entry["mean"] is None:
        return "-"
    scale = 100 if percent else 1
    numbers = [scale * x for x in (entry["mean"], *(entry["interval"] or ()))]
    most = max(map(abs, numbers))
    digits = 1 if percent or most >= 100 else 2 if most >= 1 else 3
    mean, *rest = (f"{x:.{digits}f}" for x in numbers)
    mean += " %" if percent else ""
    return mean + (f" ({rest[0]} to {rest[1]})" if rest else "")


def table(summary: dict[str, dict], columns: dict[str, tuple[str, bool]]) -> list[str]:
    """Lines: a row for each figure, a column for each view.

    :param summary: by view and figure, as `mean_of` returns.
    :param columns: by figure, which way is better and whether it is a percentage.
    """
    arrows = {"lower": "↓", "higher": "↑", "as recorded": "="}
    views = list(summary)
    rows = [["", *views]]
    for name, (better, percent) in columns.items():
        entries = [summary[view].get(name) for view in views]
        if any(entries):
            rows.append([f"{name} {arrows[better]}", *(cell(e, percent) for e in entries)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]


def reasons(found: Iterable[str], most: int = 3) -> str:
    """Reasons with how often each came, the commonest first.

    >>> reasons(["no text", "no text", "too short"])
    'no text (2 clips), too short (1 clip)'
    """
    counts: dict[str, int] = {}
    for reason in found:
        counts[reason] = counts.get(reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{reason} ({counted(n, 'clip')})" for reason, n in ordered[:most]]
    return ", ".join(words) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
