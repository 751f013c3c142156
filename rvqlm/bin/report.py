#!/usr/bin/env python3
"""``rvqlm report``: an experiment as one HTML page, audio included.

    rvqlm report --exp-dir exp/mini --manifest-dir data/tokens

Reads what trainer, evaluate, generate and validate left behind; decodes held-out recordings from
their stored tokens for comparison. The page needs no network and can be sent as it is. Several
experiments side by side: rvqlm compare --page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import command_line, parse, run_main
from rvqlm.files import write_text
from rvqlm.reports.formatting import render_template
from rvqlm.reports.report import ReportArgs, collect, summary
from rvqlm.runtime import tune_malloc


def _run(argv: Sequence[str] | None) -> int:
    tune_malloc()
    args = parse(ReportArgs, "rvqlm report", "Write one HTML page about an experiment.", argv)
    args.check()
    content = collect(args, command_line("report", argv))
    page = render_template("report.html", **content)
    out = args.path
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    for line in summary(content):
        print(line)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser: {out.as_uri()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "report")


if __name__ == "__main__":
    sys.exit(main())
