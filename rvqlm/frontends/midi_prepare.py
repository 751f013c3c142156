"""Notes of the cuts of a token directory as columns of compound tokens beside their codes.

`prepare_midi` finds the MIDI file of every cut, takes the part that the cut covers and writes
``midi_SPLIT.bin`` and ``midi-times_SPLIT.bin`` (`rvqlm.data.ragged`, `rvqlm.data.notes`), and
``midi.json``, the `ConditionInfo`. The latter is written last, and goes away first when the bins
change, as times go before other notes come: an interruption leaves no mixture.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.condition_info import MIDI_FIELDS, ConditionInfo
from rvqlm.data.conditions import discard, load_info, save_info
from rvqlm.data.index import TokenDataset, find_splits, read_manifest, read_sidecar
from rvqlm.data.mapped import column_path
from rvqlm.data.notes import SECOND, TIMES, NoteTimes
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.splits import recording
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd, MidiSettings
from rvqlm.frontends.midi_file import MidiScore, Notes, read_midi
from rvqlm.frontends.transcripts import field_value

SUFFIXES = (".mid", ".midi")
TRAIN = "train"  # the split that the rate is of


@dataclass(frozen=True)
class MidiConfig:
    """Make tokens of the notes of a token directory, for MIDI to audio."""

    manifest_dir: Path
    """Token directory, split and indexed (rvqlm split, rvqlm index)."""
    midi_dir: Path | None = None
    """Folder of .mid and .midi files that are named as the ids of the cuts, or else of their
    recordings: the path below the folder without suffix. With --field: where relative paths in
    that field begin."""
    field: str | None = None
    """Where a cut names the MIDI file of its recording: custom.midi_path, for instance. Copies of
    other speed, tempo or pitch (rvqlm audio augment) get no notes."""
    max_notes: int = 0
    """Use only the first so many notes of a cut, or of a window of it in training, for memory: the
    rest of its audio is then without. 0: all."""
    position_step: float = 0.02
    """Seconds to which the time of a note is known."""
    positions: int = 1024
    """Steps of time until the count begins again; times the step, it should reach the end of most
    cuts."""
    skip_bad: bool = False
    """Let cuts have no notes whose file is missing, damaged or empty, or of which it is not known
    where they begin in their recordings, and count them, instead of stopping at the first."""
    splits: tuple[str, ...] = ()
    """Only these; none given: all that have a manifest. Those left out lose their notes if bins or
    --max-notes changed."""


@dataclass
class MidiReport:
    """What was made of one split."""

    cuts: int
    notes: int = 0
    frames: int = 0
    """of codes, of the cuts that have notes"""
    without_file: int = 0
    silent: int = 0
    """cuts whose file has no note in their part of it"""
    limited: int = 0
    """cuts that had more than ``max_notes``"""
    bad: list[str] = field(default_factory=list)
    """what is wrong with files that were passed over"""
    remarks: Counter = field(default_factory=Counter)
    """what is odd in the files, as in `MidiScore`"""
    first: dict[str, str] = field(default_factory=dict)
    """by remark, the first file that it is about"""

    def add(self, path: str, score: MidiScore) -> None:
        """Count what is odd in a file, once."""
        for what, count in score.remarks.items():
            self.remarks[what] += count
            self.first.setdefault(what, path)


class MidiFiles:
    """Which MIDI file belongs to a cut, and which part of it.

    :param folder: of MIDI files that are named as the ids of cuts, or else of their recordings;
        with `name`, where relative paths in that field begin.
    :param name: field of the cuts with the path of the file of their recording: ``custom.NAME`` of
        the cut, or of the first supervision that has it.
    """

    def __init__(self, directory: Path, folder: Path | None, name: str | None):
        if folder is None and name is None:
            raise UserError("give --midi-dir, a folder of MIDI files, or --field")
        if folder is not None and not folder.is_dir():
            raise UserError(f"--midi-dir {folder}: no such folder")
        self.folder, self.name = folder, name
        self._by_id = {} if name is not None else _named_files(folder)
        self._starts = _Starts(directory)

    def of(self, cut: dict) -> tuple[Path, float, float] | None:
        """Path, and first and last second of the part that the cut covers; None without a file.

        Copies of other speed, tempo or pitch have none unless one is named as they are: their notes
        would be wrong. Raises `UserError` for a field that is no path, and where it is not known
        where the cut begins.
        """
        own = self._by_id.get(cut["id"])
        offset = cut["start"] - cut["features"]["start"]  # of a window of a token cut
        if own is not None and recording(cut) != cut["id"]:  # made for this cut
            return self.folder / own, offset, offset + cut["duration"]
        if (cut.get("custom") or {}).get("augmented_from") is not None and own is None:
            return None
        path = self._by_id.get(recording(cut))
        if self.name:
            holders = (cut, *(cut.get("supervisions") or []))
            values = (field_value(holder, self.name) for holder in holders)
            path = next((value for value in values if value is not None), None)
        if path is None:
            return None
        if not isinstance(path, (str, Path)):
            raise UserError(f"{self.name} is {str(path)[:40]!r}, not a path")
        start = offset + self._starts.of(cut)
        return (self.folder or Path()) / path, start, start + cut["duration"]


def _named_files(folder: Path) -> dict[str, Path]:
    """MIDI files below a folder by their paths without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(
                    f"--midi-dir {folder}: {found[name].name} and {path.name} in "
                    f"{path.parent} have one name; leave one of them out"
                )
            found[name] = path.relative_to(folder)
    if not found:
        raise UserError(f"--midi-dir {folder}: no MIDI files ({' '.join(SUFFIXES)}) below it")
    return found


