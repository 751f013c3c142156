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

from tqdm import tqdm

from rvqlm.cli import parse, run_main
from rvqlm.data.index import TokenDataset, build_index, read_sidecar
from rvqlm.errors import UserError


@dataclass
class Args:
    manifest_dir: Path
    """Token directory with the manifests that rvqlm split wrote."""
    splits: tuple[str, ...] = ()
    """Only these splits; none given: all that have a manifest."""


def find_splits(manifest_dir: Path) -> list[str]:
    """Names of the splits of a directory; train, valid and test come first."""
    names = {p.name[len("cuts_") : -len(".jsonl.gz")] for p in manifest_dir.glob("cuts_*.jsonl.gz")}
    usual = [name for name in ("train", "valid", "test") if name in names]
    return usual + sorted(names - set(usual))


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm index", "Index the splits of a token directory.", argv)
    read_sidecar(args.manifest_dir)
    splits = list(args.splits) or find_splits(args.manifest_dir)
    if not splits:
        raise UserError(f"no cuts_SPLIT.jsonl.gz in {args.manifest_dir}; run rvqlm split first")
    for split in splits:
        path = build_index(
            args.manifest_dir,
            split,
            lambda cuts, name=split: tqdm(cuts, name, unit=" cuts", leave=False, disable=None),
        )
        ds = TokenDataset.open(args.manifest_dir, split)
        print(f"  {split:<6} {len(ds):>9,} cuts  {ds.hours:>9.2f} h  {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "index")


if __name__ == "__main__":
    sys.exit(main())
