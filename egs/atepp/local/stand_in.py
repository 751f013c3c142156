"""A few minutes in the layout of ATEPP 1.2 and recordings as its user has them, by a synthesiser.

python egs/atepp/local/stand_in.py --out-dir data/ATEPP
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from stand_in_piano import play
from stand_ins import make_once, write_table

from rvqlm.cli import parse, run_main

README = "Not ATEPP, but a stand-in for it in its layout, played by a synthesiser.\n"
COLUMNS = (
    "artist", "artist_id", "track", "track_duration", "composer", "composer_id", "composition",
    "composition_id", "midi_path", "score_path", "youtube_links", "quality", "perf_id",
)  # fmt: skip


@dataclass
class Flags:
    out_dir: Path
    """Folder for ATEPP-1.2, the corpus, and recordings; nothing is done where it is."""
    compositions: int = 6
    """The first of two movements."""
    performances: int = 2
    """Of each movement."""
    seconds: float = 13.0
    """Of each performance."""
    seed: int = 0
    """Another seed, other pieces."""


def make(folder: Path, compositions: int, performances: int, seconds: float, seed: int) -> float:
    """Fill a folder; returns seconds of music."""
    corpus, rows, total = folder / "ATEPP-1.2", [], 0.0
    movements = [(c, m) for c in range(compositions) for m in range(2 - min(c, 1))]
    for piece, (composition, movement) in enumerate(movements):
        for pianist in range(performances):
            number = f"{len(rows) + 1:05d}"
            composer, title = f"Stand_In_{composition % 2}", f"Sonata_No._{composition}"
            path = f"{composer}/{title}/{'I' * (movement + 1)}._Allegro/{number}.mid"
            files = corpus / "ATEPP-1.2" / path, folder / "recordings" / f"{number}.flac"
            duration = play(*files, 1000 * seed + piece, pianist, seconds, 44100)
            total += duration
            rows.append((
                f"Pianist {pianist}", pianist, f"{title}, movement {movement + 1}", duration,
                composer, composition % 2, title, composition, path, "", "", "", number,
            ))  # fmt: skip
    write_table(corpus / "ATEPP-metadata-1.2.csv", COLUMNS, rows)
    (corpus / "README.md").write_text(README)
    return total


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "stand_in.py", "Make a stand-in for ATEPP 1.2.", argv)
    shape = flags.compositions, flags.performances, flags.seconds, flags.seed
    return make_once(flags.out_dir, lambda folder: make(folder, *shape))


if __name__ == "__main__":
    sys.exit(run_main(main))
