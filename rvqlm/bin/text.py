#!/usr/bin/env python3
"""``rvqlm text``: the texts of the cuts as symbol ids, for models that speak them.

    rvqlm text --manifest-dir data/tokens --type phonemes --language en-us

Writes ``text_SPLIT.bin`` beside each index, ``text.json`` and the table ``tokens.txt``. The same
command again has nothing to do; another one makes all anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rvqlm.cli import parse, run_main

if TYPE_CHECKING:  # the processes that run espeak import this file again: torch would be a burden
    from rvqlm.frontends.text_config import TextConfig
    from rvqlm.frontends.text_prepare import TextReport


def _run(argv: Sequence[str] | None) -> int:
    from rvqlm.frontends.text_config import TextConfig
    from rvqlm.frontends.text_prepare import prepare_text, preview

    description = "Make symbols of the texts of a token directory, for text to speech."
    config = parse(TextConfig, "rvqlm text", description, argv)
    if config.dry_run:
        print("\n".join(preview(config)))
    else:
        print(_describe(config, prepare_text(config)))
    return 0


def _describe(config: TextConfig, report: TextReport) -> str:
    info = report.info
    lines = [
        f"{info.settings['type']}: {info.sizes[0]} symbols, {info.rate:.2f} frames each  "
        f"{config.manifest_dir / 'tokens.txt'}"
    ]
    for name, split in report.splits.items():
        line = f"  {name:<6} {split.cuts:>9,} cuts  {split.symbols:>11,} symbols"
        if split.without:
            line += f"  {split.without:,} cuts without text"
        if split.unknown:
            what = "as <unk>" if info.settings["type"] == "bpe" else "left out"
            line += f"  {split.unknown:,} unknown symbols {what}"
        lines.append(line)
    if report.up_to_date:
        lines.append("up to date")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "text")


if __name__ == "__main__":
    sys.exit(main())
