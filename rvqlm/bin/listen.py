#!/usr/bin/env python3
"""``rvqlm listen``: blind listening tests.

    rvqlm listen make --exp-dirs exp/a exp/b --out test.html
    rvqlm listen listening-*.json --key test.key.json

The first makes a page of samples of the same prompts, whose systems only test.key.json names. Who
opens it, on a computer or a phone, without network, hears them in random order and saves the
answers as a file. The second sums up such files of one or many raters: preferences or grades with
intervals and significance.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rvqlm.cli import command_line, counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import write_json, write_text


@dataclass
class MakeArgs:
    """The page and its key"""

    exp_dirs: tuple[str, ...]
    """Experiments whose samples are judged."""
    out: Path
    """Page to write, PAGE.html; its key is PAGE.key.json, which raters don't get."""
    kind: Literal["preference", "rating"] = "preference"
    """Pairs, of which one is better, or single clips with a grade from 1 to 5."""
    question: str = ""
    """What raters are asked; by default which sounds better, or how good it sounds."""
    manifest_dir: Path | None = None
    """Token directory of the recordings: their words are shown where samples have symbols alone."""
    split: str = "test"
    """Of which the recordings are."""
    recordings: bool = False
    """The recordings, and what the codec makes of them, are judged as well."""
    num_prompts: int = 16
    """Prompts, at most; each is asked about once for each pair of systems, or each system."""
    max_seconds: float = 12.0
    """Recordings are cut to this length."""
    text: bool = True
    """Show what was to be said."""
    seed: int = 0
    """Of sides, names and order."""
    download: bool = False
    """Fetch the codec that the tokens name from the hub, where it is not on this machine."""

    def check(self) -> None:
        problems = []
        if self.out.suffix != ".html":
            problems.append(f"--out {self.out}: the name ends with .html")
        if not self.out.parent.is_dir():
            problems.append(f"--out {self.out}: no folder {self.out.parent}; make it first")
        if self.num_prompts < 1:
            problems.append(f"--num-prompts {self.num_prompts}: at least 1")
        if not self.max_seconds > 0:
            problems.append(f"--max-seconds {self.max_seconds:g}: above 0")
        if self.seed < 0:
            problems.append(f"--seed {self.seed}: at least 0")
        if self.download and not self.recordings:
            problems.append("--download has no effect without --recordings")
        if self.recordings and self.manifest_dir is None:
            problems.append("--recordings needs the --manifest-dir that has them")
        if problems:
            raise UserError("; ".join(problems))


@dataclass
class SumArgs:
    """What raters said; `rvqlm listen make` makes a test"""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that raters saved."""
    key: Path | None = None
    """Key of the test; by default the one beside the results, or a folder above them."""
    out: Path | None = None
    """JSON file for the figures."""


def make(argv: Sequence[str]) -> int:
    args = parse(MakeArgs, "rvqlm listen make", "Make a blind listening test.", argv)
    args.check()
    from rvqlm.reports.aligned import Aligned
    from rvqlm.reports.compare import compare
    from rvqlm.reports.formatting import render_template
    from rvqlm.reports.listening_test import make_test

    aligned = Aligned.read(
        compare(args.exp_dirs, args.split, evaluated=False), args.manifest_dir, args.split
    )
    least = 2 if args.kind == "preference" and not args.recordings else 1
    aligned.prompts = [p for p in aligned.prompts if p.made >= least]
    aligned.listen(args.num_prompts, args.max_seconds, args.download)
    content, key = make_test(
        aligned, args.kind, args.question, args.seed, args.text, args.recordings
    )
    key_path = args.out.with_suffix(".key.json")
    write_json(key_path, key | {"command": command_line("listen", ["make", *argv])}, checksum=True)
    write_text(args.out, render_template("listening_test.html", content=content))
    for remark in aligned.remarks:
        print(f"missing: {remark}")
    systems = sorted({clip["system"] for trial in key["trials"] for clip in trial["clips"]})
    print(f"{counted(len(key['trials']), 'trial')} about {', '.join(systems)}")
    megabytes = args.out.stat().st_size / 1e6
    print(f"{args.out} ({megabytes:.1f} MB), for raters; {key_path}, not for raters")
    return 0


def sum_up(argv: Sequence[str]) -> int:
    args = parse(SumArgs, "rvqlm listen", "Sum up what raters said in a listening test.", argv)
    from rvqlm.reports.listening_results import (
        compare_systems,
        describe,
        grade_systems,
        read_results,
    )

    if not args.results:
        raise UserError("give the files that raters saved, or: rvqlm listen make --help")
    results = read_results(args.results, args.key)
    for remark in results.remarks:
        print(remark, file=sys.stderr)
    print("\n".join(describe(results)))
    if args.out:
        graded = results.key["kind"] == "rating"
        figures = {
            "test": results.key["test"],
            "question": results.key["question"],
            "raters": [{"name": r.name, "answers": len(r.answers)} for r in results.raters],
            "trials": len(results.key["trials"]),
            "grades": [dataclasses.asdict(g) for g in grade_systems(results)] if graded else [],
            "comparisons": [dataclasses.asdict(c) for c in compare_systems(results)],
            "remarks": results.remarks,
        }
        write_json(args.out, figures)
        print(f"wrote {args.out}")
    return 0


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    return make(argv[1:]) if argv[:1] == ["make"] else sum_up(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "listen")


if __name__ == "__main__":
    sys.exit(main())
