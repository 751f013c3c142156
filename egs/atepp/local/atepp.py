"""ATEPP: `prepare_atepp`, in the form of lhotse's recipes.

    python egs/atepp/local/atepp.py --corpus-dir data/ATEPP-1.2 --audio-dir data/ATEPP-audio \
        --out-dir data/manifests

The corpus has MIDI files, transcribed from published recordings, and says where these are; the
recordings themselves are its user's to get. A recording belongs to the performance whose number
(00077 of Composer/Composition/00077.mid) its file is named as, in a folder of any depth.

There is no division into training and test: what `rvqlm split` must not divide is a composition,
with all movements and by all pianists.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from performances import Manifests, Performance, write_manifests

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError, reason_of

TABLE = re.compile(r"ATEPP-metadata-(1\.\d+).*\.csv")
ABOUT = ("composer", "composition", "track", "artist", "album", "quality")
AUDIO = {".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".webm", ".aiff", ".wma"}


@dataclass
class Flags:
    corpus_dir: Path
    """Folder with ATEPP-metadata-1.x.csv and the MIDI files in folders of composers."""
    audio_dir: Path
    """Folder of the recordings, named as the MIDI files: 00077.mp3."""
    out_dir: Path
    """Where the manifests go."""
    cut_seconds: float = 0.0
    """Average length of the cuts, equal parts of a performance; 0: whole performances."""
    leave_out: tuple[str, ...] = ("corrupted",)
    """Performances whose `quality` in the table says one of these, such as "low quality",
    "background noise" or "applause"."""


def download_atepp(target_dir: Path) -> Path:
    """Where the corpus must be: it is handed out after an agreement, so it can't be fetched here.

    :raises UserError: it is not there; how to get it.
    """
    found = [path.parent for path in target_dir.glob("**/ATEPP-metadata-1.*.csv")]
    if not found:
        raise UserError(
            f"{target_dir}: no ATEPP-metadata-1.x.csv below it; agree to the disclaimer of "
            "https://github.com/tangjjbetsy/ATEPP, unpack the corpus (212 MB) there, and get the "
            "recordings that it lists"
        )
    return min(found, key=lambda path: len(path.parts))


def prepare_atepp(
    corpus_dir: Path,
    audio_dir: Path,
    output_dir: Path,
    cut_seconds: float = 0.0,
    leave_out: tuple[str, ...] = ("corrupted",),
) -> Manifests:
    """Write manifests of the performances whose recordings are there; returns recordings and
    supervisions, of the one split "all".

    :param cut_seconds: see `performances.write_manifests`.
    :param leave_out: see `Flags`.
    :raises UserError: no such corpus, a damaged table, no recording, or two of one number.
    """
    without = Counter()
    found = list(_performances(corpus_dir, audio_dir, leave_out, without))
    for why, number in without.items():
        print(f"{number:,} performances {why}", file=sys.stderr)
    if not found:
        raise UserError(
            f"{audio_dir}: no recording is named as a performance, as 00077.mp3; give --audio-dir"
        )
    return write_manifests("atepp", found, output_dir, cut_seconds)


def _performances(
    corpus_dir: Path, audio_dir: Path, leave_out: tuple[str, ...], without: Counter
) -> Iterator[Performance]:
    audio = _audio(audio_dir)
    for row in _rows(corpus_dir):
        midi = PurePosixPath(row["midi_path"])
        places = (corpus_dir / midi, corpus_dir / corpus_dir.name / midi)
        file = next((path for path in places if path.is_file()), None)
        if (quality := (row.get("quality") or "").lower()) in leave_out:
            without[f'left out: "{quality}"'] += 1
        elif file is None:
            without["without their MIDI file"] += 1
        elif midi.stem not in audio:
            without["without a recording"] += 1
        else:
            yield Performance(
                str(midi.with_suffix("")),
                audio[midi.stem],
                str(file),
                "/".join(midi.parts[:2]),  # composer and composition
                "all",
                {name: row[name] for name in ABOUT if row.get(name)},
            )


def _audio(folder: Path) -> dict[str, Path]:
    """Recordings by their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in AUDIO or path.name.startswith("."):
            continue
        if (other := found.setdefault(path.stem, path)) != path:
            raise UserError(f"{other} and {path}: two recordings of one number; remove one")
    return found


def _rows(corpus_dir: Path) -> list[dict[str, str]]:
    """The lines of the newest table, performances each once."""
    tables = [(m[1], p) for p in corpus_dir.glob("*.csv") if (m := TABLE.fullmatch(p.name))]
    if not tables:
        raise UserError(f"{corpus_dir}: no ATEPP-metadata-1.x.csv; is this the corpus' folder?")
    _, table = max(tables)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = {row.get("midi_path"): row for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: {reason_of(error)}") from None
    for path in rows:
        parts = PurePosixPath(path or "").parts
        if len(parts) < 3 or ".." in parts or path.startswith("/"):
            raise UserError(
                f"{table}: midi_path {path!r} is not COMPOSER/COMPOSITION/.../NUMBER.mid; mend or "
                "remove the line"
            )
    return list(rows.values())


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "atepp.py", "Manifests of ATEPP.", argv)
    corpus_dir = download_atepp(flags.corpus_dir)
    made = prepare_atepp(
        corpus_dir, flags.audio_dir, flags.out_dir, flags.cut_seconds, flags.leave_out
    )
    hours = sum(r.duration for r in made["all"]["recordings"]) / 3600
    pieces = {s.custom["group"] for s in made["all"]["supervisions"]}
    performances = len(made["all"]["recordings"])
    print(f"  {performances:,} performances of {len(pieces):,} compositions  {hours:.2f} h")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