class _Starts:
    """Seconds at which stored tokens begin in their recordings.

    Token cuts begin at 0. ``recording_start`` of their custom fields says where that is; without
    it, of earlier versions, ``audio_cuts.jsonl.gz`` has what they were made from.
    """

    def __init__(self, directory: Path):
        self.path = directory / "audio_cuts.jsonl.gz"
        # codes that came without audio are of whole recordings where the names say so
        self._unlisted = not read_sidecar(directory).get("audio_manifest")
        self._of_cut: dict[str, float] = {}
        self._of_recording: dict[str, float | None] = {}  # None: its cuts begin at several places
        for cut in read_manifest(self.path) if self.path.exists() else ():
            start, name = cut.get("start") or 0.0, recording(cut)
            self._of_cut[cut["id"]] = start
            if self._of_recording.setdefault(name, start) != start:
                self._of_recording[name] = None

    def of(self, cut: dict) -> float:
        """Raises `UserError` where it is not known: the first seconds of the recording would be
        other notes."""
        custom, name = cut.get("custom") or {}, recording(cut)
        if "recording_start" in custom:
            known = custom["recording_start"]
        else:
            whole = 0.0 if self._unlisted and name == cut["id"] else None
            known = self._of_cut.get(cut["id"], self._of_recording.get(name, whole))
        if isinstance(known, (int, float)):
            return known
        raise UserError(
            f"where it begins in its recording {name!r} is not known, as {self.path} is missing or "
            "does not list it: bring it back, tokenize again, or name the MIDI file of this part "
            "as the cut"
        )


def prepare_midi(config: MidiConfig) -> tuple[ConditionInfo, dict[str, MidiReport]]:
    """Write the notes of the splits.

    Raises `UserError` for files that cannot be used and when no cut has notes.
    """
    directory = config.manifest_dir
    names = ("position_step", "positions", "max_notes")
    front_end = MidiFrontEnd(MidiSettings(**{name: getattr(config, name) for name in names}))
    splits = find_splits(directory, config.splits)
    datasets = {split: TokenDataset.open(directory, split) for split in splits}
    files = MidiFiles(directory, config.midi_dir, config.field)
    reports = {split: MidiReport(len(dataset)) for split, dataset in datasets.items()}
    fresh = {split: directory / f".midi_{split}.bin.new" for split in datasets}
    times = {split: array("i") for split in datasets}
    try:
        for split, dataset in datasets.items():
            cuts = bar(dataset.cuts(), split, len(dataset))
            maker = _Maker(dataset, files, front_end, config.skip_bad, reports[split], times[split])
            write_ragged(fresh[split], maker.rows(cuts), len(MIDI_FIELDS), dataset.fingerprint)
        old = None
        with contextlib.suppress(UserError):  # none, or damaged: about to be made again
            old = load_info(directory, "midi", "")
        info = front_end.info(_rate(reports, old, files))
        if old is None or old.settings != info.settings:  # other bins must not stand beside these
            discard(directory, "midi")
        for split, path in fresh.items():
            NoteTimes.path(directory, split).unlink(missing_ok=True)
            os.replace(path, column_path(directory, "midi", split))
            _write_times(datasets[split], times[split])
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)
    save_info(directory, info)
    return info, reports


