#!/usr/bin/env python3
"""``rvqlm report``: an experiment as one HTML page, audio included.

    rvqlm report --exp-dir exp/mini --manifest-dir data/tokens

Reads what trainer, evaluate, generate and validate left behind; decodes held-out recordings from
their stored tokens for comparison. The page needs no network and can be sent as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError
from rvqlm.runtime import tune_malloc


@dataclass
class Args:
    exp_dir: Path
    """Experiment directory of rvqlm trainer."""
    manifest_dir: Path
    """Token directory that it was trained on."""
    out: Path | None = None
    """Page to write; EXP_DIR/report.html if not given."""
    split: str = "test"
    """Held-out split whose evaluation and recordings are shown."""
    num_samples: int = 4
    """Recordings, and samples of each kind, at most. Each clip adds some 200 kB a 10 s."""
    max_seconds: float = 12.0
    """Originals and reconstructions are cut to this length."""
    title: str | None = None
    """Heading of the page; a sentence made from the numbers if not given."""


def _run(argv: Sequence[str] | None) -> int:
    tune_malloc()
    args = parse(Args, "rvqlm report", "Write one HTML page about an experiment.", argv)
    problems = []
    if args.num_samples < 0:
        problems.append(f"--num-samples {args.num_samples}: at least 0")
    if not args.max_seconds > 0:
        problems.append(f"--max-seconds {args.max_seconds:g}: above 0")
    if problems:
        raise UserError("; ".join(problems))

    from rvqlm.files import atomic_write
    from rvqlm.reports.formatting import render_template
    from rvqlm.reports.report import collect, summary

    content = collect(
        args.exp_dir,
        args.manifest_dir,
        split=args.split,
        num_samples=args.num_samples,
        max_seconds=args.max_seconds,
        title=args.title,
        command=command_line("report", argv),
    )
    page = render_template("report.html", **content)
    out = (args.out or args.exp_dir / "report.html").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, lambda path: path.write_text(page, encoding="utf-8"))
    for line in summary(content):
        print(line)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser: {out.as_uri()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "report")


if __name__ == "__main__":
    sys.exit(main())
