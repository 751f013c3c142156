#!/usr/bin/env python3
"""``rvqlm evaluate``: what a trained model needs to code a split, and what a unigram would.

    rvqlm evaluate --exp-dir exp/small --manifest-dir data/tokens --split test

Prints the figures and writes them to EXP_DIR/eval_SPLIT.json, with --without text to
eval_SPLIT_without_text.json, with --weights int8 to eval_SPLIT_int8.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import command_line, counted, parse, run_main
from rvqlm.files import write_json
from rvqlm.inference.evaluate import EvaluateConfig, evaluate_split
from rvqlm.runtime import tune_malloc

APART = ("conditions", "without", "unigram_nats", "previous_frame_nats", "calibration_error")
"""Lists of a result that are no columns of their own place, or not of levels."""


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
        + (", weights in 8 bits" if result["weights"] == "int8" else "")
    )
    columns = {"nats": "6.3f", "error": "6.3f", "unigram_nats": "8.3f", "previous": "9.3f"}
    columns |= {"accuracy": "9.2%", "calibration": "7.2%", "surer": "+7.2%"}
    levels = [None] * len(result["nats"])
    by_level = {**result, "error": unsure["nats"]}
    by_level["previous"] = result["previous_frame_nats"] or levels
    by_level |= {"calibration": result["calibration_error"], "surer": result["overconfidence"]}
    known = (k for k, v in result.items() if isinstance(v, list) and k not in APART)
    columns |= {k: "8.4f" for k in known if k not in (*columns, "overconfidence")}
    others = [f"{name:>8}" for name in list(columns)[7:]]
    print("level   nats     +-  unigram  previous  accuracy  calib.  surer", *others)
    for level, row in enumerate(zip(*(by_level[name] for name in columns))):
        cells = (
            f"{value:{form}}" if value is not None else "-".rjust(int(form[:-2].split(".")[0]))
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
    print_references(result)
    if "free_running" in result:
        print_free_running(result["free_running"])


def print_references(result: dict) -> None:
    """What needs no training beside the model."""
    previous, gain = result["previous_frame_bits_per_second"], result["gain"]
    parts = [f"uniform {result['uniform_bits_per_second']:,.0f}"]
    parts.append(f"unigram {result['unigram_bits_per_second']:,.0f}")
    if previous is not None:
        parts.append(f"previous frame {previous:,.0f}")
    line = f"without a model: {', '.join(parts)} bits/s"
    if gain is not None:
        low, high = gain["interval"]
        line += f"; the model saves {gain['bits_per_second']:,.0f} of the last "
        line += f"({low:,.0f} to {high:,.0f}: 95 %, bootstrap over recordings)"
    print(line)


def print_free_running(found: dict) -> None:
    """Tables of `rvqlm.inference.free_running`."""
    print(
        f"free running: {counted(found['recordings'], 'recording')} continued behind "
        f"{found['prompt_seconds']:.2f} s, {counted(found['frames'], 'frame')}"
    )
    agreement, parts = found["agreement"], found["first_divergence"]
    print("greedy, codes of level 0 as recorded, by frames behind the prompt:")
    told = [row[0] for row in agreement["teacher_forced"] or []]
    alone = [row[0] for row in agreement["free_running"]]
    print("  from frame         ", *(f"{n:6d}" for n in agreement["frames"]))
    if told:
        print("  told the truth     ", *(f"{x:6.1%}" for x in told))
    print("  listening to itself", *(f"{x:6.1%}" for x in alone))
    print(
        f"  half part within {parts['median_frames']:g} frames ({parts['median_seconds']:.2f} s), "
        f"{parts['never']} never"
    )
    likelihood, codes = found["likelihood"], found["codes"]
    print("level  nats of own samples, recordings; codes used, entropy, KL (of recordings)")
    of, to = codes["samples"], codes["recordings"]
    for k, (own, real) in enumerate(zip(likelihood["own"], likelihood["real"])):
        nats = "  ".join("     -" if x is None else f"{x:6.3f}" for x in (own, real))
        print(
            f"{k:5d}  {nats}  {of['coverage'][k]:.1%} ({to['coverage'][k]:.1%})  "
            f"{of['entropy'][k]:.3f} ({to['entropy'][k]:.3f})  "
            f"{of['kl'][k]:.3f} ({to['kl'][k]:.3f})"
        )
    for name, kinds in found["shared_runs"].items():
        written = (f"{kind} {x['longest']} (mean {x['mean']:.1f})" for kind, x in kinds.items())
        print(f"longest run shared with training, {name.replace('_', ' ')}: {', '.join(written)}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
