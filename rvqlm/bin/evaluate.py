#!/usr/bin/env python3
"""``rvqlm evaluate``: what a trained model needs to code a split, and what a unigram would.

    rvqlm evaluate --exp-dir exp/small --manifest-dir data/tokens --split test

Prints the figures and writes them to EXP_DIR/eval_SPLIT.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError
from rvqlm.inference.model_args import ModelArgs
from rvqlm.runtime import pick_precision, tune_malloc


@dataclass
class EvaluateConfig:
    """Flags of `rvqlm evaluate`."""

    exp_dir: str
    """Experiment of `rvqlm trainer`; the result is written there."""
    manifest_dir: str
    """Token directory, of the codec that the model was trained on."""
    split: str = "test"
    """Split to evaluate."""
    unigram_split: str = "train"
    """Split whose code frequencies are the yardstick."""
    prompt_fraction: float = 0.0
    """Share of each cut that is given as a prompt and not scored; models that train on prompts are
    best compared so."""
    max_duration: float = 0.0
    """Seconds of audio in a batch; 0: as in training."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively."""
    model: ModelArgs = field(default_factory=ModelArgs)

    def check(self) -> None:
        if self.max_duration < 0:
            raise UserError(f"--max-duration {self.max_duration}: at least 0")
        if not 0 <= self.prompt_fraction < 1:
            raise UserError(f"--prompt-fraction {self.prompt_fraction}: in [0, 1)")


def _run(argv: Sequence[str] | None) -> int:
    config = parse(
        EvaluateConfig, "rvqlm evaluate", "Loss and bits per second of a model on a split.", argv
    )
    config.check()
    tune_malloc()
    from rvqlm.files import atomic_write
    from rvqlm.inference.evaluate import evaluate_split

    model, path, state, device = config.model.load(config.exp_dir)
    dtype = pick_precision(config.precision, device)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; use rvqlm recognize")
    measured = evaluate_split(
        model, state["config"], str(path), config.manifest_dir, config.split,
        config.unigram_split, prompt_fraction=config.prompt_fraction,
        max_duration=config.max_duration, device=device, dtype=dtype,
    )  # fmt: skip
    result = {"split": config.split, "checkpoint": str(path), "step": state["step"], **measured}
    result["command"] = command_line("evaluate", argv)
    print_result(result)
    out = Path(config.exp_dir) / f"eval_{config.split}.json"
    atomic_write(out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    print(f"wrote {out}")
    return 0


def print_result(result: dict) -> None:
    if result["bits_per_second"] is None:
        raise UserError(f"{result['checkpoint']}: only some levels are trained; train the others")
    bound = "at most " if result["bound"] else ""
    print(
        f"{result['split']}: {result['cuts']} cuts, {result['frames']} frames, "
        f"{result['checkpoint']} (step {result['step']})"
    )
    columns = {"nats": "6.3f", "unigram_nats": "8.3f", "accuracy": "9.2%"}
    columns |= {k: "8.4f" for k, v in result.items() if isinstance(v, list) and k not in columns}
    print("level   nats  unigram  accuracy", *(f"{name:>8}" for name in list(columns)[3:]))
    for level, row in enumerate(zip(*(result[name] for name in columns))):
        cells = (f"{value:{form}}" for value, form in zip(row, columns.values()))
        print(f"{level:5d}", *cells)
    print(
        f"loss {result['loss']:.4f} nats/code; {bound}{result['bits_per_second']:,.0f} bits/s, "
        f"unigram {result['unigram_bits_per_second']:,.0f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
