#!/usr/bin/env python3
"""``rvqlm recognize``: whether speech says what it should, by a recogniser of codes.

    rvqlm recognize --recognizer exp/recognizer --samples exp/tts/samples
    rvqlm recognize --recognizer exp/recognizer --manifest-dir data/tokens --split test

The first transcribes samples of rvqlm generate that were given a text; the second real recordings,
which is what the first is to be compared with. A recogniser is trained with ``rvqlm trainer
--model-name recognizer``. Writes recognition.json beside the samples, EXP/recognition_SPLIT.json
for a split; with --bigram, ..._bigram.json, which reports do not take for what was heard.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rvqlm.cli import command_line, counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import write_text
from rvqlm.frontends.aligned import sounds
from rvqlm.frontends.symbols import read_symbol
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.inference.recognize import (
    RecognizeConfig,
    find_samples,
    read_bigram,
    recognize_cuts,
    recognize_samples,
)
from rvqlm.metrics.recognition import summarize
from rvqlm.models.recognizer import Recognizer
from rvqlm.runtime import tune_malloc


def _run(argv: Sequence[str] | None) -> int:
    description = "Error rate of speech against the text that it should say."
    config = parse(RecognizeConfig, "rvqlm recognize", description, argv)
    config.check()
    tune_malloc()
    model, path, state, device = config.model.load(config.recognizer)
    if not isinstance(model, Recognizer):
        raise UserError(
            f"--recognizer {path}: this is a {model.name}; train a recogniser with rvqlm trainer "
            "--model-name recognizer"
        )
    with_bigram = "_bigram" if config.bigram else ""
    if config.samples:
        wavs = find_samples(config.samples)
        out = wavs[0].parent / f"recognition{with_bigram}.json"
    else:
        suffix = "_audio" if config.through_audio else ""
        name = f"recognition_{config.split}{suffix}{with_bigram}.json"
        out = (path if path.is_dir() else path.parent) / name
    out = Path(config.out) if config.out else out
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}; make it first")
    bigram, about_bigram = read_bigram(config, model, str(path))
    if config.samples:
        about = {"samples": list(config.samples)}
        found = recognize_samples(wavs, model, config.codec or None, device, bigram)
    else:
        about = {
            "manifest_dir": config.manifest_dir,
            "split": config.split,
            "through_audio": config.through_audio,
        }
        found = recognize_cuts(config, model, str(path), device, bigram)
    front_end = TextFrontEnd.from_info(model.conditions["text"])
    table = front_end.table
    rows = [item.row(front_end.decode, table.__getitem__) for item in found]
    for row in rows if config.samples else ():
        errors, symbols = counted(row["errors"], "error"), counted(row["symbols"], "symbol")
        print(f"{row['name']}  {errors} in {symbols}")
        print(f"  reference   {row['reference']}\n  recognized  {row['recognized']}")
    if about_bigram:
        texts = counted(about_bigram["texts"], "text")
        print(f"decoded with a bigram of {texts}, weight {config.bigram:g}: no judgement of speech")
    silent = {id for id in table.ids if not sounds(read_symbol(table[id]))}
    summary = summarize(found, silent)
    print(describe(summary))
    result = {
        **about,
        **summary,
        "decoding": "bigram" if bigram else "greedy",
        "bigram": about_bigram,
        "recognizer": str(path),
        "step": int(state["step"]),
        "codec": model.info.to_dict(),
        "command": command_line("recognize", argv),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {out}")
    return 0


def written_rate(rate: dict) -> str:
    """A result of `error_rate`."""
    low, high = rate["interval"] or (None, None)
    within = "" if low is None else f" (95 %: {low:.1%} to {high:.1%})"
    return f"{rate['error_rate']:.1%}{within}"


def describe(summary: dict) -> str:
    """Lines for all items."""
    of, items = summary["symbols"], counted(summary["items"], "item")
    lines = [
        f"error rate {written_rate(summary)} of {counted(of, 'symbol')} in {items}: "
        f"{summary['substitutions'] / of:.1%} substitutions, "
        f"{summary['deletions'] / of:.1%} deletions, {summary['insertions'] / of:.1%} insertions"
    ]
    if (alone := summary["sounds"]) is not None:
        lines.append(f"without word boundaries and punctuation: {written_rate(alone)}")
    if summary["chance"] is not None:
        found, of = summary["identified"]
        lines.append(
            f"against the texts of other items, by chance: {summary['chance']:.1%}; nearer to its "
            f"own text than to any other's: {found} of {counted(of, 'item')}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "recognize")


if __name__ == "__main__":
    sys.exit(main())
