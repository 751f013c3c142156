#!/usr/bin/env python3
"""``rvqlm evaluate``: what a trained model needs to code a split, and what a unigram would.

    rvqlm evaluate --exp-dir exp/small --manifest-dir data/tokens --split test

Prints the figures and writes them to EXP_DIR/eval_SPLIT.json, with --without text to
eval_SPLIT_without_text.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import command_line, counted, parse, run_main
from rvqlm.files import write_json
from rvqlm.inference.evaluate import EvaluateConfig, evaluate_split
from rvqlm.runtime import tune_malloc

TEXTS = ("conditions", "without")
"""Lists of a result that are not of levels."""


def _run(argv: Sequence[str] | None) -> int:
    description = "Loss and bits per second of a model on a split."
    config = parse(EvaluateConfig, "rvqlm evaluate", description, argv)
    config.check()
    tune_malloc()
    result = {**evaluate_split(config), "command": command_line("evaluate", argv)}
    print_result(result)
    out = config.path()
    write_json(out, result, checksum=True)
    print(f"wrote {out}")
    return 0


def print_result(result: dict) -> None:
    """Figures by level, with the standard error of nats, and of all levels."""
    bound = "at most " if result["bound"] else ""
    unsure, lost = result["uncertainty"], result["texts_without_times"]
    cuts, frames = counted(result["cuts"], "cut"), counted(result["frames"], "frame")
    print(
        f"{result['split']}: {cuts}, {frames}, {result['checkpoint']} (step {result['step']})"
        + (f", {counted(result['eval_draws'], 'masking')} of each" if result["eval_draws"] else "")
        + (f", given {' and '.join(result['conditions'])}" if result["conditions"] else "")
        + (f" (not known of {counted(lost, 'text')})" if lost else "")
        + (f", without {' and '.join(result['without'])}" if result["without"] else "")
    )
    columns = {"nats": "6.3f", "error": "6.3f", "unigram_nats": "8.3f", "accuracy": "9.2%"}
    by_level = {**result, "error": unsure["nats"]}
    known = (k for k, v in result.items() if isinstance(v, list) and k not in TEXTS)
    columns |= {k: "8.4f" for k in known if k not in columns}
    print("level   nats     +-  unigram  accuracy", *(f"{name:>8}" for name in list(columns)[4:]))
    for level, row in enumerate(zip(*(by_level[name] for name in columns))):
        cells = (
            f"{value:{form}}" if value is not None else "-".rjust(int(form.split(".")[0]))
            for value, form in zip(row, columns.values())
        )
        print(f"{level:5d}", *cells)
    within = unsure["plus_minus"]
    print(
        f"loss {result['loss']:.4f} nats/code; {bound}{result['bits_per_second']:,.0f}"
        + (f" +- {within:,.0f}" if within is not None else "")
        + f" bits/s, unigram {result['unigram_bits_per_second']:,.0f}"
        + (" (+-: 95 %, over recordings)" if within is not None else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
