#!/usr/bin/env python3
"""`rvqlm generate`: new audio from a trained model.

Continues audio files (``--prompt a.wav b.wav``) or held-out cuts (``--manifest-dir DIR
--num-prompts 4``), or makes audio from nothing, or from what the model was trained to hear
(``--text "Good morning."``; with ``--manifest-dir``, what the cuts have). Each sample is a wav and
a JSON of the same name that says how it was made and what it measures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.inference.conditions import ConditionArgs


@dataclass
class ModelArgs:
    """Model"""

    exp_dir: str
    """Directory of a training, or a checkpoint file."""
    checkpoint: str = "best"
    """best, latest, or the path of a checkpoint file."""
    ema: bool = True
    """Use the averaged weights where the training kept them."""
    codec: str = ""
    """Codec for prompts and for the audio, by name or directory; empty: the one named in the
    checkpoint. Must be the same codec, wherever it lies."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_threads: int = 0
    """CPU threads; 0: as many as cores."""


@dataclass
class PromptArgs:
    """Prompts (none of these: unprompted)"""

    prompt: tuple[str, ...] = ()
    """Audio files to continue."""
    manifest_dir: str = ""
    """Token directory to take prompts from."""
    split: str = "test"
    """Split of the token directory."""
    num_prompts: int = 4
    """How many cuts of the split to continue, at most; drawn by --seed."""
    prompt_seconds: float = 3.0
    """How much of each prompt the model hears. 0 with --manifest-dir: none of the cuts, only the
    conditions that belong to them."""


@dataclass
class OutputArgs:
    """Output"""

    seconds: float = 5.0
    """Longest new audio per sample, after the prompt; the model may end sooner."""
    min_seconds: float = 0.0
    """The model may not end before this much new audio."""
    num_samples: int = 1
    """Samples per prompt, or in all when unprompted."""
    out_dir: str = ""
    """Where to write; empty: EXP/samples (beside a checkpoint file: its directory's samples)."""
    batch_size: int = 8
    """Samples decoded together."""
    seed: int = 0
    """Of the draws; sample i of a call depends on this and i alone."""


@dataclass
class GenerateArgs:
    model: ModelArgs
    prompts: PromptArgs = field(default_factory=PromptArgs)
    output: OutputArgs = field(default_factory=OutputArgs)
    conditions: ConditionArgs = field(default_factory=ConditionArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)


def check(args: GenerateArgs) -> None:
    problems = [*args.sampling.problems(), *args.demask.problems()]
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
    seconds = args.prompts.prompt_seconds
    if seconds < 0 or (seconds == 0 and args.prompts.prompt):
        problems.append(f"--prompt-seconds {seconds} must be positive")
    if not 0 <= args.output.min_seconds <= args.output.seconds:
        problems.append("--min-seconds must lie between 0 and --seconds")
    if problems:
        raise UserError("; ".join(problems))


