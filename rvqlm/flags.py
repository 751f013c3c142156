"""What the flags of several rooms have in common: values by epoch, and lists of what is wrong.

A schedule is a list of ``EPOCH:VALUE``, each from its epoch on, the first from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, TypeVar

from rvqlm.cli import kebab
from rvqlm.errors import UserError

V = TypeVar("V")
Schedule = list[tuple[int, V]]


def parse_schedule(words: Sequence[str], flag: str, convert: Callable[[str], V]) -> Schedule:
    """``("0:512", "10:1024")`` -> ``[(0, 512), (10, 1024)]``; `UserError` names what is wrong.

    >>> parse_schedule(("0:512", "10:1024"), "--window-schedule", int)
    [(0, 512), (10, 1024)]
    """
    found: Schedule = []
    for word in words:
        epoch, colon, value = word.partition(":")
        try:
            if not colon:
                raise ValueError
            found.append((int(epoch), convert(value)))
        except ValueError:
            raise UserError(f"{flag} {word}: expected EPOCH:VALUE, such as {words[0]!r}") from None
    epochs = [epoch for epoch, _ in found]
    if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise UserError(f"{flag} {' '.join(words)}: epochs begin with 0 and rise")
    return found


def value_at(schedule: Schedule, epoch: int) -> V:
    """The value that holds in an epoch."""
    return [value for first, value in schedule if first <= epoch][-1]


def flag(name: str) -> str:
    return f"--{kebab(name)}"


class Problems(list[str]):
    """What is wrong with the flags of a group, a sentence each; fields by their Python names.

    >>> from rvqlm.data.plan_config import PlanConfig
    >>> found = Problems(PlanConfig(max_cuts=-1))
    >>> found.at_least(0, "max_cuts", "hop_frames")
    >>> found
    ['--max-cuts -1: at least 0']
    """

    def __init__(self, group: Any):
        super().__init__()
        self.group = group

    def need(self, ok: bool, message: str) -> None:
        if not ok:
            self.append(message)

    def need_of(self, name: str, ok: bool, what: str) -> None:
        """`what` a value has to be, said with the flag and its value."""
        self.need(ok, f"{flag(name)} {getattr(self.group, name)}: {what}")

    def at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self.group, name)
            self.need_of(name, isfinite(value) and value >= low, f"at least {low}")

    def above(self, low: float, *names: str) -> None:
        """None is good as well."""
        for name in names:
            value = getattr(self.group, name)
            self.need_of(name, value is None or (isfinite(value) and value > low), f"above {low}")

    def excludes(self, one: str, other: str) -> None:
        both = self.changed(one) and self.changed(other)
        self.need(not both, f"{flag(one)} and {flag(other)} exclude each other")

    def changed(self, name: str) -> bool:
        """Whether a flag is not at its default."""
        return getattr(self.group, name) != getattr(type(self.group), name)
