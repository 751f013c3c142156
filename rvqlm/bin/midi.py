#!/usr/bin/env python3
"""``rvqlm midi``: the notes of the cuts as compound tokens, for models that play them.

    rvqlm midi --manifest-dir data/tokens --midi-dir corpus/midi
    rvqlm midi --manifest-dir data/tokens --field custom.midi_path

Writes ``midi_SPLIT.bin`` and ``midi-times_SPLIT.bin`` beside each index, and ``midi.json``. Where a
cut is a part of a recording, it gets that part of the recording's notes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import parse, run_main
from rvqlm.frontends.midi_prepare import MidiConfig, MidiReport, prepare_midi
from rvqlm.locks import locked


def _run(argv: Sequence[str] | None) -> int:
    description = "Make tokens of the notes of a token directory, for MIDI to audio."
    config = parse(MidiConfig, "rvqlm midi", description, argv)
    with locked(config.manifest_dir, "rvqlm midi"):
        info, reports = prepare_midi(config)
    fields = ", ".join(f"{n} {s}" for n, s in zip(info.settings["fields"], info.sizes))
    print(f"{info.rate:.2f} frames a note; {fields}  {config.manifest_dir / 'midi.json'}")
    for split, report in reports.items():
        print(_line(split, report, config.max_notes))
    return 0


def _line(split: str, report: MidiReport, max_notes: int) -> str:
    line = f"  {split:<6} {report.cuts:>9,} cuts  {report.notes:>11,} notes"
    for count, what in (
        (report.without_file, "without a MIDI file"),
        (report.silent, "without a note in their part of it"),
        (report.limited, f"with more than {max_notes:,} notes, the others not used"),
        (len(report.bad), f"passed over, the first: {report.bad[0] if report.bad else ''}"),
    ):
        line += f"; {count:,} {what}" if count else ""
    for what, count in report.remarks.items():
        line += f"; {what}: {count:,}, the first in {report.first[what]}"
    return line


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "midi")


if __name__ == "__main__":
    sys.exit(main())
