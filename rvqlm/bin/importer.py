#!/usr/bin/env python3
"""``rvqlm import``: a token directory from lhotse Shar or features, .npy or .npq files.

    rvqlm import --input tokens_npy --out-dir data/tokens

Takes what ``rvqlm export`` wrote, with its splits, and other people's Shar folders and manifests
(tokens as integer features), .npy arrays and .npq files, whose codec ``--codec`` or
``--codec-name`` gives.
Without splits there, ``rvqlm split`` makes them; ``rvqlm index`` comes next in either case.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvqlm.cli import counted, parse, run_main
from rvqlm.exchange.codec import CodecArgs
from rvqlm.locks import locked


@dataclass
class Args:
    input: tuple[str, ...]
    """A folder of rvqlm export, a Shar folder, a lhotse manifest whose features are codes, or .npy
    or .npq files: folders, quoted globs, names."""
    out_dir: Path
    """Token directory to make; it appears when it is complete."""
    order: Literal["tk", "kt"] | None = None
    """Of .npy files without a manifest: tk is (T, K), the default; kt is (K, T)."""
    codec: CodecArgs = field(default_factory=CodecArgs)


def make_token_dir(source, out_dir: Path, codec: CodecArgs) -> None:
    """Import a `TokenSource`, and say what the new directory holds and what was left out."""
    from rvqlm.audio.cuts import clock
    from rvqlm.exchange.convert import import_tokens

    with locked(out_dir, "rvqlm import", make=True, beside=True):
        if source.remark:
            print(f"note: {source.remark}", file=sys.stderr)
        written, info = import_tokens(source, str(out_dir), codec)
    print(
        f"{out_dir}: {counted(written.num_cuts, 'cut')}, {clock(3600 * written.hours)}, "
        f"{counted(written.num_frames, 'frame')} of {info.num_codebooks} codes, codec {info.name} "
        f"[{info.fingerprint}]"
    )
    if written.skipped:
        print(
            f"{counted(written.skipped, 'item')} skipped, listed in {out_dir}/skipped.jsonl; the "
            f"first: {written.first_skipped}",
            file=sys.stderr,
        )


def _run(argv: Sequence[str] | None) -> int:
    description = "Make a token directory of an export, lhotse Shar or features, .npy or .npq."
    args = parse(Args, "rvqlm import", description, argv)
    from rvqlm.exchange.source import open_tokens

    make_token_dir(open_tokens(args.input, order=args.order), args.out_dir, args.codec)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "import")


if __name__ == "__main__":
    sys.exit(main())
