"""Cuts of LJSpeech by lhotse's recipe, or of anything in its layout.

    python egs/ljspeech/local/manifests.py --corpus-dir data/LJSpeech-1.1 \
        --out data/manifests/cuts.jsonl.gz

The text is what is said, numbers and abbreviations written out (the third column); what stands in
the book is `orig_text`. Clips of a chapter are one group, which no split may divide: they are parts
of one recording, and the sentences of one go on in the next.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from lhotse import SupervisionSegment
from lhotse.recipes import prepare_ljspeech

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from lhotse_cuts import rows, write_cuts

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Flags:
    corpus_dir: Path
    """Folder with metadata.csv and wavs."""
    out: Path
    """Manifest of cuts."""
    language: str = "en-us"
    """Of the texts."""
    group_by: str = r"^LJ\d+"
    """Regular expression: what it finds in the names of clips is what those share that must not be
    divided between training and test; where it finds nothing each is by itself."""


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "manifests.py", "Cuts of LJSpeech.", argv)
    try:
        group = re.compile(flags.group_by)
    except re.error as error:
        raise UserError(f"--group-by {flags.group_by}: {error}") from None
    table = flags.corpus_dir / "metadata.csv"

    def describe(said: SupervisionSegment) -> dict:
        written, said.text = said.text, said.custom["normalized_text"]
        said.custom = {"orig_text": written}
        said.language, said.gender = flags.language, None  # of another reader, perhaps
        found = group.search(said.id)
        return {"group": found[0] if found else said.id}

    print(
        write_cuts(
            flags.out,
            lambda: prepare_ljspeech(flags.corpus_dir),
            {p.stem: p for p in (flags.corpus_dir / "wavs").glob("[!.]*.wav")},
            {id: table for id, _, _ in rows(table, "|", 3)},
            describe,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
