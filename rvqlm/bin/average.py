#!/usr/bin/env python3
"""``rvqlm average``: the mean of several checkpoints' weights as a checkpoint of its own.

    rvqlm average exp/small --last 5
    rvqlm evaluate --exp-dir exp/small --manifest-dir data/tokens --checkpoint average

Of an experiment the archives are taken (``--archive-every`` of rvqlm trainer), and the result is
EXP/average.pt. Both the last weights and their moving averages are averaged, and it is chosen
where the model is used which of the two counts. The result cannot be resumed from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Args:
    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """An experiment, or two checkpoint files or more."""
    last: int | None = None
    """So many of the experiment's newest archives; not given: all."""
    out: Path | None = None
    """File to write; not given: average.pt in the experiment."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm average", "Mean of the weights of checkpoints.", argv)
    if not args.paths:
        raise UserError("give an experiment, or two checkpoint files or more")
    if args.last is not None and args.last < 2:
        raise UserError(f"--last {args.last}: a mean takes at least 2")
    from rvqlm.checkpoints.averaging import average_checkpoints, newest_archives
    from rvqlm.checkpoints.loading import last_stage

    paths, out = [Path(p) for p in args.paths], args.out
    if len(paths) == 1 and paths[0].is_dir():
        exp_dir = last_stage(paths[0])
        out = out or exp_dir / "average.pt"
        paths = newest_archives(exp_dir, args.last)
    elif len(paths) == 1 and not paths[0].exists():
        raise UserError(f"{paths[0]}: no such experiment")
    elif args.last is not None:
        raise UserError(f"--last {args.last} is for an experiment; checkpoint files are all taken")
    elif out is None:
        raise UserError("give --out, the file to write; only an experiment has a place for it")
    average_checkpoints(paths, out)
    print(f"wrote {out}: the mean of {len(paths)} checkpoints")
    for path in paths:
        print(f"  {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "average")


if __name__ == "__main__":
    sys.exit(main())
