"""Figures that judges from outside wrote of an experiment's samples: any table of numbers.

Read are ``judge*.json`` in the experiment and in its samples folder. A figure is an object with a
number under one of `VALUES` and perhaps an ``interval``; its name is the way to it through the
file, lists of single items left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rvqlm.files import read_json
from rvqlm.reports.experiment import REMEDY
from rvqlm.reports.formatting import number

VALUES = ("mean", "value", "rate", "error_rate", "score")
_DEPTH = 6
_SINGLE = ("rows", "items", "clips")
"""Lists of single samples."""


@dataclass
class Judged:
    """A figure."""

    name: str
    text: str
    within: str
    """Its interval."""
    tip: str
    """What it means, where the file says it."""


def read_judged(folders: list[Path]) -> list[Judged]:
    """All figures of all files; that of an earlier folder counts.

    :raises UserError: a damaged file.
    """
    found: dict[str, Judged] = {}
    for folder in folders:
        for place in (folder, folder / "samples"):
            for path in sorted(place.glob("judge*.json")):
                for judged in _figures(read_json(path, REMEDY, type=dict[str, Any]), (), 0):
                    found.setdefault(judged.name, judged)
    return list(found.values())


def _figures(value: Any, names: tuple[str, ...], depth: int) -> Iterator[Judged]:
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("name"), str):
                yield from _figures(item, (*names, item["name"]), depth + 1)
        return
    if not isinstance(value, dict):
        return
    figure = next((v for k in VALUES if _is_number(v := value.get(k))), None)
    if figure is not None and names:
        yield _judged(figure, value, names)
    for name, inner in value.items():
        if name not in _SINGLE:
            yield from _figures(inner, (*names, str(name)), depth + 1)


def _judged(figure: float, about: dict, names: tuple[str, ...]) -> Judged:
    share = about.get("percent") is True
    interval = about.get("interval")

    def written(value: float) -> str:
        return f"{100 * value:.1f} %" if share else number(value)

    known = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    within = " to ".join(map(written, interval)) if known else ""
    words = (about.get(key) for key in ("meaning", "model", "better"))
    tip = "; ".join(word for word in words if isinstance(word, str) and word)
    return Judged(", ".join(dict.fromkeys(names)), written(figure), within, tip)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
