#!/usr/bin/env python3
"""``rvqlm index``: the memory-mapped index of every split, which is what training opens.

    rvqlm index --manifest-dir data/tokens

Writes ``index_SPLIT.bin`` for each ``cuts_SPLIT.jsonl.gz`` of the directory: 12 bytes a cut.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import parse, run_main, span
from rvqlm.data.index import TokenDataset, build_index, find_splits
from rvqlm.locks import locked


@dataclass
class Args:
    manifest_dir: Path
    """Token directory with the manifests that rvqlm split wrote."""
    splits: tuple[str, ...] = ()
    """Only these splits; none given: all that have a manifest."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm index", "Index the splits of a token directory.", argv)
    with locked(args.manifest_dir, "rvqlm index"):
        for split in find_splits(args.manifest_dir, args.splits):
            path = build_index(args.manifest_dir, split)
            ds = TokenDataset.open(args.manifest_dir, split)
            print(f"  {split:<6} {len(ds):>9,} cuts  {span(3600 * ds.hours):>9}  {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "index")


if __name__ == "__main__":
    sys.exit(main())
