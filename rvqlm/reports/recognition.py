"""Whether a model says its words: results of `rvqlm recognize` that pages and tables show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from msgspec import Meta

from rvqlm.errors import UserError
from rvqlm.files import Count, Finite, Positive, read_json
from rvqlm.metrics.schemas import Interval
from rvqlm.reports.experiment import REMEDY
from rvqlm.reports.speech import Heard


class _Row(TypedDict):
    name: str
    reference: NotRequired[str]
    recognized: str
    symbols: Count
    errors: Count
    aligned: NotRequired[Annotated[list[str], Meta(min_length=2, max_length=2)]]


class _Rate(TypedDict):
    error_rate: Finite
    interval: Interval | None


class _Optional(TypedDict, total=False):
    interval: Interval | None
    sounds: _Rate | None
    identified: Annotated[list[Count], Meta(min_length=2, max_length=2)] | None
    chance: Finite | None
    command: str | None
    decoding: str
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
    sounds: dict | None
    """Error rate and interval without word boundaries and punctuation; None in older files."""
    command: str | None
    rows: list[dict]
    """An item each: name, reference, recognized, symbols, errors, aligned."""

    @classmethod
    def read(cls, path: Path, label: str) -> Recognition | None:
        """None where there is none.

        :raises UserError: a damaged file.
        """
        if not path.exists():
            return None
        found = read_json(path, REMEDY, type=_Recognition)
        if (decoding := found.get("decoding", "greedy")) != "greedy":
            label += f", decoded with a {decoding}"
        names = ("error_rate", "interval", "items", "identified", "chance", "sounds", "command")
        return cls(label, *(found.get(name) for name in names), found.get("rows", []))


def of_samples(exp_dir: Path) -> Recognition | None:
    """Of the samples of an experiment, as a whole folder."""
    return Recognition.read(exp_dir / "samples" / "recognition.json", "samples of the model")


def of_recordings(folder: Path, split: str) -> dict[str, Recognition]:
    """Of real recordings, by the recogniser in a folder: of their stored codes (``original``), and
    of what these sound like, encoded again (``codec``), as happens to samples."""
    labels = {
        "original": ("", "real recordings, stored codes"),
        "codec": ("_audio", "real recordings, decoded and encoded again"),
    }
    found = {
        kind: Recognition.read(folder / f"recognition_{split}{suffix}.json", f"{label} ({split})")
        for kind, (suffix, label) in labels.items()
    }
    return {kind: one for kind, one in found.items() if one is not None}


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


def recognizer_for(exp_dir: Path, given: Iterable[str]) -> Path | str | None:
    """What commands that listen to a model name: the recogniser of its experiment, a word to be
    replaced where there is none; None where the model is told nothing to say.

    :param given: its conditions, as `rvqlm.reports.evaluation.conditions_of` has them.
    """
    if not any(name.partition(" ")[0] == "text" for name in given):
        return None
    own = exp_dir / "recognizer"  # where recipes have it
    return recognizer_of(exp_dir) or (own if own.is_dir() else "RECOGNIZER")


@dataclass
class Recognitions:
    """What one recogniser wrote down."""

    samples: Recognition | None = None
    recordings: dict[str, Recognition] = field(default_factory=dict)
    """By kind of clip, see `of_recordings`."""

    @classmethod
    def read(cls, exp_dir: Path, split: str, own: bool) -> Recognitions:
        """Of an experiment's samples, and of recordings by the same recogniser.

        :param own: the experiment is a recogniser itself.
        """
        recognizer = exp_dir if own else recognizer_of(exp_dir)
        recordings = of_recordings(recognizer, split) if recognizer is not None else {}
        return cls(of_samples(exp_dir), recordings)

    def all(self) -> list[Recognition]:
        return [one for one in (self.samples, *self.recordings.values()) if one is not None]

    def __post_init__(self):
        of_kind = {"sample": self.samples, **self.recordings}
        self._rows = {
            (kind, Path(row["name"]).stem if kind == "sample" else row["name"]): row
            for kind, one in of_kind.items()
            for row in (one.rows if one else [])
        }

    def heard(self, kind: str, name: str) -> Heard | None:
        """What was heard of a clip; None where it was not transcribed.

        :param kind: ``sample``, or that of a recording's clip.
        :param name: stem of the sample's file, or id of the recording.
        :raises UserError: a damaged file.
        """
        row = self._rows.get((kind, name))
        try:
            return Heard.of(row) if row else None
        except ValueError:
            raise UserError(
                f"transcript of {row['name']}: its two lines are not of one length; {REMEDY}"
            ) from None
