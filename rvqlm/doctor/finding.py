"""Findings, and the rules that make them.

A rule is a function over the checkpoint under test. It yields the facts of every place where
something is wrong; `rule` adds the severity, the sentence that the facts are put into, and what to
do about it. Thresholds stand beside the rules with the reason for their size: a training that goes
well must pass without a word of concern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "concern", "unusable"]
STATUS: dict[str, int] = {"note": 0, "concern": 1, "unusable": 2}
"""Exit status of `rvqlm doctor` for the worst finding."""
START = 10
"""Steps after which every part has had a gradient: heads and residual branches start at zero, and
let none through in the first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed."""

    severity: Severity
    """note: worth knowing; concern: look at it before training continues; unusable: the checkpoint
    cannot be used as it is"""
    subject: str
    """file, weights, ema, optimizer, embeddings, log, comparison or replay"""
    where: str
    """tensor, level, step, file: as exactly as is known"""
    what: str
    remedy: str
    rule: str


@dataclass(frozen=True)
class Rule:
    """See `rule`."""

    name: str
    severity: Severity
    subject: str
    says: str
    remedy: str
    test: Callable[..., Iterable[dict]]

    def findings(self, checkpoint) -> Iterator[Finding]:
        if getattr(checkpoint, self.subject) is None:
            return
        usual = {"severity": self.severity, "subject": self.subject, "where": checkpoint.path}
        usual |= {"path": checkpoint.path, "step": checkpoint.step}
        for facts in self.test(checkpoint):
            facts = {**usual, **facts}
            place = (facts["severity"], facts["subject"], str(facts["where"]))
            said = (self.says.format(**facts), self.remedy.format(**facts))
            yield Finding(*place, *said, self.name)


def rule(severity: Severity, subject: str, says: str, remedy: str = ""):
    """Makes a `Rule` of a function, named after it: ``test(c)`` yields the facts of each finding,
    where ``c`` is the `CheckpointUnderTest`.

    :param subject: what it reads: an attribute of `CheckpointUnderTest`; it does not run where
        that is None.
    :param says, remedy: format strings over ``path`` and ``step`` of the checkpoint and the facts,
        of which ``where`` (default: the file), ``severity`` and ``subject`` are the finding's.
    """

    return lambda test: Rule(test.__name__, severity, subject, says, remedy, test)


def some(items: Iterable, limit: int = 5) -> str:
    """The first few of a list, and how many more there are.

    >>> some([3, 5, 8, 9], limit=2)
    '3, 5 and 2 more'
    """
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more
