"""A few minutes in the layout of LJSpeech-1.1, read by espeak-ng.

python egs/ljspeech/local/stand_in.py --out-dir data/LJSpeech-1.1
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from stand_in_speech import Reader
from stand_ins import make_once

from rvqlm.cli import parse, run_main

SAMPLING_RATE = 22050
README = "Not the LJ Speech Dataset, but a stand-in for it in its layout, read by espeak-ng.\n"


@dataclass
class Flags:
    out_dir: Path
    """What takes the place of LJSpeech-1.1; nothing is done where it is."""
    chapters: int = 5
    """LJ001, LJ002, ..."""
    clips: int = 8
    """Of each chapter; one is 3 to 6 s long."""
    seed: int = 0
    """Another seed, other sentences."""


def make(folder: Path, chapters: int, clips: int, seed: int) -> float:
    """Fill a folder; returns seconds of speech."""
    (folder / "wavs").mkdir()
    reader, lines, seconds = Reader(0, seed), [], 0.0
    for chapter in range(1, chapters + 1):
        for clip in range(1, clips + 1):
            name = f"LJ{chapter:03d}-{clip:04d}"
            written, said = reader.next()
            seconds += reader.say(said, folder / "wavs" / f"{name}.wav", SAMPLING_RATE)
            lines.append(f"{name}|{written}|{said}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    (folder / "README").write_text(README)
    return seconds


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "stand_in.py", "Make a stand-in for LJSpeech-1.1.", argv)
    shape = flags.chapters, flags.clips, flags.seed
    return make_once(flags.out_dir, lambda folder: make(folder, *shape))


if __name__ == "__main__":
    sys.exit(run_main(main))
