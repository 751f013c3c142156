#!/usr/bin/env python3
"""``rvqlm text``: the texts of the cuts as symbol ids, for models that speak them.

    rvqlm text --manifest-dir data/tokens --type phonemes --language en-us

Writes ``text_SPLIT.bin`` beside each index, ``text.json`` and the table ``tokens.txt``. The same
command again has nothing to do; another one makes all anew.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rvqlm.cli import parse, run_main
from rvqlm.locks import locked

if TYPE_CHECKING:  # the processes that run espeak import this file again: torch would be a burden
    from rvqlm.frontends.text_column import SplitReport
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
        with locked(config.manifest_dir, "rvqlm text"):
            report = prepare_text(config)
        print(_describe(config, report))
    return 0


def _describe(config: TextConfig, report: TextReport) -> str:
    from rvqlm.frontends.text import TextSettings

    info = report.info
    bpe = info.settings["type"] == "bpe"
    lines = [
        f"{info.settings['type']}: {info.sizes[0]} symbols, {info.rate:.2f} frames each  "
        f"{config.manifest_dir / 'tokens.txt'}"
    ]
    for name, split in report.splits.items():
        lines += _of_split(config, name, split, "as <unk>" if bpe else "left out")
    languages = Counter()
    for split in report.splits.values():
        languages.update(split.languages)
    if languages:
        named = ", ".join(f"{tag} {count:,}" for tag, count in languages.most_common())
        lines.append(f"  cuts by language: {named}")
    if assumed := sum(split.assumed for split in report.splits.values()):
        lines.append(
            f"  no language named by {assumed:,} of them: {TextSettings.language} assumed, say "
            "another with --language"
        )
    if report.up_to_date:
        lines.append("up to date")
        if "normalization" not in info.settings:
            lines[-1] += (
                " (of an earlier version, which cleaned no texts; remove text.json to do so)"
            )
    return "\n".join(lines)


def _of_split(config: TextConfig, name: str, split: SplitReport, unknown: str) -> list[str]:
    line = f"  {name:<6} {split.cuts:>9,} cuts  {split.symbols:>11,} symbols"
    if split.without:
        line += f"  {split.without:,} without text"
    if split.left_out:
        line += f"  {split.left_out:,} left out"
    if split.unknown:
        line += f"  {split.unknown:,} unknown symbols {unknown}"
    lines = [line]
    if split.said:
        said = ", ".join(f"{count:,} {what}" for what, count in split.said.items())
        lines.append(f"         {said}")
    if split.named:
        lines.append(f"         {unknown}: {'; '.join(split.named[:3])}")
    if split.examples or split.named:
        file = config.manifest_dir / f"text_skipped_{name}.jsonl"
        few = "; ".join(split.examples)
        lines.append(f"         {few}{'; ' if few else ''}all in {file}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "text")


if __name__ == "__main__":
    sys.exit(main())
