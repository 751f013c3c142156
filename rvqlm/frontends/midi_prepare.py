"""Notes of the cuts of a token directory as columns of compound tokens beside their codes.

`prepare_midi` finds the MIDI file of every cut, takes the part that the cut covers and writes
``midi_SPLIT.bin`` (`rvqlm.data.ragged`) and ``midi.json``, the `ConditionInfo`. The latter is
written last, and goes away first when the bins change, so that an interruption leaves no mixture.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.condition_info import MIDI_FIELDS, ConditionInfo
from rvqlm.data.conditions import discard, load_info, save_info
from rvqlm.data.index import TokenDataset, find_splits, read_manifest
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import write_ragged
from rvqlm.data.splits import recording
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd, MidiSettings, Notes, read_notes
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
    """Keep only the first so many notes of a cut, for memory: the rest of its audio is then
    without. 0: keep all."""
    position_step: float = 0.02
    """Seconds to which the time of a note is known."""
    positions: int = 1024
    """Steps of time until the count begins again; times the step, it should reach the end of most
    cuts."""
    skip_bad: bool = False
    """Let cuts have no notes whose file is missing, damaged or empty, and count them, instead of
    stopping at the first."""
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
        self._starts = _starts(directory)

    def of(self, cut: dict) -> tuple[Path, float, float] | None:
        """Path, and first and last second of the part that the cut covers; None without a file.

        Copies of other speed, tempo or pitch have none unless one is named as they are: their notes
        would be wrong.
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
            raise UserError(f"cut {cut['id']!r}: {self.name} is {str(path)[:40]!r}, not a path")
        start = offset + self._starts.get(cut["id"], 0.0)
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


def _starts(directory: Path) -> dict[str, float]:
    """Seconds at which cuts begin in their recordings, by id, where that is not 0. Token cuts begin
    at 0; what they were made from is in ``audio_cuts.jsonl.gz``."""
    path = directory / "audio_cuts.jsonl.gz"
    cuts = read_manifest(path) if path.exists() else ()
    return {cut["id"]: cut["start"] for cut in cuts if cut.get("start")}


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
    try:
        for split, dataset in datasets.items():
            cuts = bar(dataset.cuts(), split, len(dataset))
            rows = _rows(cuts, dataset, files, front_end, config.skip_bad, reports[split])
            write_ragged(fresh[split], rows, len(MIDI_FIELDS), dataset.fingerprint)
        old = None
        with contextlib.suppress(UserError):  # none, or damaged: about to be made again
            old = load_info(directory, "midi", "")
        info = front_end.info(_rate(reports, old, files))
        if old is None or old.settings != info.settings:  # other bins must not stand beside these
            discard(directory, "midi")
        for split, path in fresh.items():
            os.replace(path, column_path(directory, "midi", split))
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)
    save_info(directory, info)
    return info, reports


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


def _rows(
    cuts: Iterable[dict],
    dataset: TokenDataset,
    files: MidiFiles,
    front_end: MidiFrontEnd,
    skip_bad: bool,
    report: MidiReport,
) -> Iterator[np.ndarray]:
    for row, cut in enumerate(cuts):
        tokens, found, whole = np.empty((0, len(MIDI_FIELDS)), np.int32), files.of(cut), None
        try:
            if found is None:
                report.without_file += 1
            else:
                whole = _read(os.fspath(found[0]))
        except UserError as e:
            if not skip_bad:
                raise UserError(
                    f"cut {cut['id']!r} of {dataset.split}: {e}; or pass over such files with "
                    "--skip-bad"
                ) from None
            report.bad.append(str(e))
        if whole is not None:
            notes = whole.between(*found[1:])
            tokens = front_end.tokens(notes)
            report.notes += len(tokens)
            report.silent += not len(tokens)
            report.limited += len(tokens) < len(notes.time)
            report.frames += int(dataset.frames[row]) if len(tokens) else 0
        yield tokens


@lru_cache(maxsize=8)
def _read(path: str) -> Notes:
    """Cuts of one recording follow one another: their file is read once."""
    return read_notes(path)
