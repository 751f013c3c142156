"""Cuts of LibriTTS by lhotse's recipe, a manifest for each part.

    python egs/libritts/local/manifests.py --corpus-dir data/LibriTTS --out-dir data/manifests \
        --parts train-clean-100 dev-clean test-clean

The text is the normalized one; what stands in the book is `orig_text`. The custom field `split` has
the corpus' own division, which is by speaker.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lhotse import SupervisionSegment
from lhotse.recipes import prepare_libritts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared" / "local"))

from lhotse_cuts import rows, write_cuts

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Flags:
    corpus_dir: Path
    """Folder with the parts, and SPEAKERS.txt."""
    out_dir: Path
    """Manifests go to OUT_DIR/PART/cuts.jsonl.gz; one that is there is left as it is."""
    parts: tuple[str, ...]
    """Folders of the corpus whose names begin with train, dev or test."""
    language: str = "en-us"
    """Of the texts."""


def make(corpus: Path, part: str, out: Path, language: str) -> str:
    """The manifest of a part; returns a summary."""
    folder = corpus / part
    if not folder.is_dir():
        raise UserError(f"--parts {part}: there is no {folder}; download it, or leave it out")

    def describe(said: SupervisionSegment) -> dict:
        said.language = language
        return {"split": part.split("-")[0]}

    tables = [t for t in folder.rglob("*.trans.tsv") if not t.name.startswith(".")]
    return write_cuts(
        out,
        lambda: prepare_libritts(corpus, part)[part],
        {p.stem: p for p in folder.rglob("*.wav") if not p.name.startswith(".")},
        {id: table for table in tables for id, _, _ in rows(table, "\t", 3)},
        describe,
    )


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "manifests.py", "Cuts of LibriTTS.", argv)
    for part in flags.parts:
        out = flags.out_dir / part / "cuts.jsonl.gz"
        if out.exists():
            print(f"{out} is there; remove it to have it made anew")
        else:
            print(make(flags.corpus_dir, part, out, flags.language), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
