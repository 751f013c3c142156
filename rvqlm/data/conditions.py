"""`ConditionSet`: what a model is conditioned on, for the cuts of a split of a token directory.

======== ==================================================== ==================================
kind     what lies beside ``index_SPLIT.bin``                 written by
======== ==================================================== ==================================
text     ``text.json``, ``text_SPLIT.bin``                    ``rvqlm text``
         ``text-times_SPLIT.bin`` (`rvqlm.data.text_times`)   ``rvqlm align``, where it was run
midi     ``midi.json``, ``midi_SPLIT.bin``,                   ``rvqlm midi`` (`rvqlm.data.notes`)
         ``midi-times_SPLIT.bin``
source   ``source.json``, ``source_SPLIT.bin``                ``rvqlm pair`` (`rvqlm.data.pairs`)
prompt   ``speakers_SPLIT.bin``                               first use (`rvqlm.data.speakers`)
======== ==================================================== ==================================

Text belongs to whole recordings. Notes and sources are read for the same frames as the target, so
they go with windows and crops: notes that sound there, in time from there on. A prompt is a random
crop of another cut of the same speaker, never of the item's own audio; it is drawn from (seed,
epoch, row) alone, so neither the composition of batches nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rvqlm.batch import Padded
from rvqlm.cli import kebab
from rvqlm.condition_info import KINDS, MIDI_FIELDS, ConditionInfo
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.notes import NoteTimes, check_grid
from rvqlm.data.pairs import Pairs
from rvqlm.data.plan import Items, PlanConfig
from rvqlm.data.ragged import Ragged
from rvqlm.data.speakers import Speakers, uniform
from rvqlm.data.store import frames_to_seconds
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json

_CUT, _START = 0, 1  # streams of random numbers of a prompt


def load_info(directory: Path, kind: str, remedy: str) -> ConditionInfo:
    """``KIND.json`` of a token directory; `UserError` ending in `remedy` if it cannot be used."""
    path = directory / f"{kind}.json"
    info = read_json(path, remedy, f"no {kind}", convert=ConditionInfo.from_dict)
    if info.kind != kind:
        raise UserError(f"{path} describes {info.kind}, not {kind}; {remedy}")
    return info


def save_info(directory: Path, info: ConditionInfo) -> None:
    """Write ``KIND.json``; after the columns, so that an interruption leaves no mixture."""
    write_json(directory / f"{info.kind}.json", info.to_dict(), checksum=True)


def discard(directory: Path, kind: str) -> None:
    """Remove ``KIND.json`` and all columns of the kind, before others are made in another way."""
    (directory / f"{kind}.json").unlink(missing_ok=True)
    for column in [*directory.glob(f"{kind}_*.bin"), *directory.glob(f"{kind}-times_*.bin")]:
        column.unlink()


class _Tokens:
    """Text: a ragged column."""

    def __init__(self, dataset: TokenDataset, kind: str):
        self.dataset, self.kind = dataset, kind
        directory = dataset.directory
        remedy = f"run rvqlm {kind} --manifest-dir {directory}"
        self.info, self.remedy = load_info(directory, kind, remedy), remedy
        path = column_path(directory, kind, dataset.split)
        self.column = column = Ragged.open(path, dataset.fingerprint, remedy)
        if len(column) != len(dataset) or column.num_fields != self.info.num_fields:
            raise UserError(
                f"{path} has {len(column)} rows of {column.num_fields} fields, the index "
                f"{len(dataset)}, {directory / kind}.json {self.info.num_fields}; {remedy}"
            )
        if any(high >= size for high, size in zip(column.max_ids, self.info.sizes)):
            raise UserError(
                f"{path} has ids up to {column.max_ids}, {directory / kind}.json sizes "
                f"{self.info.sizes}: made with another table; {remedy}"
            )

    def missing(self) -> int:
        return int((self.column.lengths == 0).sum())

    def read(self, items: Items, epoch: int) -> list[np.ndarray | None]:
        whole = (items.starts == 0) & (items.lengths == self.dataset.frames[items.rows])
        if self.undivided and not whole.all():
            name = self.dataset.id_of(int(items.rows[~whole][0]))
            raise UserError(f"a part of cut {name!r} was asked for, and {self.undivided}")
        columns = (column.tolist() for column in (*items, whole))
        return [self._read(*item) for item in zip(*columns)]

    def _read(self, row: int, start: int, length: int, whole: bool) -> np.ndarray:
        return self.column.read(row)

    @property
    def undivided(self) -> str:
        """Why no part of a cut can be read, with the remedy; empty where it can."""
        return (
            f"{self.kind} belongs to the whole: cut the audio before rvqlm tokenize, use fewer "
            f"ranks where there are more than cuts, or train without {self.kind}"
        )


class _Text(_Tokens):
    """Symbols, with their times where these are wanted."""

    def __init__(self, dataset: TokenDataset, aligned: bool):
        super().__init__(dataset, "text")
        self.aligned, self.info = None, replace(self.info, aligned=aligned)
        if aligned:
            self.aligned = TextTimes.open(dataset, self.column)
            self.frame_rate = float(dataset.info.frame_rate)

    def without_times(self) -> int:
        """Texts of which the place of each symbol is not known, though that of others is."""
        if self.aligned is None:
            return 0
        return int(((self.column.lengths > 0) & (self.aligned.column.lengths == 0)).sum())

    def times(self, items: Items) -> list[np.ndarray | None] | None:
        """Of each item (S, 2), the frames at which its symbols begin and end, None where that is
        not known; None where no times are wanted."""
        if self.aligned is None:
            return None
        found = (self.aligned.read(row) for row in items.rows.tolist())
        return [None if t is None else t * self.frame_rate for t in found]


class _Notes(_Tokens):
    """Notes, with their times for parts of cuts."""

    def __init__(self, dataset: TokenDataset):
        super().__init__(dataset, "midi")
        settings = self.info.settings
        self.max_notes = settings.get("max_notes") or None
        self.times = None
        if "position_step" in settings:
            check_grid(settings, dataset.directory / "midi.json", self.remedy)
            step = settings["position_step"] * float(dataset.info.frame_rate)
            self.info = replace(self.info, clock=(MIDI_FIELDS.index("position"), step))
            self.times = NoteTimes.open(dataset, self.column, settings, self.remedy)

    def _read(self, row: int, start: int, length: int, whole: bool) -> np.ndarray:
        tokens = self.column.read(row)
        if not whole:
            # whole samples, so that one window begins where the other ends
            begin, end = (frames_to_seconds(f, self.dataset.info) for f in (start, start + length))
            tokens = self.times.part(row, tokens, begin, end)
        return tokens[: self.max_notes]

    @property
    def undivided(self) -> str:
        if self.times is not None:
            return ""
        return f"its notes were made by a version that kept no times for parts: {self.remedy} again"


class _Prompt:
    """Codes of another cut of the same speaker."""

    def __init__(self, dataset: TokenDataset, frames: int, seed: int):
        if frames < 1:
            raise ValueError(f"prompts of {frames} frames")
        self.dataset, self.frames, self.seed = dataset, frames, seed
        self.info = ConditionInfo.of_codes("prompt", dataset.info)
        self.speakers = Speakers.open(dataset)
        if self.missing() == len(dataset):
            named = self.speakers.table[:, 0].any()
            why = "every speaker has only one cut" if named else "no cut has a speaker"
            raise UserError(
                f"no prompts in split {dataset.split} of {dataset.directory}: {why}; name speakers "
                "with --speaker-from of rvqlm audio manifest, and cut long recordings into several"
            )

    def missing(self) -> int:
        return int((self.speakers.num_others(slice(None)) == 0).sum())

    def read(self, items: Items, epoch: int) -> list[np.ndarray | None]:
        rows = items.rows
        other = self.speakers.draw(rows, uniform(self.seed, epoch, rows, _CUT))
        frames = self.dataset.frames[other].astype(np.int64)
        size = np.minimum(frames, self.frames)
        begin = (uniform(self.seed, epoch, rows, _START) * (frames - size + 1)).astype(np.int64)
        drawn = zip(other.tolist(), begin.tolist(), size.tolist())
        return [None if item[0] < 0 else self.dataset.view(*item) for item in drawn]


class ConditionSet:
    """The conditions of one split.

    >>> ds = TokenDataset.open("data/tokens", "train")          # doctest: +SKIP
    >>> conditions = ConditionSet.open(ds, ["text", "prompt"])  # doctest: +SKIP
    >>> TokenLoader(ds, plan, seed=0, conditions=conditions)    # doctest: +SKIP

    Attributes
    ----------
    infos: what a model has to know about each, by kind, in the order asked for.
    """

    def __init__(self, readers: dict[str, _Tokens | Pairs | _Prompt]):
        self._readers = readers
        self.infos: dict[str, ConditionInfo] = {kind: r.info for kind, r in readers.items()}

    @classmethod
    def open(
        cls,
        dataset: TokenDataset,
        kinds: Sequence[str],
        *,
        prompt_frames: int = 150,
        seed: int = 0,
        aligned: bool = False,
    ) -> ConditionSet:
        """Map the files of `kinds`; sources and prompts have as many levels as `dataset` serves.

        :param prompt_frames: a prompt has so many frames, fewer where the cut it is from has.
        :param seed: of prompts.
        :param aligned: read where each symbol of a text is said, too.
        :raises UserError: for an unknown kind, and for files that are missing, damaged or of other
            data, with the command that makes them.
        """
        if (parts := getattr(dataset, "datasets", None)) is not None:
            options = {"prompt_frames": prompt_frames, "seed": seed, "aligned": aligned}
            return MixedConditions(dataset, [cls.open(d, kinds, **options) for d in parts])
        readers = {}
        for kind in kinds:
            if kind not in KINDS:
                raise UserError(f"condition {kind!r}: choose from {', '.join(KINDS)}")
            if kind == "text":
                readers[kind] = _Text(dataset, aligned)
            elif kind == "midi":
                readers[kind] = _Notes(dataset)
            elif kind == "source":
                readers[kind] = Pairs.open(dataset)
            else:
                readers[kind] = _Prompt(dataset, prompt_frames, seed)
        return cls(readers)

    def missing(self) -> dict[str, int]:
        """By kind, how many cuts have none."""
        return {kind: reader.missing() for kind, reader in self._readers.items()}

    def without_times(self) -> int:
        """How many cuts have a text whose symbols' places are not known."""
        return sum(r.without_times() for r in self._readers.values() if isinstance(r, _Text))

    @property
    def undivided(self) -> str:
        """Why no part of a cut can be read, with the remedy; empty where it can."""
        found = [r.undivided for r in self._readers.values() if isinstance(r, _Tokens)]
        return next(filter(None, found), "")

    def check_plan(self, config: PlanConfig) -> None:
        """Raise `UserError` for a plan that takes parts of what has to be whole."""
        names = ("window_frames", "window_schedule", "crop_frames", "crop_schedule")
        part = next((name for name in names if getattr(config, name)), None)
        if part and self.undivided:
            raise UserError(f"--{kebab(part)} takes parts of recordings, and {self.undivided}")

    def state(self) -> dict:
        """What has to be the same for a run to resume; plain values, by the names of flags."""
        state: dict = {"conditions": list(self.infos)}
        if (prompt := self._readers.get("prompt")) is not None:
            state |= {"prompt_frames": prompt.frames, "prompt_seed": prompt.seed}
        if self.times_mark:
            state["text_times"] = self.times_mark
        return state

    @cached_property
    def times_mark(self) -> str:
        """16 hex digits of where the texts lie; empty where models are not told."""
        text = self._readers.get("text")
        return text.aligned.column.mark() if text is not None and text.aligned else ""

    def read(self, items: Items, epoch: int = 0) -> dict[str, Padded]:
        """The conditions of the items of a batch, by kind: (B, S, F) int32, `PAD` past lengths, and
        where a text lies, if it is to be told.

        :param epoch: prompts are others in every epoch.
        """
        items = Items(*(np.asarray(column).astype(np.int64) for column in items))
        padded = {}
        for kind, found in self._read(items, epoch).items():
            steps = [None if v is None else torch.from_numpy(v.astype(np.int32)) for v in found]
            places = self._times(kind, items)
            if places is not None:
                places = [None if t is None else torch.from_numpy(t).float() for t in places]
            padded[kind] = Padded.of(steps, self.infos[kind].num_fields, places)
        return padded

    def _times(self, kind: str, items: Items) -> list[np.ndarray | None] | None:
        reader = self._readers[kind]
        return reader.times(items) if isinstance(reader, _Text) else None

    def _read(self, items: Items, epoch: int) -> dict[str, list[np.ndarray | None]]:
        return {kind: reader.read(items, epoch) for kind, reader in self._readers.items()}


