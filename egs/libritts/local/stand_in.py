"""A few minutes in the layout of LibriTTS, read by espeak-ng's voices.

python egs/libritts/local/stand_in.py --out-dir data/LibriTTS
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from stand_in_speech import Reader
from stand_ins import make_once

from rvqlm.cli import parse, run_main

SAMPLING_RATE = 24000
README = "Not LibriTTS, but a stand-in for it in its layout, read by espeak-ng."


@dataclass
class Flags:
    out_dir: Path
    """What takes the place of LibriTTS; nothing is done where it is."""
    parts: tuple[str, ...] = ("train-clean-100", "dev-clean", "test-clean")
    """Folders of it."""
    speakers: int = 4
    """Of a part for training; the others have half as many."""
    clips: int = 6
    """Of each speaker, in two chapters; one is 3 to 6 s long."""
    seed: int = 0
    """Another seed, other sentences."""


def make(folder: Path, parts: tuple[str, ...], speakers: int, clips: int, seed: int) -> float:
    """Fill a folder; returns seconds of speech."""
    seconds, people, chapters = 0.0, [], []
    for part in parts:
        for _ in range(speakers if part.startswith("train") else max(1, speakers // 2)):
            number = len(people)
            reader = Reader(number, seed + number)
            person = 14 + 31 * number
            sex = reader.speaker.gender[0].upper()
            people.append((person, sex, part, "0.50", reader.speaker.id))
            for chapter in (1000 + 2 * number, 1001 + 2 * number):
                place = folder / part / str(person) / str(chapter)
                count = (clips + chapter % 2) // 2
                length = _chapter(place, f"{person}_{chapter}", reader, count)
                chapters.append((chapter, person, f"{length / 60:.2f}", part, 0, 10 + number, "I"))
                seconds += length
    tables = {
        "SPEAKERS.txt": (";ID|SEX|SUBSET|MINUTES|NAME", " | ", people),
        "CHAPTERS.txt": (";ID|READER|MINUTES|SUBSET|PROJ.|BOOK ID|CH. TITLE", " | ", chapters),
        "speakers.tsv": ("READER\tGENDER\tSUBSET\tNAME", "\t", [(*p[:3], p[4]) for p in people]),
        "LICENSE.txt": (README, "", ()),
        "README_libritts.txt": (README, "", ()),
    }
    for name, (title, separator, lines) in tables.items():
        table = [title, *(separator.join(map(str, line)) for line in lines)]
        (folder / name).write_text("\n".join(table) + "\n", encoding="utf-8")
    return seconds


def _chapter(place: Path, name: str, reader: Reader, clips: int) -> float:
    """A folder of a chapter: clips, each with two texts beside it, and two tables."""
    place.mkdir(parents=True)
    trans, book, seconds = [], [], 0.0
    for clip in range(clips):
        id = f"{name}_{clip // 2:06d}_{clip % 2:06d}"
        written, said = reader.next()
        length = reader.say(said, place / f"{id}.wav", SAMPLING_RATE)
        (place / f"{id}.original.txt").write_text(written, encoding="utf-8")
        (place / f"{id}.normalized.txt").write_text(said, encoding="utf-8")
        trans.append(f"{id}\t{written}\t{said}\n")
        book.append(f"{id}\t{written}\t{said}\ttrue\t{seconds:.2f}\t{seconds + length:.2f}\t25.0\n")
        seconds += length
    # sentences that were left out for their noise are in this table alone
    book.append(f"{name}_{clips:06d}_000000\tAh.\tAh.\tfalse\t0.00\t0.00\t9.5\n")
    (place / f"{name}.trans.tsv").write_text("".join(trans), encoding="utf-8")
    (place / f"{name}.book.tsv").write_text("".join(book), encoding="utf-8")
    return seconds


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "stand_in.py", "Make a stand-in for LibriTTS.", argv)
    shape = flags.parts, flags.speakers, flags.clips, flags.seed
    return make_once(flags.out_dir, lambda folder: make(folder, *shape))


if __name__ == "__main__":
    sys.exit(run_main(main))
