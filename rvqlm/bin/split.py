#!/usr/bin/env python3
"""``rvqlm split``: train, valid and test that share no recording, no group and, if there are
enough, no speaker.

    rvqlm split --manifest-dir data/tokens --valid 0.05 --test 0.05

Reads ``cuts.jsonl.gz`` and writes ``cuts_{train,valid,test}.jsonl.gz`` beside it. The same cuts
and seed give the same splits on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import parse, run_main, span
from rvqlm.data.splits import SPLITS, SplitConfig, split_manifest
from rvqlm.locks import locked


def _run(argv: Sequence[str] | None) -> int:
    config = parse(SplitConfig, "rvqlm split", "Divide cuts into train, valid and test.", argv)
    with locked(config.manifest_dir, "rvqlm split"):
        result = split_manifest(config)
    also, unit = (" or group", "groups of ") if result.grouped else ("", "")
    print(f"split by {result.by}, no two splits share a {result.by}{also} (checked)")
    if result.by == "recording":
        why = f", since {result.why}" * bool(result.why)
        print(f"  a speaker may be in several of them{why}")
    for n, name in enumerate(SPLITS):
        print(
            f"  {name:<6} {int((result.split == n).sum()):>9,} cuts  "
            f"{span(result.seconds[name]):>9}  {result.groups[name]:>7,} {unit}{result.by}s"
        )
    if result.dropped:
        print(f"  {result.dropped:,} augmented copies of valid and test left out")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "split")


if __name__ == "__main__":
    sys.exit(main())
