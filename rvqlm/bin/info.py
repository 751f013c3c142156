#!/usr/bin/env python3
"""``rvqlm info``: what a file or folder is, and what is in it.

    rvqlm info data/tokens exp/best.pt song.npq

Knows token directories, lhotse manifests, .rvq shards, indices, NPQ, .npy, Shar and other exports,
checkpoints, experiments, codec weights and audio. For those that hold tokens it counts the codes of
a sample: used and unused ones, entropy and a histogram per level.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Args:
    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files and folders."""
    max_cuts: int = 1000
    """Count the codes of so many cuts, spread over all; 0: don't."""
    json: bool = False
    """One JSON object per path."""


def as_json(path: str, found) -> dict:
    info = found.codec
    return {
        "path": path,
        "kind": found.kind,
        **found.facts,
        "codec": info.to_dict() if info else None,
        "codes": found.codes.to_dict() if found.codes else None,
        "problems": found.problems,
    }


def as_text(path: str, found) -> str:
    from rvqlm.inspection.text import entries

    lines = [f"{path}: {found.kind}"]
    lines += entries({"codec": codec_line(found.codec)}) if found.codec else []
    lines += entries(found.facts)
    lines += ["", *found.codes.lines()] if found.codes else []
    return "\n".join(lines)


def codec_line(info) -> str:
    channels = "" if info.channels == 1 else f", {info.channels} channels"
    return (
        f"{info.name} [{info.fingerprint}]: {info.sampling_rate} Hz, hop {info.hop}, "
        f"{info.num_codebooks} x {info.codebook_size}, {float(info.frame_rate):.2f} frames/s, "
        f"{info.bitrate / 1000:.2f} kbps{channels}"
    )


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm info", "Say what files and folders are.", argv)
    if not args.paths:
        raise UserError("give the path of a file or folder")
    if args.max_cuts < 0:
        raise UserError(f"--max-cuts {args.max_cuts} must be 0 (none) or more")
    from rvqlm.inspection.path import look

    problems = 0
    for path in args.paths:
        found = look(path, args.max_cuts)
        print(json.dumps(as_json(path, found)) if args.json else as_text(path, found))
        for problem in found.problems:
            print(f"problem: {problem}", file=sys.stderr)
        problems += len(found.problems)
    if problems:
        raise UserError(f"{problems} problems, listed above")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "info")


if __name__ == "__main__":
    sys.exit(main())
