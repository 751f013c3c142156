"""A few minutes in the layout of MAESTRO v3.0.0, played by a synthesiser.

python egs/maestro/local/stand_in.py --out-dir data/maestro-v3.0.0
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from stand_in_piano import play
from stand_ins import make_once, write_table

from rvqlm.cli import parse, run_main

README = "Not MAESTRO, but a stand-in for it in its layout, played by a synthesiser.\n"
COLUMNS = (
    "canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename",
    "duration",
)  # fmt: skip
YEARS = (2004, 2008, 2018)
SPLITS = ("train",) * 5 + ("validation", "test")


@dataclass
class Flags:
    out_dir: Path
    """What takes the place of maestro-v3.0.0; nothing is done where it is."""
    performances: int = 7
    """One or two of a piece; of seven five are for training."""
    seconds: float = 22.0
    """Of each."""
    seed: int = 0
    """Another seed, other pieces."""


def make(folder: Path, performances: int, seconds: float, seed: int) -> float:
    """Fill a folder; returns seconds of music."""
    rows, total = [], 0.0
    for n in range(performances):
        split, year = SPLITS[n % len(SPLITS)], YEARS[n % len(YEARS)]
        piece = n - (n % len(SPLITS) == 1)  # the second is the first again, by another pianist
        name = f"{year}/MIDI-Unprocessed_{n:02d}_R1_{year}_MID--AUDIO_{n:02d}_R1_{year}_wav--1"
        files = folder / f"{name}.midi", folder / f"{name}.wav"
        duration = play(*files, 1000 * seed + piece, n, seconds, 44100 if n % 2 else 48000)
        total += duration
        title = f"Piece No. {piece} in {'CDEFGAB'[piece % 7]} Major"
        rows.append(("Stand In", title, split, year, f"{name}.midi", f"{name}.wav", duration))
    write_table(folder / "maestro-v3.0.0.csv", COLUMNS, rows)
    columns = {c: {str(n): row[i] for n, row in enumerate(rows)} for i, c in enumerate(COLUMNS)}
    (folder / "maestro-v3.0.0.json").write_text(json.dumps(columns))
    (folder / "README").write_text(README)
    (folder / "LICENSE").write_text(README)
    return total


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "stand_in.py", "Make a stand-in for MAESTRO v3.0.0.", argv)
    shape = flags.performances, flags.seconds, flags.seed
    return make_once(flags.out_dir, lambda folder: make(folder, *shape))


if __name__ == "__main__":
    sys.exit(run_main(main))
