#!/usr/bin/env python3
"""``rvqlm evaluate``: what a trained model needs to code a split, and what a unigram would.

    rvqlm evaluate --exp-dir exp/small --manifest-dir data/tokens --split test

Prints the figures and writes them to EXP_DIR/eval_SPLIT.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from rvqlm.cli import command_line, flatten, kebab, parse, run_main
from rvqlm.errors import UserError
from rvqlm.runtime import tune_malloc


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
    checkpoint: str = "best"
    """best, latest or a path."""
    ema: bool = True
    """Averaged weights, where the training kept them."""
    prompt_fraction: float = 0.0
    """Share of each cut that is heard as a prompt and not scored; models that train on prompts are
    best compared so."""
    max_duration: float = 0.0
    """Seconds of audio in a batch; 0: as in training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively."""
    num_threads: int = 0
    """CPU threads; 0: torch's choice."""


def main(argv: Sequence[str] | None = None) -> int:
    tune_malloc()
    return run_main(_main, argv)


def _main(argv: Sequence[str] | None) -> int:
    config = parse(
        EvaluateConfig, "rvqlm evaluate", "Loss and bits per second of a model on a split.", argv
    )
    result = evaluate(config)
    result["command"] = command_line("evaluate", argv)
    print_result(result)
    return _write(result, Path(config.exp_dir) / f"eval_{config.split}.json")


def evaluate(config: EvaluateConfig) -> dict:
    """Everything that goes into ``eval_SPLIT.json`` but the command."""
    import torch

    from rvqlm import runtime
    from rvqlm.batch import PAD, Batch
    from rvqlm.checkpoints.loading import find_checkpoint, load_model
    from rvqlm.codec_info import CodecInfo
    from rvqlm.data.conditions import open_conditions
    from rvqlm.data.index import TokenDataset
    from rvqlm.data.loader import TokenLoader
    from rvqlm.data.plan import PlanConfig
    from rvqlm.metrics import losses
    from rvqlm.training.config import TrainerConfig

    if config.max_duration < 0 or config.num_threads < 0:
        raise UserError("--max-duration and --num-threads: at least 0")
    if not 0 <= config.prompt_fraction < 1:
        raise UserError(f"--prompt-fraction {config.prompt_fraction}: in [0, 1)")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = runtime.pick_device(config.device)
    dtype = runtime.pick_precision(config.precision, device)
    path = find_checkpoint(config.exp_dir, config.checkpoint)
    model, info, state = load_model(path, device=device, use_ema=config.ema)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; use rvqlm recognize")
    levels = info.num_codebooks
    held_out = TokenDataset.open(config.manifest_dir, config.split, num_codebooks=levels)
    info.require_same(held_out.info, str(path), config.manifest_dir)
    train = TokenDataset.open(config.manifest_dir, config.unigram_split, num_codebooks=levels)

    # an exported model need not have those of its training
    flags = flatten(TrainerConfig("", "")) | state["config"]
    seconds = flags["condition-prompt-seconds"]
    heard = open_conditions(held_out, list(model.conditions), seconds, flags["seed"])
    for kind, condition in model.conditions.items():
        condition.require_same(heard.infos[kind], str(path), config.manifest_dir)
    plan = PlanConfig(
        **{f.name: flags[kebab(f.name)] for f in fields(PlanConfig) if kebab(f.name) in flags}
    )
    plan = plan.for_validation()
    if config.max_duration:
        plan = replace(plan, max_duration=config.max_duration)
    loader = TokenLoader(held_out, plan, seed=0, conditions=heard)
    counts = losses.count_codes([], CodecInfo.from_dict(info.to_dict()))
    cuts = set()

    def counted() -> Iterator[Batch]:
        for batch in loader.epoch_batches():
            batch.prompt_lengths = (batch.lengths * config.prompt_fraction).long()
            codes = batch.codes.masked_fill(~batch.scored()[..., None], PAD)
            counts[:] += losses.count_codes([codes.numpy()], info)
            cuts.update(batch.index.tolist())
            yield batch

    totals = losses.evaluate_batches(model, counted(), info, device, dtype)
    metrics = totals.metrics(info.frame_rate)
    of_train = losses.count_codes((train.view(row) for row in range(len(train))), info)
    unigram = losses.unigram_nats(of_train, counts)
    return {
        "split": config.split,
        "checkpoint": str(path),
        "step": state["step"],
        "cuts": len(cuts),
        "prompt_fraction": config.prompt_fraction,
        **metrics,
        "bound": not model.exact_likelihood,
        "unigram_nats": unigram,
        "unigram_bits_per_second": losses.bits_per_second(unigram, info.frame_rate),
    }


def print_result(result: dict) -> None:
    if result["bits_per_second"] is None:
        raise UserError(f"{result['checkpoint']}: only some levels are trained; train the others")
    bound = "at most " if result["bound"] else ""
    print(
        f"{result['split']}: {result['cuts']} cuts, {result['frames']} frames, "
        f"{result['checkpoint']} (step {result['step']})"
    )
    print("level   nats  unigram  accuracy")
    rows = zip(result["nats"], result["unigram_nats"], result["accuracy"])
    for level, (nats, unigram, accuracy) in enumerate(rows):
        print(f"{level:5d} {nats:6.3f}   {unigram:6.3f}    {accuracy:6.2%}")
    print(
        f"loss {result['loss']:.4f} nats/code; {bound}{result['bits_per_second']:,.0f} bits/s, "
        f"unigram {result['unigram_bits_per_second']:,.0f}"
    )


def _write(result: dict, path: Path) -> int:
    from rvqlm.files import atomic_write

    atomic_write(path, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
