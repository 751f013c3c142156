#!/usr/bin/env python3
"""`rvqlm generate`: new audio from a trained model.

Continues audio files (``--prompt a.wav b.wav``) or held-out cuts (``--manifest-dir DIR
--num-prompts 4``), or makes audio unprompted, or from the conditions that the model was trained
with (``--text "Good morning."``; with ``--manifest-dir``, those of the cuts); or fills a gap in a
recording (``--prompt a.wav --infill 1.5-2.5``). Each sample is a wav and a JSON of the same name
that says how it was made and what it measures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvqlm.cli import command_line, parse, run_main
from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.files import names_in
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.inference.speech import RECORDED
from rvqlm.locks import locked
from rvqlm.modules.packed import with_weights_in
from rvqlm.runtime import pick_precision, tune_malloc


@dataclass
class FileArgs(OutputArgs):
    """Output"""

    out_dir: str = ""
    """Where to write; empty: EXP/samples (beside a checkpoint file: its directory's samples)."""
    overwrite: bool = False
    """Replace samples of the same names. Without it new ones get the next free numbers."""


@dataclass
class GenerateArgs:
    exp_dir: str
    """Directory of a training, or a checkpoint file."""
    codec: str = ""
    """Codec for prompts and for the audio, by name or directory; empty: the one named in the
    checkpoint. Must be the same codec, wherever it lies."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights: half as many bytes to read in every step; auto: bf16 where the hardware
    has it."""
    model: ModelArgs = field(default_factory=ModelArgs)
    prompts: PromptArgs = field(default_factory=PromptArgs)
    output: FileArgs = field(default_factory=FileArgs)
    conditions: ConditionArgs = field(default_factory=ConditionArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)


def check(args: GenerateArgs) -> None:
    problems = [*args.sampling.problems(), *args.demask.problems(), *args.speech.problems()]
    problems += args.conditions.problems()
    if args.conditions.durations and args.speech != SpeechConfig():
        problems.append("--speed and --duration-temperature do nothing with --durations")
    if RECORDED in args.conditions.durations and not args.prompts.manifest_dir:
        problems.append(f"--durations {RECORDED} goes with --manifest-dir")
    if args.prompts.prompt and args.prompts.manifest_dir:
        problems.append("--prompt and --manifest-dir exclude each other")
    for flag, value in [
        ("--seconds", args.output.seconds),
        ("--num-samples", args.output.num_samples),
        ("--batch-size", args.output.batch_size),
        ("--num-prompts", args.prompts.num_prompts),
        ("--voice-seconds", args.conditions.voice_seconds),
    ]:
        if value <= 0:
            problems.append(f"{flag} {value} must be positive")
    start = args.conditions.midi_start
    if not 0 <= start < float("inf") or (start and not args.conditions.midi):
        problems.append(f"--midi-start {start} must be a second of --midi files, from 0")
    seconds = args.prompts.prompt_seconds
    if seconds < 0 or (seconds == 0 and args.prompts.prompt):
        problems.append(f"--prompt-seconds {seconds} must be positive")
    if not 0 <= args.output.min_seconds <= args.output.seconds:
        problems.append("--min-seconds must lie between 0 and --seconds")
    if args.prompts.infill:
        if not (args.prompts.prompt or args.prompts.manifest_dir):
            problems.append("--infill goes with --prompt or --manifest-dir")
        plain = {"seconds": args.output, "min_seconds": args.output, "prompt_seconds": args.prompts}
        for name, group in plain.items():
            if getattr(group, name) != getattr(type(group), name):
                problems.append(f"--{name.replace('_', '-')} does nothing with --infill")
    if problems:
        raise UserError("; ".join(problems))


def run(argv: Sequence[str] | None) -> int:
    description = "Make new audio from a trained model."
    args = parse(GenerateArgs, "rvqlm generate", description, argv)
    check(args)
    tune_malloc()
    from tqdm import tqdm

    out, exp = args.output, Path(args.exp_dir)
    model, _, state, device = args.model.load(args.exp_dir)
    dtype = pick_precision(args.precision, device)
    model = with_weights_in(model, dtype)
    codec = load_codec_like(model.info, args.codec or None, device)
    new_frames = max(1, round(out.seconds * float(model.info.frame_rate)))
    prompts = read_prompts(args.prompts, args.conditions, model, codec, new_frames, out.seed)
    folder = Path(out.out_dir or (exp if exp.is_dir() else exp.parent) / "samples")
    about = {
        "model": model.name,
        "checkpoint": args.model.checkpoint if exp.is_dir() else str(exp),
        "step": int(state["step"]),
        "precision": str(dtype).removeprefix("torch."),
        "command": command_line("generate", argv),
    }
    with (
        locked(folder, "rvqlm generate", make=True),
        tqdm(unit="step", desc="generate", leave=False) as bar,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        taken = () if out.overwrite else names_in(folder)
        request = SampleRequest(prompts, out, args.sampling, args.demask, args.speech, taken)
        for sample in generate(model, codec, request, about, bar.update):
            row = sample.about
            for warning in sample.warnings:
                tqdm.write(f"{sample.name}: {warning}", file=sys.stderr)
            tqdm.write(
                f"{sample.write(folder)}  {row['seconds']:.2f} s, stopped by {row['stop']}, "
                f"silence {row['silence_ratio']:.2f}, repetition {row['repetition_ratio']:.2f}, "
                f"{row['real_time_factor']:.2f}x real time"
            )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="generate")


if __name__ == "__main__":
    sys.exit(main())
