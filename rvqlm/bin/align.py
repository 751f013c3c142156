#!/usr/bin/env python3
"""``rvqlm align``: when each symbol of a text is said, by a recogniser of codes.

    rvqlm align --manifest-dir data/tokens --recognizer exp/recognizer
    rvqlm align --manifest-dir data/tokens --import-from aligned/ --tier word
    rvqlm align --manifest-dir data/tokens --against supervisions
    rvqlm align --manifest-dir data/tokens --export textgrid --out-dir grids

Writes ``text-times_SPLIT.bin`` beside the symbols of each split, ``align.json``, and, worst first,
the texts that are likely not what is said: ``align_outliers_SPLIT.jsonl``. The same command again
has nothing to do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from rvqlm.cli import command_line, parse, run_main
from rvqlm.data.index import find_splits
from rvqlm.data.text_times import TextTimes
from rvqlm.exchange.alignments import open_items
from rvqlm.inference.align import (
    AlignConfig,
    ByItems,
    Record,
    align_split,
    compare,
    open_aligner,
    open_texts,
    outliers_path,
    read_outliers,
    up_to_date,
)
from rvqlm.inference.align_export import export
from rvqlm.inference.aligner import SplitTexts
from rvqlm.locks import locked
from rvqlm.runtime import tune_malloc

_SHOWN = 3  # outliers that are printed


def _run(argv: Sequence[str] | None) -> int:
    description = "Find out when each symbol of the texts of a token directory is said."
    config = parse(AlignConfig, "rvqlm align", description, argv)
    config.check()
    tune_malloc()
    directory = config.manifest_dir
    splits = [open_texts(directory, s) for s in find_splits(directory, config.splits)]
    if config.recognizer or config.import_from:
        with nullcontext() if config.dry_run else locked(directory, "rvqlm align"):
            _make(config, splits, command_line("align", argv))
    if config.dry_run:
        return 0
    if config.against:
        other = ByItems(open_items(config.against), config.against, config.tier)
        for texts in splits:
            found = compare(texts, TextTimes.open(texts.dataset, texts.column), other)
            print(
                f"  {texts.dataset.split:<6} against {config.against}: {found.boundaries:,} "
                f"boundaries in {found.cuts:,} cuts, median error {found.median_ms:.1f} ms, 90 % "
                f"below {found.p90_ms:.1f} ms, {found.bias_ms:+.1f} ms late in the middle"
                + (f"; {found.left_out:,} cuts left out" if found.left_out else "")
            )
    if config.export:
        for texts in splits:
            times = TextTimes.open(texts.dataset, texts.column)
            done = export(texts, times, config.export, config.out_dir)
            line = f"  {texts.dataset.split:<6} {done.cuts:>9,} cuts as {config.export}"
            for count, what in (
                (done.without, "without alignment"),
                (done.unwritten, "whose words are symbols: their text has another number"),
            ):
                line += f"; {count:,} {what}" if count else ""
            print(f"{line}  {config.out_dir}")
    return 0


def _make(config: AlignConfig, splits: list[SplitTexts], command: str) -> None:
    aligner, source = open_aligner(config)
    record = Record(config.manifest_dir)
    for texts in splits:
        split = texts.dataset.split
        ready = up_to_date(record, aligner, texts, config.worst)
        if config.dry_run:
            number = int((texts.column.lengths > 0).sum())
            what = "up to date" if ready else "would be aligned"
            print(f"  {split:<6} {number:>9,} cuts with text: {what}")
            continue
        if not ready:
            record.put(split, None)
            summary = align_split(aligner, texts, config.worst)
            about = {"made_by": aligner.about(), **source, "text": texts.column.mark()}
            record.put(split, {**about, **summary, "command": command})
        print(_describe(texts, record.splits[split], "up to date, " if ready else ""))


def _describe(texts: SplitTexts, entry: dict, state: str) -> str:
    outliers = read_outliers(texts.dataset)
    split, aligned, cuts = texts.dataset.split, entry["aligned"], entry["cuts"]
    line = f"  {split:<6} {state}{aligned:>9,} of {cuts:,} cuts aligned"
    if entry["without_text"]:
        line += f"; {entry['without_text']:,} without text"
    first = next((f": {o['id']}: {o['problem']}" for o in outliers if "problem" in o), "")
    if entry["not_aligned"]:
        line += f"; {entry['not_aligned']:,} not{first}"
    if "score" in entry:
        score, path = entry["score"], outliers_path(texts.dataset)
        line += (
            f"; {score['median']:.3f} nats a symbol in the middle, the worst {score['share']:.0%} "
            f"up to {score['worst']:.3f}: {path}"
        )
    worst = [o for o in outliers if "score" in o][:_SHOWN]
    return "\n".join([line, *(f"    {o['score']:.3f} {o['id']}: {o['text']}" for o in worst)])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "align")


if __name__ == "__main__":
    sys.exit(main())
