#!/usr/bin/env python3
"""``rvqlm export``: tokens as lhotse Shar or .npy files.

    rvqlm export --manifest-dir data/tokens --format npy --out-dir tokens_npy

The folder gets ``codec.json`` and, for Shar, one Shar folder per split (``all`` without splits), to
be read with ``lhotse.CutSet.from_shar(in_dir="OUT/train")``; for .npy, one (T, K) array per cut
under ``codes/`` and a ``manifest.jsonl``. ``rvqlm import`` makes the token directory again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.locks import locked


@dataclass
class Args:
    manifest_dir: Path
    """Token directory."""
    format: Literal["shar", "npy"]
    """lhotse Shar, or one .npy array per cut with a manifest."""
    out_dir: Path
    """A new folder; it appears when it is complete."""
    split: str | None = None
    """Only this split; all: every cut without regard to splits. Default: each split there is, or
    all cuts of a directory without splits."""
    shard_size: int = 1000
    """Cuts per file of Shar."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm export", "Write tokens as lhotse Shar or .npy files.", argv)
    if args.shard_size < 1:
        raise UserError(f"--shard-size {args.shard_size} must be positive")
    if args.format == "npy" and args.shard_size != 1000:
        raise UserError("--shard-size is for --format shar; npy writes one file per cut")
    from rvqlm.exchange.convert import export_tokens

    with locked(args.out_dir, "rvqlm export", make=True, beside=True):
        count, splits = export_tokens(
            args.manifest_dir, args.out_dir, args.format, args.split, args.shard_size
        )
    held = f"{counted(count, 'cut')} as {args.format}"
    print(f"{args.out_dir}: {held}, {', '.join(splits) or 'no splits'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "export")


if __name__ == "__main__":
    sys.exit(main())
