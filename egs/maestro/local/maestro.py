"""MAESTRO v3.0.0: `download_maestro` and `prepare_maestro`, in the form of lhotse's recipes.

    python egs/maestro/local/maestro.py --corpus-dir data/maestro-v3.0.0 --out-dir data/manifests

The division into training, validation and test is the corpus' own, in which no piece is in two of
them. Should composer and title be the same in two all the same, what is for training is left out.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

import download
from performances import Manifests, Performance, write_manifests

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError, reason_of

NAME = "maestro-v3.0.0"
URL = f"https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/{NAME}.zip"
SHA256 = "6680fea5be2339ea15091a249fbd70e49551246ddbd5ca50f1b2352c08c95291"
COLUMNS = (
    "canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename",
)  # fmt: skip
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


@dataclass
class Flags:
    download_dir: Path | None = None
    """Fetch and unpack the corpus into this folder, and do nothing else."""
    corpus_dir: Path = Path("data") / NAME
    """Folder with maestro-v3.0.0.csv and a folder for each year."""
    out_dir: Path = Path("data/manifests")
    """Where the manifests go."""
    cut_seconds: float = 0.0
    """Average length of the cuts, equal parts of a performance; 0: whole performances."""


def download_maestro(target_dir: Path, url: str = URL) -> Path:
    """Fetch and unpack the corpus (101 GB, unpacked 120 GB) unless it is there; returns its
    folder."""
    words = ["--url", url, "--out-dir", str(target_dir), "--unpack", NAME, "--remove-archive"]
    if url == URL:
        words += ["--sha256", SHA256]
    download.main(words)
    return target_dir / NAME


def prepare_maestro(corpus_dir: Path, output_dir: Path, cut_seconds: float = 0.0) -> Manifests:
    """Write manifests of all performances; returns recordings and supervisions by split.

    :param cut_seconds: see `performances.write_manifests`.
    :raises UserError: no such corpus, or a damaged table.
    """
    found = [_performance(corpus_dir, row) for row in _rows(corpus_dir / f"{NAME}.csv")]
    held_out = {p.group: p.split for p in found if p.split != "train"}
    kept = [p for p in found if held_out.get(p.group, p.split) == p.split]
    if len(kept) < len(found):
        left = Counter(p.group for p in found) - Counter(p.group for p in kept)
        print(
            f"{len(found) - len(kept)} performances left out: their pieces are in another split as "
            f"well; the first: {next(iter(left))}",
            file=sys.stderr,
        )
    return write_manifests("maestro", kept, output_dir, cut_seconds)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: {reason_of(error)}; is this the corpus' folder?") from None
    for number, row in enumerate(rows, 2):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing or row["split"] not in SPLITS:
            wrong = f"no {missing[0]}" if missing else f"no split {row['split']!r}"
            raise UserError(f"{table}:{number}: {wrong}; mend or remove the line")
    if not rows:
        raise UserError(f"{table}: no performances in it; download it again")
    return rows


def _performance(corpus_dir: Path, row: dict[str, str]) -> Performance:
    composer, title = row["canonical_composer"], row["canonical_title"]
    return Performance(
        str(Path(row["audio_filename"]).with_suffix("")),
        corpus_dir / row["audio_filename"],
        str(corpus_dir / row["midi_filename"]),
        f"{composer}: {title}".casefold(),
        SPLITS[row["split"]],
        {"composer": composer, "title": title, "year": row["year"]},
    )


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "maestro.py", "Manifests of MAESTRO.", argv)
    if flags.download_dir is not None:
        download_maestro(flags.download_dir)
        return 0
    made = prepare_maestro(flags.corpus_dir, flags.out_dir, flags.cut_seconds)
    for split in SPLITS.values():
        recordings = made.get(split, {}).get("recordings", ())
        hours = sum(r.duration for r in recordings) / 3600
        print(f"  {split:<6} {len(recordings):>6,} performances  {hours:8.2f} h")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
