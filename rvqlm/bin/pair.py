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

from rvqlm.cli import counted, parse, run_main
from rvqlm.data.pairs import PairConfig, make_pairs, some_of
from rvqlm.locks import locked


def _run(argv: Sequence[str] | None) -> int:
    description = "Pair the cuts of two token directories: a target and what it accompanies."
    config = parse(PairConfig, "rvqlm pair", description, argv)
    with locked(config.manifest_dir, "rvqlm pair"):
        found = make_pairs(config)
    for split, matched in found.items():
        without = matched.cuts - matched.paired
        print(
            f"  {split:<6} {matched.paired:>9,} of {counted(matched.cuts, 'cut')} "
            f"{'has' if matched.cuts == 1 else 'have'} a source"
            + (f", {matched.shorter:,} a shorter one" if matched.shorter else "")
            + (f"; without: {', '.join(matched.unmatched)}" if without else "")
            + (", ..." if without > len(matched.unmatched) else "")
        )
    if unlike := [words for matched in found.values() for words in matched.unlike]:
        print(
            f"{counted(len(unlike), 'pair')} of lengths that differ by more than "
            f"{counted(config.tolerance_frames, 'frame')} or of other beginnings, paired from "
            "these on as far as the shorter reaches: "
            f"{some_of(unlike)}",
            file=sys.stderr,
        )
    print(f"wrote {config.manifest_dir / 'source.json'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "pair")


if __name__ == "__main__":
    sys.exit(main())
