#!/usr/bin/env python3
"""``rvqlm doctor``: what is wrong with a training.

    rvqlm doctor exp/delay
    rvqlm doctor exp/delay/best.pt --compare exp/delay/archive/step-00010000-20261125-084500.pt
    rvqlm doctor exp/delay --replay exp/delay/bad_batches/step-004711-rank-0.pt

Looks for weights, averages and optimizer moments that are non-finite, exploded, or far from each
other, for dead rows and levels, and in the log for spikes, skipped steps, and the epoch and step
where the training began to diverge. Damaged files are examined as far as they can be read.

Exit status: 0 healthy, 1 something of concern, 2 unusable, or a mistake in the command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Args:
    path: Annotated[str, tyro.conf.Positional]
    """Checkpoint, experiment directory, or directory of an exported model."""
    which: str = "latest"
    """Checkpoint of an experiment: latest, best, average or the path of a file."""
    compare: str | None = None
    """A second one, older as a rule: how far each module went since, and which flags differ."""
    replay: str | None = None
    """A batch that the guards saved (EXP/bad_batches/*.pt), run through the model once more: where
    the first non-finite value comes from."""
    replay_precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of --replay; auto: as the training had it."""
    json: Path | None = None
    """Write everything that was found and measured to this file as well."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm doctor", "Say what is wrong with a training.", argv)
    problems = []
    if args.replay_precision != "auto" and args.replay is None:
        problems.append(
            f"--replay-precision {args.replay_precision} means nothing without --replay"
        )
    if args.which != "latest" and not Path(args.path).is_dir():
        problems.append(f"--which {args.which} means nothing with a file, {args.path}")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        problems.append(f"--json {args.json}: no folder {args.json.parent}; make it first")
    if problems:
        raise UserError("; ".join(problems))

    from rvqlm.doctor.examine import examine
    from rvqlm.doctor.printer import as_text
    from rvqlm.files import write_json

    found = examine(args.path, args.which, args.compare, args.replay, args.replay_precision)
    if args.json is not None:
        # strict JSON holds no NaN and no infinity: strings
        text = json.dumps({**asdict(found), "status": found.status}, default=str)
        write_json(args.json, json.loads(text, parse_constant=lambda c: str(float(c))))
    print(as_text(found))
    return found.status


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "doctor")


if __name__ == "__main__":
    sys.exit(main())