def open_conditions(dataset, kinds, prompt_seconds: float, seed: int, aligned: bool):
    """The conditions of a split that a model is trained with, or None without `kinds`."""
    if not kinds:
        return None
    frames = max(1, round(prompt_seconds * float(dataset.info.frame_rate)))
    return ConditionSet.open(dataset, kinds, prompt_frames=frames, seed=seed, aligned=aligned)


def text_times_paths(*datasets) -> list[Path]:
    """Where `rvqlm align` writes when the symbols of the texts of these are said."""
    parts = [part for dataset in datasets for part in getattr(dataset, "datasets", [dataset])]
    return [TextTimes.path(part.directory, part.split) for part in parts]


class MixedConditions(ConditionSet):
    """The conditions of a `MixedDataset`: each item has those of its own data set."""

    def __init__(self, dataset, sets: list[ConditionSet]):
        self.dataset, self.sets, self.infos = dataset, sets, sets[0].infos
        for directory, other in zip((d.directory for d in dataset.datasets), sets):
            for kind, info in self.infos.items():
                other.infos[kind].require_same(info, str(directory), str(dataset.directory))

    def missing(self) -> dict[str, int]:
        return {kind: sum(s.missing()[kind] for s in self.sets) for kind in self.infos}

    def without_times(self) -> int:
        return sum(part.without_times() for part in self.sets)

    def state(self) -> dict:
        return self.sets[0].state() | ({"text_times": mark} if (mark := self.times_mark) else {})

    @cached_property
    def times_mark(self) -> str:
        return " ".join(part.times_mark for part in self.sets).strip()

    @property
    def undivided(self) -> str:
        return next(filter(None, (part.undivided for part in self.sets)), "")

    def _of_parts(self, items: Items) -> Iterator[tuple[ConditionSet, list[int], Items]]:
        """Of each data set its conditions, which items are of it, and these as it counts them."""
        parts = self.dataset.part_of(items.rows)
        for part in np.unique(parts):
            of = np.flatnonzero(parts == part)
            own = items.take(of)
            yield (
                self.sets[part],
                of.tolist(),
                own._replace(rows=own.rows - self.dataset.parts[part]),
            )

    def _read(self, items: Items, epoch: int) -> dict[str, list[np.ndarray | None]]:
        found: dict[str, list] = {kind: [None] * len(items.rows) for kind in self.infos}
        for part, of, own in self._of_parts(items):
            for kind, values in part._read(own, epoch).items():
                for n, value in zip(of, values):
                    found[kind][n] = value
        return found

    def _times(self, kind: str, items: Items) -> list[np.ndarray | None] | None:
        if not self.infos[kind].aligned:
            return None
        found: list[np.ndarray | None] = [None] * len(items.rows)
        for part, of, own in self._of_parts(items):
            for n, times in zip(of, part._times(kind, own)):
                found[n] = times
        return found
