"""What judges from outside found of an experiment's samples: ``judged*.json`` in the experiment or
its samples folder, a mean with its interval for each figure and for each of what was judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from rvqlm.files import Count, Finite, read_json
from rvqlm.judging.summary import cell
from rvqlm.reports.experiment import REMEDY

VIEWS = {"samples": "samples", "codec": "recordings through the codec", "recordings": "recordings"}


class _Mean(TypedDict):
    mean: Finite | None
    interval: NotRequired[list[Finite] | None]
    clips: NotRequired[Count]


class _About(TypedDict, total=False):
    better: str
    meaning: str
    percent: bool


class _Result(TypedDict):
    summary: dict[str, dict[str, _Mean]]
    figures: NotRequired[dict[str, _About]]
    not_run: NotRequired[dict[str, str]]
    command: NotRequired[str | None]


@dataclass
class Figure:
    """One figure of a judge."""

    name: str
    about: dict
    means: dict[str, dict] = field(default_factory=dict)
    """By view."""

    @property
    def tip(self) -> str:
        words = [self.about.get("meaning"), self.about.get("better")]
        better = {
            "lower": "lower is better",
            "higher": "higher is better",
            "as recorded": "best as recordings have it",
        }
        return "; ".join(better.get(word, word) for word in words if word)

    def text(self, view: str) -> str:
        """Mean; a dash where it is not known."""
        return self._cell(view)[0]

    def within(self, view: str) -> str:
        """Its interval; nothing where it is not known."""
        return self._cell(view)[1]

    def _cell(self, view: str) -> tuple[str, str]:
        found = {"mean": None, "interval": None} | self.means.get(view, {})
        mean, _, within = cell(found, bool(self.about.get("percent"))).partition(" (")
        return "–" if mean == "-" else mean, within.rstrip(")")


@dataclass
class Judged:
    """All figures of an experiment."""

    figures: dict[str, Figure] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    """By judge, why it has no figure."""
    commands: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folders: Iterable[Path]) -> Judged:
        """Of several files, the figures of the newest.

        :raises UserError: a damaged file.
        """
        places = [place for folder in folders for place in (folder, folder / "samples")]
        paths = [path for place in places for path in place.glob("judged*.json")]
        judged = cls()
        for path in sorted(paths, key=lambda p: p.stat().st_mtime):
            found = read_json(path, REMEDY, type=_Result)
            abouts = found.get("figures", {})
            names = dict.fromkeys(n for of_view in found["summary"].values() for n in of_view)
            for name in names:
                means = {view: of[name] for view, of in found["summary"].items() if name in of}
                judged.figures[name] = Figure(name, abouts.get(name, {}), means)
            judged.not_run |= found.get("not_run", {})
            judged.commands += [found["command"]] if found.get("command") else []
        heard = {name.split(".")[0] for name in judged.figures}
        judged.not_run = {k: v for k, v in judged.not_run.items() if k not in heard}
        return judged

    @property
    def views(self) -> dict[str, str]:
        """What was judged, with words for it."""
        known = dict.fromkeys(v for figure in self.figures.values() for v in figure.means)
        ordered = [v for v in VIEWS if v in known] + [v for v in known if v not in VIEWS]
        return {view: VIEWS.get(view, view) for view in ordered}
