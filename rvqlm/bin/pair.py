#!/usr/bin/env python3
"""``rvqlm pair``: what each recording accompanies, in another token directory.

    rvqlm pair --manifest-dir data/solo --source-dir data/backing
    rvqlm pair --manifest-dir data/solo --source-dir data/backing --suffixes /vocals /no_vocals

Matches cuts by id and writes ``source.json`` and a ``source_SPLIT.bin`` for every indexed split of
--manifest-dir; a model trained with the condition "source" is given the source frame by frame. Both
directories must be tokens of the same codec, split and indexed; the splits of --source-dir do not
matter. Run it again after either is indexed anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import bar, parse, run_main
from rvqlm.data.pairs import make_pairs
from rvqlm.errors import UserError


@dataclass
class Args:
    manifest_dir: Path
    """Token directory of the targets: what a model is to play."""
    source_dir: Path
    """Token directory of the sources: what it is given."""
    suffixes: tuple[str, ...] = ()
    """Endings of ids that name the part and not the piece (_solo _backing): taken off on both
    sides before ids are compared. None given: ids must be equal."""
    tolerance_frames: int = 2
    """Frames that a target and its source may differ in length. The target is never cut: a longer
    source ends with it, and the last frames of a longer target have no source."""
    allow_missing: bool = False
    """Let cuts without a match have no source, instead of refusing them."""


def _run(argv: Sequence[str] | None) -> int:
    description = "Pair the cuts of two token directories: a target and what it accompanies."
    args = parse(Args, "rvqlm pair", description, argv)
    if args.tolerance_frames < 0:
        raise UserError(f"--tolerance-frames {args.tolerance_frames} is negative")
    found = make_pairs(
        args.manifest_dir,
        args.source_dir,
        args.suffixes,
        args.tolerance_frames,
        args.allow_missing,
        bar,
    )
    for split, matched in found.items():
        without = matched.cuts - matched.paired
        print(
            f"  {split:<6} {matched.paired:>9,} of {matched.cuts:,} cuts have a source"
            + (f", {matched.shorter:,} a shorter one" if matched.shorter else "")
            + (f"; without: {', '.join(matched.unmatched)}" if without else "")
            + (", ..." if without > len(matched.unmatched) else "")
        )
    print(f"wrote {args.manifest_dir / 'source.json'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "pair")


if __name__ == "__main__":
    sys.exit(main())
