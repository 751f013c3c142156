"""Whether a model is fit to be released, and with which settings: results of `rvqlm check` and
`rvqlm grid`, as pages and tables show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from rvqlm.cli import counted
from rvqlm.files import Count, Finite, read_json
from rvqlm.inference.files import read_sample
from rvqlm.judging.grid_results import JUDGES, describe
from rvqlm.metrics.schemas import Interval
from rvqlm.reports.clips import Clip, sample_clip
from rvqlm.reports.experiment import REMEDY
from rvqlm.reports.formatting import number


class _Check(TypedDict):
    name: str
    verdict: Literal["pass", "fail", "not run"]
    found: str
    wanted: str
    sample: str


class _CheckFile(TypedDict):
    checks: list[_Check]
    step: Count
    command: NotRequired[str | None]


@dataclass
class Checks:
    """Result of `rvqlm check`."""

    folder: str
    rows: list[dict]
    step: int
    command: str | None
    clips: dict[str, Clip] = field(default_factory=dict)
    """Samples to hear, by the name that rows have, after `listen`."""

    @classmethod
    def read(cls, places: Iterable[Path]) -> Checks | None:
        """The first ``check/check.json`` in any of these folders; None where there is none.

        :raises UserError: a damaged file.
        """
        path = next((p for place in places if (p := place / "check" / "check.json").exists()), None)
        if path is None:
            return None
        found = read_json(path, REMEDY, type=_CheckFile)
        return cls(str(path.parent), found["checks"], found["step"], found.get("command"))

    def listen(self, max_seconds: float) -> None:
        """Read the samples that are still there, each cut to a length.

        :raises UserError: damaged samples.
        """
        for name in dict.fromkeys(row["sample"] for row in self.rows if row["sample"]):
            wav = Path(self.folder, Path(name).name)
            if wav.exists() and (about := read_sample(wav)) is not None:
                self.clips[name] = sample_clip(wav, about, max_seconds)

    def count(self, verdict: str) -> int:
        return sum(row["verdict"] == verdict for row in self.rows)

    @property
    def failed(self) -> list[str]:
        return [row["name"] for row in self.rows if row["verdict"] == "fail"]

    @property
    def words(self) -> str:
        """How it ended.

        >>> checks = [{"verdict": verdict} for verdict in ("pass", "fail", "not run")]
        >>> Checks("", checks, 0, None).words
        '1 of 2 checks failed, 1 not run'
        """
        left = self.count("not run")
        words = f"{self.count('fail')} of {counted(len(self.rows) - left, 'check')} failed"
        return words + (f", {left} not run" if left else "")


# ---------------------------------------------------------------------------------- settings


class _Figure(TypedDict):
    value: Finite
    interval: Interval | bool | None


_Figures = TypedDict("_Figures", dict.fromkeys(JUDGES, _Figure), total=False)


class _Setting(_Figures):
    rank: Count
    checkpoint: str
    step: Count
    recordings: list[str]
    behind_the_best: Interval | None


class _GridAbout(TypedDict):
    split: str


class _GridFile(TypedDict):
    about: _GridAbout
    judge: Literal["errors", "kl", "nats", "repetition"]
    certain: bool
    settings: list[_Setting]
    command: NotRequired[str | None]


WORDS = {
    "errors": ("symbols wrong", "Share of symbols that the recogniser hears wrong."),
    "kl": (
        "divergence of codes",
        "How far the codes that are used are from those of the split, nats over all levels.",
    ),
    "nats": (
        "nats of recordings and samples",
        "What the model needs for the recordings, and how far its own samples are from that.",
    ),
    "repetition": (
        "repetition, off by",
        "How far the repeating share of samples is from that of the recordings.",
    ),
}
"""Of judges: their name, what they say."""


@dataclass
class Grid:
    """Result of `rvqlm grid`, the best setting first."""

    rows: list[dict]
    judge: str
    certain: bool
    split: str
    command: str | None

    @classmethod
    def read(cls, places: Iterable[Path]) -> Grid | None:
        """The first ``grid/grid.json`` in any of these folders; None where there is none.

        :raises UserError: a damaged file.
        """
        path = next((p for place in places if (p := place / "grid" / "grid.json").exists()), None)
        if path is None:
            return None
        found = read_json(path, REMEDY, convert=_ranked, type=_GridFile)
        about = found["about"]
        return cls(
            found["settings"], found["judge"], found["certain"], about["split"],
            found.get("command"),
        )  # fmt: skip

    @property
    def judges(self) -> dict[str, tuple[str, str]]:
        """Words of those with figures, that which ranked first."""
        known = [j for j in JUDGES if any(j in row for row in self.rows)]
        return {j: WORDS[j] for j in sorted(known, key=lambda j: j != self.judge)}

    @property
    def recordings(self) -> int:
        return len(self.rows[0]["recordings"])

    @property
    def not_apart(self) -> int:
        """Settings that may be as good as the best."""
        behind = (row["behind_the_best"] for row in self.rows[1:])
        return sum(b is None or b[0] <= 0 for b in behind)

    def setting(self, row: dict) -> str:
        return describe(row)

    @property
    def best(self) -> str:
        """The best setting with its figure."""
        row = self.rows[0]
        value, within = self.figure(row, self.judge)
        words = f"{describe(row)}: {WORDS[self.judge][0]} {value}"
        return words + (f" ({within})" if within else "")

    def figure(self, row: dict, judge: str) -> tuple[str, str]:
        """A value, and its interval; nothing where it is not known."""
        found = row.get(judge)
        if found is None:
            return "–", ""
        return self._written(found["value"], judge), self._ends(found["interval"], judge)

    def behind(self, row: dict) -> str:
        """How far from the best setting, as an interval."""
        return self._ends(row["behind_the_best"], self.judge, "+")

    def _ends(self, ends: list[float] | bool | None, judge: str, sign: str = "") -> str:
        """:param sign: before what is above 0."""
        if not ends:
            return ""
        low, high = ((sign if end > 0 else "") + self._written(end, judge) for end in ends)
        return f"{low.removesuffix(' %')} to {high}"

    def _written(self, value: float, judge: str) -> str:
        return f"{100 * value:.1f} %" if judge in ("errors", "repetition") else number(value)


def _ranked(found: dict) -> dict:
    """:raises ValueError: no setting, or one without the figure that it was ranked by."""
    if not found["settings"] or any(found["judge"] not in row for row in found["settings"]):
        raise ValueError(f"no {found['judge']} of every setting")
    return found
