#!/usr/bin/env python3
"""``rvqlm import``: a token directory from lhotse Shar or .npy files.

    rvqlm import --input tokens_npy --out-dir data/tokens

Takes what ``rvqlm export`` wrote, with its splits, and other people's Shar folders (tokens as
integer features) and .npy arrays, whose codec ``--codec`` or ``--codec-name`` gives. Where the
input has no splits, ``rvqlm split`` makes them; ``rvqlm index`` comes next in either case.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvqlm.cli import parse, run_main
from rvqlm.exchange.codec import CodecArgs


@dataclass
class Args:
    input: tuple[str, ...]
    """A folder of rvqlm export, a Shar folder, or .npy files: folders, quoted globs, names."""
    out_dir: Path
    """Token directory to make; it appears when it is complete."""
    order: Literal["tk", "kt"] | None = None
    """Of .npy files without a manifest: tk is (T, K), the default; kt is (K, T)."""
    codec: CodecArgs = field(default_factory=CodecArgs)


def report(out_dir: Path, written, info) -> None:
    """Say what a new token directory holds, and what was left out."""
    print(
        f"{out_dir}: {written.num_cuts} cuts, {written.hours:.2f} h, {written.num_frames} frames "
        f"of {info.num_codebooks} codes, codec {info.name} [{info.fingerprint}]"
    )
    if written.skipped:
        first = written.first_skipped
        print(
            f"{written.skipped} items skipped, listed in {out_dir}/skipped.jsonl; the first: "
            f"{first.path}: {first.reason}",
            file=sys.stderr,
        )


def _run(argv: Sequence[str] | None) -> int:
    description = "Make a token directory of a Shar or .npy export."
    args = parse(Args, "rvqlm import", description, argv)
    from tqdm import tqdm

    from rvqlm.exchange.convert import import_tokens

    def progress(items):
        return tqdm(items, "import", unit=" cuts", leave=False, disable=None)

    written, info = import_tokens(args.input, str(args.out_dir), args.codec, args.order, progress)
    report(args.out_dir, written, info)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "import")


if __name__ == "__main__":
    sys.exit(main())
