#!/usr/bin/env python3
"""``rvqlm monitor EXP``: how a training is doing, in the terminal, as a picture or in a window.

Reads the files of the experiment only, so it works while the training runs, after it was killed,
and on another machine that shares the disk.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class MonitorArgs:
    """What to watch"""

    exp_dir: Positional[str]
    """Folder of the experiment."""
    compare: tuple[str, ...] = ()
    """Further experiments, side by side."""
    watch: bool = False
    """Show it again every few seconds, until Ctrl-C."""
    live: bool = False
    """Show the curves in a window, drawn again every few seconds, until it is closed."""
    every: float = 5.0
    """Seconds between two looks of --watch or --live."""
    plot: str = ""
    """Write the curves to this file (png, svg, pdf)."""
    expected: str = ""
    """Say where it stands against this file; by default against that of the recipe whose flags and
    data it has, if there is one."""
    write_expected: str = ""
    """Write what it came to, and --compare with it, as such a file: NAME.expected.json."""


def run(argv: Sequence[str] | None) -> int:
    args = parse(MonitorArgs, "rvqlm monitor", "How a training is doing.", argv)
    if not 0 < args.every < float("inf"):
        raise UserError(f"--every {args.every}: above 0")
    if args.every != MonitorArgs.every and not (args.watch or args.live):
        raise UserError("--every has no effect without --watch or --live")
    if args.live and (args.watch or args.plot):
        raise UserError("--live is a window; give it without --watch and --plot")
    if args.plot and Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {args.plot}: the name ends with .png, .svg or .pdf")
    if args.write_expected and not args.write_expected.endswith(".expected.json"):
        raise UserError(f"--write-expected {args.write_expected}: the name ends .expected.json")
    if args.expected and args.compare:
        raise UserError("--expected has no effect with --compare")
    from rvqlm.reports.expected import read_expected, write_expected
    from rvqlm.reports.monitor import Watched, describe, live, plot, read_again, table

    expected = read_expected(Path(args.expected)) if args.expected else None
    experiments = [Watched(e) for e in (args.exp_dir, *args.compare)]
    if args.write_expected:
        write_expected(Path(args.write_expected), [w.training for w in experiments])
        print(f"wrote {args.write_expected}")
        return 0
    if args.live:
        live(experiments, args.every)
        return 0
    gone: list[str] = []
    while True:
        width = shutil.get_terminal_size().columns
        lines = table(experiments) if args.compare else describe(experiments[0], width, expected)
        lines += gone
        if args.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")  # from the top of an empty screen
        print("\n".join(lines), flush=True)
        if args.plot:
            print(f"wrote {plot(experiments, args.plot)}")
        if not args.watch:
            return 0
        time.sleep(args.every)
        gone = read_again(experiments)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="monitor")


if __name__ == "__main__":
    sys.exit(main())