def run(argv: Sequence[str] | None) -> int:
    description = "Make new audio from a trained model."
    args = parse(GenerateArgs, "rvqlm generate", description, argv)
    check(args)
    command = command_line("generate", argv)

    from rvqlm.runtime import pick_device, tune_malloc

    tune_malloc()
    import torch

    from rvqlm.checkpoints.loading import load_model
    from rvqlm.codecs.registry import load_codec_like
    from rvqlm.inference import prompts as prompts_module
    from rvqlm.inference.conditions import from_arguments

    if args.model.num_threads:
        torch.set_num_threads(args.model.num_threads)
    device = pick_device(args.model.device)
    exp = Path(args.model.exp_dir)
    model, info, checkpoint = load_model(exp, args.model.checkpoint, device, args.model.ema)
    codec = load_codec_like(info, args.model.codec or None, device)
    rate = float(info.frame_rate)
    p = args.prompts
    prompt_frames = round(p.prompt_seconds * rate)
    if p.prompt_seconds:
        prompt_frames = max(1, prompt_frames)
    if p.prompt:
        starts = prompts_module.from_audio(list(p.prompt), codec, prompt_frames)
    elif p.manifest_dir:
        starts = prompts_module.from_tokens(
            p.manifest_dir,
            p.split,
            p.num_prompts,
            prompt_frames,
            model,
            args.output.seed,
            args.conditions.voice_seconds,
        )
    else:
        starts = []
    longest = prompt_frames + max(1, round(args.output.seconds * rate))
    given = from_arguments(args.conditions, model.conditions, codec, longest)
    starts = prompts_module.combine(starts, given, info)
    jobs = prompts_module.jobs(starts, args.output.num_samples)
    out_dir = Path(args.output.out_dir or (exp if exp.is_dir() else exp.parent) / "samples")
    out_dir.mkdir(parents=True, exist_ok=True)
    about = {
        "model": model.name,
        "checkpoint": args.model.checkpoint if exp.is_dir() else str(exp),
        "step": int(checkpoint["step"]),
        "codec": info.to_dict(),
        "settings": {
            **vars(args.sampling),
            **{k: v for k, v in vars(args.demask).items() if v is not None},
        },
        "seed": args.output.seed,
        "command": command,
    }
    for start in range(0, len(jobs), args.output.batch_size):
        batch = jobs[start : start + args.output.batch_size]
        for path, row in _make(model, codec, batch, args, about, out_dir):
            print(
                f"{path}  {row['seconds']:.2f} s, stopped by {row['stop']}, silence "
                f"{row['silence_ratio']:.2f}, repetition {row['repetition_ratio']:.2f}, "
                f"{row['real_time_factor']:.2f}x real time"
            )
    return 0


def _make(model, codec, batch, args: GenerateArgs, about: dict, out_dir: Path):
    """Generate, decode and write one batch; yields (path, JSON row)."""
    import torch
    from tqdm import tqdm

    from rvqlm.codecs.chunking import decode_long
    from rvqlm.inference.conditions import pad
    from rvqlm.inference.files import write_sample
    from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio

    info, rate = model.info, float(model.info.frame_rate)
    new = max(1, round(args.output.seconds * rate))
    least = round(args.output.min_seconds * rate)
    lengths = torch.tensor([len(p.codes) for _, p, _ in batch])
    codes = torch.nn.utils.rnn.pad_sequence([p.codes for _, p, _ in batch], batch_first=True)
    passes = 0
    began = time.perf_counter()
    with tqdm(unit="step", desc=f"generate x{len(batch)}", leave=False) as bar:

        def progress(done: int) -> None:
            nonlocal passes
            passes = done
            bar.update()

        made = model.generate(
            codes,
            lengths,
            min_frames=lengths + least,
            limits=lengths + new,
            sampling=args.sampling,
            demask=args.demask,
            conditions=pad([p.given for _, p, _ in batch], model.conditions),
            seed=args.output.seed,
            rows=[i for i, _, _ in batch],
            progress=progress,
        )
    elapsed = time.perf_counter() - began
    fresh = int((made.lengths - made.prompt_lengths).sum()) / rate
    for (_, prompt, name), item, stop in zip(batch, made.items(), made.stop):
        # a continuation stays as loud as its prompt ended, where a codec keeps loudness apart
        scales = codec.scales_for(len(item), prompt.scales)
        audio = decode_long(codec, item.to(codec.device), scales=scales)  # (C, S)
        heard = len(prompt.codes)
        row = {
            "kind": prompt.kind,
            **about,
            "prompt": prompt.source,
            "conditions": prompt.given.about,
            "prompt_seconds": heard / rate,
            "seconds": len(item) / rate,
            "stop": stop,
            # of what the model made, not of what it heard
            "silence_ratio": silence_ratio(audio[:, info.num_samples(heard) :], info.sampling_rate),
            "repetition_ratio": repetition_ratio(item[heard:]),
            # of all items of the batch together
            "batch_size": len(batch),
            "passes": passes,
            "generation_seconds": elapsed,
            "real_time_factor": fresh / elapsed,
        }
        yield write_sample(out_dir / f"{name}.wav", audio, info.sampling_rate, row), row


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="generate")


if __name__ == "__main__":
    sys.exit(main())