def _write_times(dataset: TokenDataset, times: array) -> None:
    notes = Ragged.open(column_path(dataset.directory, "midi", dataset.split))
    of = np.asarray(times, np.int32).reshape(-1, TIMES)
    rows = (of[a:b] for a, b in pairwise(notes.starts.tolist()))
    path = NoteTimes.path(dataset.directory, dataset.split)
    write_ragged(path, rows, TIMES, notes.mark())


def _times(notes: Notes) -> np.ndarray:
    """(S, 4) int32 of `NoteTimes`."""
    columns = notes.time, -notes.time, notes.time + notes.duration, notes.silent()
    return np.rint(np.maximum(np.stack(columns, axis=1), 0) * SECOND).astype(np.int32)


def _rate(reports: dict[str, MidiReport], old: ConditionInfo | None, files: MidiFiles) -> float:
    """Frames a note in the training split; without it, that of the earlier `old`, or in all."""
    if not any(r.notes for r in reports.values()):
        total = {n: sum(getattr(r, n) for r in reports.values()) for n in ("cuts", "without_file")}
        where = f"in {files.name!r}" if files.name else f"below {files.folder} named as its id"
        raise UserError(
            f"none of {total['cuts']} cuts has notes: {total['without_file']} have no MIDI file "
            f"{where}, the others have none in their part of it; check --midi-dir and --field"
        )
    if TRAIN not in reports and old is not None:
        return old.rate
    train = reports.get(TRAIN)
    counted = [train] if train is not None and train.notes else list(reports.values())
    return sum(r.frames for r in counted) / sum(r.notes for r in counted)


class _Maker:
    """Notes of the cuts of a split, one after another, and in `times` when they begin."""

    def __init__(
        self,
        dataset: TokenDataset,
        files: MidiFiles,
        front_end: MidiFrontEnd,
        skip_bad: bool,
        report: MidiReport,
        times: array,
    ):
        self.dataset, self.files, self.skip_bad = dataset, files, skip_bad
        self.report, self.times = report, times
        self.limit = front_end.settings.max_notes
        # all are stored: windows of a cut have their own first ones
        self.front_end = MidiFrontEnd(replace(front_end.settings, max_notes=0))
        self._seen: set[str] = set()

    def rows(self, cuts: Iterable[dict]) -> Iterator[np.ndarray]:
        """(S, 6) of each cut; S is 0 without notes."""
        for frames, cut in zip(self.dataset.frames.tolist(), cuts):
            try:
                found = self.files.of(cut)
                score = None if found is None else self._read(os.fspath(found[0]))
            except UserError as e:
                found = score = None
                self._pass_over(cut, e)
            else:
                self.report.without_file += found is None
            tokens = np.empty((0, len(MIDI_FIELDS)), np.int32)
            if score is not None:
                notes = score.notes.between(*found[1:])
                tokens = self.front_end.tokens(notes)
                self.times.frombytes(_times(notes).tobytes())
                used = min(len(tokens), self.limit or len(tokens))
                self.report.notes += used
                self.report.silent += not used
                self.report.limited += used < len(tokens)
                self.report.frames += frames if used else 0
            yield tokens

    def _read(self, path: str) -> MidiScore:
        score = _read(path)
        if path not in self._seen:
            self._seen.add(path)
            self.report.add(path, score)
        return score

    def _pass_over(self, cut: dict, error: UserError) -> None:
        problem = f"cut {cut['id']!r} of {self.dataset.split}: {error}"
        if not self.skip_bad:
            raise UserError(f"{problem}; or pass over such cuts with --skip-bad") from None
        self.report.bad.append(problem)


@lru_cache(maxsize=8)
def _read(path: str) -> MidiScore:
    """Cuts of one recording follow one another: their file is read once."""
    return read_midi(path)
