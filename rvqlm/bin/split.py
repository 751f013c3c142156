#!/usr/bin/env python3
"""``rvqlm split``: train, valid and test that share no speaker, no recording and no group.

    rvqlm split --manifest-dir data/tokens --valid 0.05 --test 0.05

Reads ``cuts.jsonl.gz`` and writes ``cuts_{train,valid,test}.jsonl.gz`` beside it. The same cuts
and seed give the same splits on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import bar, parse, run_main
from rvqlm.data.splits import SPLITS, split_manifest


@dataclass
class Args:
    manifest_dir: Path
    """Token directory, as rvqlm tokenize wrote it."""
    valid: float = 0.05
    """Validation set: below 1 a share of the hours, from 1 on a number of speakers (or
    recordings), 0 for none."""
    test: float = 0.05
    """Test set, likewise."""
    test_speakers: tuple[str, ...] = ()
    """Names of the speakers of the test set, instead of --test."""
    by: Literal["auto", "speaker", "recording"] = "auto"
    """What no two splits may share. auto: speakers where every cut has one and there are enough
    of them, else recordings. Recordings are never divided, nor are groups (the custom field
    "group" of cuts: --group-by of rvqlm audio manifest, augmented copies)."""
    augmented: Literal["train", "all"] = "train"
    """Where augmented copies may be (rvqlm audio augment). train: those of recordings for
    validation and test are dropped; all: they go with their originals."""
    seed: int = 0
    """Another seed, another choice of speakers or recordings."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm split", "Divide cuts into train, valid and test.", argv)
    result = split_manifest(
        args.manifest_dir,
        args.valid,
        args.test,
        args.by,
        args.seed,
        bar,
        args.test_speakers,
        args.augmented,
    )
    also, unit = (" or group", "groups of ") if result.grouped else ("", "")
    print(f"split by {result.by}, no two splits share a {result.by}{also} (checked)")
    for n, name in enumerate(SPLITS):
        print(
            f"  {name:<6} {int((result.split == n).sum()):>9,} cuts  "
            f"{result.seconds[name] / 3600:>9.2f} h  {result.groups[name]:>7,} {unit}{result.by}s"
        )
    if result.dropped:
        print(f"  {result.dropped:,} augmented copies of valid and test left out")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "split")


if __name__ == "__main__":
    sys.exit(main())
