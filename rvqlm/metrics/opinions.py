"""Statistics of listening tests: what raters said of items.

Answers are (items, raters) float64 with NaN where there is none. Two answers about one item are not
independent, and neither are two of one rater; so intervals are those of the bootstrap that draws
items and raters anew, each answer counted as often as its item times its rater was drawn (Owen,
2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2)), which is rather too wide than
too narrow; and the sign test counts items, not answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

DRAWS = 4000


def mean_with_interval(answers: np.ndarray) -> tuple[float, list[float] | None]:
    """Mean of all answers, with its 95 % interval: over other items of the kind, and over other
    raters where there are several; None of a single item.

    >>> mean_with_interval(np.ones((4, 2)))
    (1.0, [1.0, 1.0])
    """
    known = np.isfinite(answers)
    answers, known = answers[known.any(1)][:, known.any(0)], known[known.any(1)][:, known.any(0)]
    if not known.any():
        raise ValueError("no answers")
    items, raters = answers.shape
    values = np.where(known, answers, 0.0)
    mean = float(values.sum() / known.sum())
    if items < 2:
        return mean, None
    rng = np.random.default_rng(0)
    by_item = _times_drawn(rng, items)  # (DRAWS, items)
    by_rater = _times_drawn(rng, raters) if raters > 1 else np.ones((DRAWS, 1))
    sums, counts = (((by_item @ part) * by_rater).sum(1) for part in (values, known.astype(float)))
    means = sums[counts > 0] / counts[counts > 0]
    return mean, np.percentile(means, [2.5, 97.5]).tolist()


def _times_drawn(rng: np.random.Generator, number: int) -> np.ndarray:
    """(DRAWS, number) how often each of so many is drawn when as many are drawn."""
    return rng.multinomial(number, [1 / number] * number, size=DRAWS).astype(float)


def signs_of_items(answers: np.ndarray) -> tuple[int, int]:
    """Items whose answers sum up to more and to less than 0."""
    sums = np.nansum(answers, axis=1)
    return int((sums > 0).sum()), int((sums < 0).sum())


def sign_test(first: int, second: int) -> float:
    """Exact two-sided probability of a division at least as uneven, if both were equally likely.

    >>> sign_test(5, 0), sign_test(3, 3), sign_test(0, 0)
    (0.0625, 1.0, 1.0)
    """
    number, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(comb(number, k) for k in range(fewer + 1)) / 2**number)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities of several tests, raised so that one of them is below 5 % by chance in at most
    5 % of cases (Holm, 1979).

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    found, least = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * probabilities[place]))
        found[place] = least
    return found
