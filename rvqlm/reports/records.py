"""Records of other commands that pages and tables show beside the figures of an experiment: what a
model was given, what was left out of its data, whether it says its words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, TypedDict

from msgspec import Meta

from rvqlm.cli import counted
from rvqlm.files import Count, Finite, Positive, read_json, read_jsonl
from rvqlm.reports.experiment import REMEDY

SHOWN = 3
"""Examples of what was left out."""


def conditions_of(evaluation: dict, flags: dict) -> list[str]:
    """What a model's figures were conditioned on; evaluations of older versions do not say it, and
    a model has the conditions of its training."""
    found = evaluation.get("conditions")
    return list(found if found is not None else flags.get("conditions") or [])


def given_words(conditions: Iterable[str]) -> str:
    """
    >>> given_words(["text", "prompt"]), given_words([])
    ('text and prompt', 'nothing')
    """
    return " and ".join(conditions) or "nothing"


def outdated(evaluation: dict, family: str | None) -> bool:
    """Whether an evaluation's figures of single levels depend on how often each was masked, as
    those of masked models did before evaluations had their uncertainty."""
    return family == "masked" and "uncertainty" not in evaluation


# ------------------------------------------------------------------------- left out of the data


@dataclass
class LeftOut:
    """A list of items that a command skipped, or kept with a warning."""

    path: Path
    number: int
    examples: list[str]
    """The first ones with their reasons."""

    @property
    def skipped(self) -> bool:
        return self.path.stem.endswith("skipped")

    def words(self) -> str:
        what = "left out" if self.skipped else "kept with a warning"
        more = "; ..." if self.number > len(self.examples) else ""
        return (
            f"{counted(self.number, 'item')} {what} ({self.path}): "
            + "; ".join(self.examples)
            + more
        )


def left_out(manifest_dir: Path, sidecar: dict) -> list[LeftOut]:
    """The lists of skipped and of doubtful items beside the tokens and beside the manifest that
    they were made from, where rvqlm audio writes them; lists of nothing are left out.

    :param sidecar: tokens.json.
    """
    source = (sidecar.get("input") or {}).get("path")
    folders = [manifest_dir] + ([Path(source).parent] if source else [])
    found, seen = [], set()
    for folder in folders:
        if not folder.is_dir() or (place := folder.resolve()) in seen:
            continue
        seen.add(place)
        for ending in ("skipped", "warned"):
            for path in sorted(folder.glob(f"*{ending}.jsonl")):
                entries = read_jsonl(path, str(path), REMEDY)
                examples = [_reason(entry) for entry in islice(entries, SHOWN)]
                if examples:
                    found.append(LeftOut(path, len(examples) + sum(1 for _ in entries), examples))
    return found


def _reason(entry: dict) -> str:
    name = entry.get("path") or entry.get("id") or "?"
    return f"{name}: {entry.get('reason') or entry.get('warning') or 'no reason given'}"


# ---------------------------------------------------------------------------------- error rates


class _Row(TypedDict):
    name: str
    recognized: str
    symbols: Count
    errors: Count


class _Optional(TypedDict, total=False):
    interval: Annotated[list[Finite], Meta(min_length=2, max_length=2)] | None
    identified: Annotated[list[Count], Meta(min_length=2, max_length=2)] | None
    chance: Finite | None
    command: str | None
    recognizer: str
    rows: list[_Row]


class _Recognition(_Optional):
    error_rate: Finite
    items: Positive


@dataclass
class Recognition:
    """A result of `rvqlm recognize`."""

    label: str
    error_rate: float
    interval: list[float] | None
    items: int
    identified: list[int] | None
    chance: float | None
    command: str | None
    rows: list[dict]
    """An item each: name, reference, recognized, symbols, errors."""

    @classmethod
    def read(cls, path: Path, label: str) -> Recognition | None:
        """None where there is none.

        :raises UserError: a damaged file.
        """
        if not path.exists():
            return None
        found = read_json(path, REMEDY, type=_Recognition)
        names = ("error_rate", "interval", "items", "identified", "chance", "command")
        return cls(label, *(found.get(name) for name in names), found.get("rows", []))


def of_samples(exp_dir: Path) -> Recognition | None:
    """Of the samples of an experiment, as a whole folder."""
    return Recognition.read(exp_dir / "samples" / "recognition.json", "samples of the model")


def of_recordings(folder: Path, split: str) -> list[Recognition]:
    """Of real recordings, by the recogniser in a folder."""
    labels = {"": "real recordings, stored codes", "_audio": "the same, decoded and encoded again"}
    found = (
        Recognition.read(folder / f"recognition_{split}{suffix}.json", f"{label} ({split})")
        for suffix, label in labels.items()
    )
    return [one for one in found if one is not None]


def recognizer_of(exp_dir: Path) -> Path | None:
    """Folder of the recogniser that transcribed an experiment's samples."""
    path = exp_dir / "samples" / "recognition.json"
    found = read_json(path, REMEDY, type=_Recognition) if path.exists() else {}
    named = found.get("recognizer")
    if not named:
        return None
    # written by a command that may have run elsewhere: recipes keep it in the experiment
    places = (Path(named).parent, exp_dir / Path(named).parent.name)
    return next((place for place in places if place.is_dir()), None)
