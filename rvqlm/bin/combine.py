#!/usr/bin/env python3
"""``rvqlm combine``: the parts that the jobs of an array have tokenized become one token directory.

    rvqlm tokenize --input my-audio --out-dir data/tokens --part 0/2
    rvqlm tokenize --input my-audio --out-dir data/tokens --part 1/2
    rvqlm combine --out-dir data/tokens

All parts have to be there, once each, of one codec and one input; what is missing is named with the
command that makes it. The parts' folders are removed when the directory is complete.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import counted, parse, run_main
from rvqlm.locks import locked


@dataclass
class Args:
    out_dir: Path
    """The --out-dir that rvqlm tokenize --part was given, with all of its parts."""
    keep_parts: bool = False
    """Leave the parts' folders where they are. Their shards take no space of their own, as long as
    the file system lets a file have two names."""
    checksums: bool = False
    """Read every shard to compare its checksum; without, only sizes are compared."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm combine", "Make the parts of a tokenization one.", argv)
    from rvqlm.tokenizing.combine import combine

    with locked(args.out_dir, "rvqlm combine"):
        made = combine(args.out_dir, args.keep_parts, args.checksums)
    print(
        f"{args.out_dir}: {counted(made.num_cuts, 'cut')}, {made.hours:,.2f} h, {made.skipped} "
        f"skipped; next: rvqlm split and rvqlm index with --manifest-dir {args.out_dir}"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "combine")


if __name__ == "__main__":
    sys.exit(main())
