#!/usr/bin/env python3
"""``rvqlm midi``: the notes of the cuts as compound tokens, for models that play them.

    rvqlm midi --manifest-dir data/tokens --midi-dir corpus/midi
    rvqlm midi --manifest-dir data/tokens --field custom.midi_path

Writes ``midi_SPLIT.bin`` beside each index and ``midi.json``. Where a cut is a part of a recording,
it gets that part of the recording's notes. Needs symusic: pip install symusic.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import bar, parse, run_main
from rvqlm.data.index import find_splits, read_sidecar
from rvqlm.frontends.midi import MidiSettings
from rvqlm.frontends.midi_prepare import MidiReport, prepare_midi


@dataclass
class Args:
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


def _run(argv: Sequence[str] | None) -> int:
    description = "Make tokens of the notes of a token directory, for MIDI to audio."
    args = parse(Args, "rvqlm midi", description, argv)
    read_sidecar(args.manifest_dir)
    info, reports = prepare_midi(
        args.manifest_dir,
        find_splits(args.manifest_dir, args.splits),
        args.midi_dir,
        args.field,
        MidiSettings(
            position_step=args.position_step, positions=args.positions, max_notes=args.max_notes
        ),
        args.skip_bad,
        bar,
    )
    fields = ", ".join(f"{n} {s}" for n, s in zip(info.settings["fields"], info.sizes))
    print(f"{info.rate:.2f} frames a note; {fields}  {args.manifest_dir / 'midi.json'}")
    for split, report in reports.items():
        print(_line(split, report, args.max_notes))
    return 0


def _line(split: str, report: MidiReport, max_notes: int) -> str:
    line = f"  {split:<6} {report.cuts:>9,} cuts  {report.notes:>11,} notes"
    for count, what in (
        (report.without_file, "without a MIDI file"),
        (report.silent, "without a note in their part of it"),
        (report.limited, f"cut off after {max_notes:,} notes"),
        (len(report.bad), f"passed over, the first: {report.bad[0] if report.bad else ''}"),
    ):
        line += f"; {count:,} {what}" if count else ""
    return line


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "midi")


if __name__ == "__main__":
    sys.exit(main())
