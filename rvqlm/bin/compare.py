#!/usr/bin/env python3
"""``rvqlm compare``: several experiments as one table.

    rvqlm compare --exp-dirs exp/delay exp/flatten exp/masked --out RESULTS.md

Reads what trainer, evaluate and generate left behind. Experiments that were evaluated on different
frames, or on codes of different codecs, are refused. In an existing file only what lies between
``<!-- compare:begin NAME -->`` and ``<!-- compare:end NAME -->`` is replaced; where there are no
such marks, the table is appended together with them.

    rvqlm compare --exp-dirs exp/delay exp/flatten --page compare.html --manifest-dir data/tokens

writes a page instead, to hear their samples side by side, prompt by prompt, below all figures.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import command_line, kebab, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import write_text


@dataclass
class Args:
    exp_dirs: tuple[str, ...]
    """Experiment directories of rvqlm trainer, a row each; of a model that is trained in stages,
    the directory above them."""
    split: str = "test"
    """Split whose evaluation is compared."""
    out: Path | None = None
    """Markdown file to put the table into; not given: it is printed."""
    name: str = "main"
    """Name in the marks of the table, for files with several."""
    title: str = ""
    """Heading of the table."""
    num_samples: int = 4
    """Links to samples in a row, at most; 0: none, for pages that go where the audio doesn't."""
    page: Path | None = None
    """HTML page to write instead, with the samples side by side."""
    manifest_dir: Path | None = None
    """Token directory whose recordings stand beside the samples of the page."""
    num_prompts: int = 32
    """Prompts on the page, at most: a clip adds some 200 kB a 10 s."""
    max_seconds: float = 12.0
    """Recordings on the page are cut to this length."""
    download: bool = False
    """Fetch the codec that the tokens name from the hub, where it is not on this machine."""
    json: bool = False
    """Print the rows as JSON, whether or not a file is written."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm compare", "Several experiments as one table.", argv)
    problems = []
    if args.num_samples < 0:
        problems.append(f"--num-samples {args.num_samples}: at least 0")
    if not re.fullmatch(r"[\w.-]+", args.name) or "--" in args.name:
        problems.append(f"--name {args.name!r}: letters, digits, single - and . only")
    if args.out is not None and not args.out.parent.is_dir():
        problems.append(f"--out {args.out}: no folder {args.out.parent}; make it first")
    if args.num_prompts < 1:
        problems.append(f"--num-prompts {args.num_prompts}: at least 1")
    if not args.max_seconds > 0:
        problems.append(f"--max-seconds {args.max_seconds:g}: above 0")
    if args.page is None:
        of_page = ("manifest_dir", "num_prompts", "max_seconds", "download")
        idle = [kebab(n) for n in of_page if getattr(args, n) != getattr(Args, n)]
        problems += [f"--{name} has no effect without --page" for name in idle]
    elif args.out or args.json:
        problems.append("--page is written instead of a table; give it without --out and --json")
    elif not args.page.parent.is_dir():
        problems.append(f"--page {args.page}: no folder {args.page.parent}; make it first")
    if problems:
        raise UserError("; ".join(problems))
    if args.page:
        return _write_page(args, argv)
    from rvqlm.reports.compare import compare
    from rvqlm.reports.compare_table import place, render

    rows = compare(args.exp_dirs, args.split)
    for row in rows:
        for remark in row.remarks:
            print(remark, file=sys.stderr)
    base = args.out.parent if args.out else Path()
    text = render(rows, args.title, base, args.num_samples)
    if args.out:
        write_text(args.out, place(text, _read(args.out), args.name, str(args.out)))
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    elif args.out:
        print(f"wrote {args.out}")
    else:
        print(text, end="")
    return 0


def _write_page(args: Args, argv: Sequence[str] | None) -> int:
    from rvqlm.reports.aligned import Aligned
    from rvqlm.reports.compare import compare
    from rvqlm.reports.compare_page import compare_page
    from rvqlm.reports.formatting import render_template
    from rvqlm.runtime import tune_malloc

    tune_malloc()
    rows = compare(args.exp_dirs, args.split, evaluated=False)
    aligned = Aligned.read(rows, args.manifest_dir, args.split)
    aligned.listen(args.num_prompts, args.max_seconds, args.download)
    made_by, folder = command_line("compare", argv), args.page.parent
    content = compare_page(aligned, args.split, args.title, made_by, folder)
    write_text(args.page, render_template("compare.html", **content))
    for remark in content["remarks"]:
        print(f"missing: {remark}")
    megabytes = args.page.stat().st_size / 1e6
    print(f"{args.page} ({megabytes:.1f} MB); open it in a browser: {args.page.resolve().as_uri()}")
    return 0


def _read(page: Path) -> str:
    """What a page has; nothing where it is to be made."""
    try:
        return page.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UserError(f"--out {page}: not a text file; give another") from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "compare")


if __name__ == "__main__":
    sys.exit(main())
