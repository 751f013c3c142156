#!/usr/bin/env python3
"""``rvqlm validate``: check a token directory and print what is in it.

    rvqlm validate --manifest-dir data/tokens --max-duration 150

Checks the size and checksum of every shard, that every index is that of its manifest, the columns
of texts, notes and sources, that all codes are codes of the codec and that splits share nothing;
names the files of earlier versions that have no checksum; prints hours, durations, codes used
and unigram entropy per level, and the padding of the epoch plan; writes them to ``stats.json``
for the report. Exit status 2 when something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import counted, parse, run_main
from rvqlm.codec_info import CodecInfo
from rvqlm.data.plan import PlanConfig
from rvqlm.data.stats import inspect
from rvqlm.errors import UserError
from rvqlm.files import write_json


@dataclass
class Args:
    manifest_dir: Path
    """Token directory with indexed splits."""
    plan: PlanConfig
    checksums: bool = True
    """Read every shard to compare its checksum; without, only sizes are compared."""


def table(report: dict) -> str:
    """The report as lines of text."""
    info = CodecInfo.from_dict(report["codec"])
    lines = [
        f"codec {info.name} [{info.fingerprint}]: {info.num_codebooks} x {info.codebook_size}, "
        f"{info.sampling_rate} Hz, hop {info.hop}, {float(info.frame_rate):.2f} frames/s, "
        f"{info.bitrate:.0f} bits/s",
        "",
        f"{'split':<8}{'cuts':>10}{'hours':>10}{'shortest':>10}{'median':>9}{'p95':>8}"
        f"{'longest':>9}  seconds",
    ]
    for name, s in report["splits"].items():
        d = s["duration"]
        lines.append(
            f"{name:<8}{s['cuts']:>10,}{s['hours']:>10.2f}{d['p0']:>10.2f}{d['p50']:>9.2f}"
            f"{d['p95']:>8.2f}{d['p100']:>9.2f}"
        )
    for key, title, form in (
        ("codes_used", f"codes used per level (of {info.codebook_size})", "{:>7d}"),
        ("entropy_bits", "unigram entropy per level, bits", "{:>7.2f}"),
    ):
        lines += ["", title]
        for name, s in report["splits"].items():
            levels = "".join(form.format(x) for x in s[key])
            total = f"   {s['unigram_bits_per_second']:,.0f} bits/s" if "bits" in key else ""
            lines.append(f"{name:<8}{levels}{total}")
    lines += ["", "batches of one epoch"]
    for name, s in report["splits"].items():
        p = s["plan"]
        lines.append(
            f"{name:<8} recordings of up to {s['duration']['p100']:.2f} s, more than the default "
            "--max-duration: train with --window-frames or --crop-frames, or raise it"
            if p is None
            else f"{name:<8}{p['batches']:>8,} batches, {p['mean_cuts_per_batch']:.1f} items each, "
            f"padding {p['padding']:.2%}, largest {p['largest_batch_seconds']:.2f} s "
            f"of {p['max_duration']:g} s"
        )
    return "\n".join(lines)


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm validate", "Check a token directory and describe it.", argv)
    report = inspect(args.manifest_dir, args.plan, args.checksums)
    path = args.manifest_dir / "stats.json"
    write_json(path, report, checksum=True)
    print(table(report))
    if without := report["without_checksum"]:
        more = f" and {len(without) - 6} more" * (len(without) > 6)
        print(f"\nno checksum on record: {', '.join(without[:6])}{more} (of an earlier version)")
    problems = report["problems"]
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise UserError(f"{counted(len(problems), 'problem')} in {args.manifest_dir}, listed above")
    print(f"\nno problems found; statistics in {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "validate")


if __name__ == "__main__":
    sys.exit(main())
