#!/usr/bin/env python3
"""`rvqlm generate`: new audio from a trained model.

Continues audio files (``--prompt a.wav b.wav``) or held-out cuts (``--manifest-dir DIR
--num-prompts 4``), or makes audio unprompted, or from the conditions that the model was trained
with (``--text "Good morning."``; with ``--manifest-dir``, those of the cuts); or fills a gap in a
recording (``--prompt a.wav --infill 1.5-2.5``) or between two (``--infill a.wav b.wav --gap-seconds
1``). A table has many samples (``--prompts list.tsv``), and one call several requests::

    rvqlm generate --exp-dir E --seed 1 --each --text "Good morning." --each --prompt a.wav

Each sample is a wav and a JSON of the same name that says how it was made and what it measures.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rvqlm.cli import command_line, counted, flatten, parse, run_main
from rvqlm.codecs.registry import load_codec_like
from rvqlm.cores import FasterThreads
from rvqlm.errors import UserError
from rvqlm.exchange.wav import growing_wav
from rvqlm.files import write_json
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.batch_file import make_table
from rvqlm.inference.conditions import ConditionArgs, pad, pad_durations
from rvqlm.inference.files import names_in
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.model_args import DrawingArgs
from rvqlm.inference.prompts import Prompt, PromptArgs, read_prompts
from rvqlm.inference.sinks import loudspeaker, pipe
from rvqlm.inference.speech import RECORDED
from rvqlm.inference.stream import generate_streamed
from rvqlm.locks import locked
from rvqlm.runtime import tune_malloc


@dataclass
class FileArgs(OutputArgs):
    """Output"""

    out_dir: str = ""
    """Where to write; empty: EXP/samples (beside a checkpoint file: its directory's samples)."""
    overwrite: bool = False
    """Replace samples of the same names. Without it new ones get the next free numbers."""
    stream: Literal["", "file", "-", "play"] = ""
    """Let audio leave while it is made: into the files, which grow; - to stdout, one sample; or
    play on the loudspeaker (pip install 'rvqlm[play]'). The audio is the same."""
    stream_format: Literal["wav", "pcm"] = "wav"
    """Of --stream -: with a header that says no length, or 16-bit samples alone."""
    keep_partial: bool = False
    """With --stream file: let wavs grow under their own names, and keep what there is of one that
    is interrupted."""

    @property
    def to_files(self) -> bool:
        return self.stream in ("", "file")


@dataclass
class GenerateArgs:
    exp_dir: str
    """Directory of a training, or a checkpoint file."""
    codec: str = ""
    """Codec for prompts and for the audio, by name or directory; empty: the one named in the
    checkpoint. Must be the same codec, wherever it lies."""
    model: DrawingArgs = field(default_factory=DrawingArgs)
    prompts: PromptArgs = field(default_factory=PromptArgs)
    output: FileArgs = field(default_factory=FileArgs)
    conditions: ConditionArgs = field(default_factory=ConditionArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)


EACH = "--each"
"""Flags of one of several requests follow; those before the first are of all."""


def check(args: GenerateArgs) -> None:
    """:raises UserError: flags that do not go together."""
    problems = [*args.sampling.problems(), *args.demask.problems(), *args.speech.problems()]
    problems += [*args.conditions.problems(), *args.prompts.problems()]
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
    out = args.output
    if out.context_seconds is not None and not 0 < out.context_seconds < float("inf"):
        problems.append(f"--context-seconds {out.context_seconds} must be more than 0")
    if out.stream_format != "wav" and out.stream != "-":
        problems.append(f"--stream-format {out.stream_format} goes with --stream -")
    if not out.to_files and (out.out_dir or args.prompts.prompts):
        problems.append(
            f"--stream {out.stream} writes no files: --out-dir and --prompts do nothing"
        )
    if out.keep_partial and out.stream != "file":
        problems.append("--keep-partial goes with --stream file")
    if args.prompts.infill:
        plain = {"seconds": args.output, "min_seconds": args.output, "prompt_seconds": args.prompts}
        for name, group in plain.items():
            if getattr(group, name) != getattr(type(group), name):
                problems.append(f"--{name.replace('_', '-')} does nothing with --infill")
    if problems:
        raise UserError("; ".join(problems))


def check_table(args: GenerateArgs) -> None:
    """:raises UserError: flags that mean nothing beside a table, whose rows say it."""
    check(replace(args, conditions=replace(args.conditions, midi_start=0.0)))
    if args.output.num_samples != 1:
        raise UserError(f"--num-samples {args.output.num_samples}: a row of --prompts is a sample")
    per_row = {
        "--prompt": args.prompts.prompt,
        "--manifest-dir": args.prompts.manifest_dir,
        "--infill": args.prompts.infill,
        "--text": args.conditions.text,
        "--text-file": args.conditions.text_file,
        "--durations": args.conditions.durations,
    }
    if given := [flag for flag, value in per_row.items() if value]:
        raise UserError(f"{', '.join(given)}: with --prompts they are columns of its table")


def _with_windows(args: GenerateArgs) -> GenerateArgs:
    """--overlap-seconds beside --context-seconds are those of its windows."""
    overlap = args.demask.overlap_seconds
    if args.output.context_seconds is None or args.demask.chunk_seconds is not None:
        return args
    return replace(
        args,
        output=replace(args.output, context_overlap=overlap),
        demask=replace(args.demask, overlap_seconds=None),
    )


def requests(argv: Sequence[str]) -> list[GenerateArgs]:
    """What each request of a command line asks for; they share a model.

    :raises UserError: requests of several models, precisions or folders.
    """
    parts: list[list[str]] = [[]]
    for word in argv:
        parts.append([]) if word == EACH else parts[-1].append(word)
    common, *each = parts
    description = "Make new audio from a trained model."
    found = [
        _with_windows(parse(GenerateArgs, "rvqlm generate", description, common + part))
        for part in each or [[]]
    ]
    for args in found:
        check_table(args) if args.prompts.prompts else check(args)
        for name, value in _of_all(args).items():
            if value != _of_all(found[0])[name]:
                raise UserError(f"--{name}: one for all requests; give it before {EACH}")
    return found


def _of_all(args: GenerateArgs) -> dict:
    """The flags that requests share, by name."""
    own = {"exp-dir": args.exp_dir, "codec": args.codec, "out-dir": args.output.out_dir}
    return own | flatten(args.model)


class _Maker:
    """Makes the samples of requests, and counts what is likely to be wrong with them."""

    def __init__(self, args: GenerateArgs, command: str, bar):
        self.bar = bar
        self.model, _, state, self.device, how = args.model.load_to_draw(args.exp_dir)
        self.update = bar.update
        if args.model.num_threads == "auto" and self.device.type == "cpu":
            self.update = FasterThreads().watching(bar.update)
        self.codec = load_codec_like(self.model.info, args.codec or None, self.device)
        exp = Path(args.exp_dir)
        self.folder = Path(args.output.out_dir or (exp if exp.is_dir() else exp.parent) / "samples")
        self.about = {
            "model": self.model.name,
            "checkpoint": args.model.checkpoint if exp.is_dir() else str(exp),
            "step": int(state["step"]),
            **how,
            "command": command,
        }
        self.made: set[str] = set()
        self.warned: Counter[str] = Counter()

    def prompts(self, args: GenerateArgs) -> list[Prompt]:
        """What one request starts from; of a row of a table it is checked by itself, lest what is
        beside it in a batch decides whether it can be made."""
        out, info = args.output, self.model.info
        frames = max(1, round(out.seconds * float(info.frame_rate)))
        found = read_prompts(
            args.prompts, args.conditions, self.model, self.codec, frames, out.seed
        )
        for prompt in found if args.prompts.prompts else []:
            given = [prompt.given]
            request = make_request(
                info,
                self.device,
                prompt.codes[None],
                max_new_frames=frames,
                sampling=args.sampling,
                demask=args.demask,
                speech=args.speech,
                conditions=pad(given, self.model.conditions),
                durations=pad_durations(given),
            )
            request.suffix_codes = None if prompt.after is None else prompt.after[None]
            self.model.check_request(request)
        return found

    def make(
        self,
        args: GenerateArgs,
        prompts: list[Prompt],
        asked: dict[str, dict] | None = None,
        taken: Collection[str] = (),
    ) -> None:
        """Make and write samples; ``asked``: what each was asked for, by its name."""
        how = args.sampling, args.demask, args.speech
        request = SampleRequest(prompts, args.output, *how, taken)
        make = self._streamed if args.output.stream else self._written
        said = sys.stderr if args.output.stream == "-" else sys.stdout
        for name, row in make(request, asked or {}):
            self.made.add(name)
            for warning in row.get("warnings", []):
                self.warned[warning.split(":")[0]] += 1
                self.bar.write(f"{name}: {warning}", file=sys.stderr)
            heard = ""
            if row.get("first_audio_seconds") is not None:
                heard = f", heard after {row['first_audio_seconds']:.2f} s"
            place = f"{self.folder / name}.wav" if args.output.to_files else name
            self.bar.write(
                f"{place}  {row['seconds']:.2f} s, stopped by {row['stop']}, "
                f"silence {row['silence_ratio']:.2f}, repetition {row['repetition_ratio']:.2f}, "
                f"{row['real_time_factor']:.2f}x real time{heard}",
                file=said,
            )

    def _written(self, request: SampleRequest, asked: dict) -> Iterator[tuple[str, dict]]:
        for sample in generate(self.model, self.codec, request, self.about, self.update):
            if sample.name in asked:
                sample.about["asked"] = asked[sample.name]
            sample.write(self.folder)
            yield sample.name, sample.about

    def _streamed(self, request: SampleRequest, asked: dict) -> Iterator[tuple[str, dict]]:
        out, info = request.output, self.codec.info
        sound = info.sampling_rate, info.channels
        if out.stream == "-" and (number := len(request.jobs())) != 1:
            raise UserError(f"--stream -: one sample goes to stdout, and {number} are asked for")
        if out.stream == "-" and sys.stdout.isatty():
            raise UserError(
                "--stream -: stdout is a terminal, which audio means nothing to; pipe it"
            )

        def open_sink(name: str, most: int):
            if out.stream == "play":
                return loudspeaker(*sound)
            if out.stream == "-":
                return pipe(sys.stdout.buffer, out.stream_format, *sound)
            path = self.folder / f"{name}.wav"
            path.with_suffix(".json").unlink(missing_ok=True)
            return growing_wav(path, *sound, most, partial=out.keep_partial)

        slots = out.batch_size if out.to_files else 1
        how = self.model, self.codec, request, self.about, open_sink, slots, self.update
        for name, row in generate_streamed(*how):
            if name in asked:
                row["asked"] = asked[name]
            if out.to_files:
                path = self.folder / f"{name}.json"
                write_json(path, row, checksum=True)
            yield name, row

    def make_table(self, args: GenerateArgs) -> int:
        """Make the rows of a table that are not there; how many cannot be made."""

        def say(problem: str) -> None:
            self.bar.write(f"rvqlm generate: {problem}", file=sys.stderr)

        before = len(self.made)
        there, failed = make_table(self, args.prompts.prompts, args, check, say)
        made = counted(len(self.made) - before, "sample")
        self.bar.write(
            f"{args.prompts.prompts}: {made} made, {there} there before, {failed} failed"
        )
        return failed

    def say_warnings(self) -> None:
        if self.warned:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.warned.most_common())
            said = f"{counted(len(self.made), 'sample')}, of which {kinds}"
            self.bar.write(said, file=sys.stderr)


def run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and words[:1] == ["generate"]:
        words = words[1:]
    wanted = requests(words)
    tune_malloc()
    from tqdm import tqdm

    with tqdm(unit="step", desc="generate", leave=False, disable=None) as bar:
        maker = _Maker(wanted[0], command_line("generate", argv), bar)
        prompts = [[] if args.prompts.prompts else maker.prompts(args) for args in wanted]
        failed = 0
        with ExitStack() as stack:
            there: set[str] = set()
            if any(args.output.to_files for args in wanted):
                stack.enter_context(locked(maker.folder, "rvqlm generate", make=True))
                maker.folder.mkdir(parents=True, exist_ok=True)
                there = names_in(maker.folder)
            for args, given in zip(wanted, prompts):
                if args.prompts.prompts:
                    failed += maker.make_table(args)
                else:
                    taken = maker.made if args.output.overwrite else maker.made | there
                    maker.make(args, given, taken=taken)
        maker.say_warnings()
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="generate")


if __name__ == "__main__":
    sys.exit(main())
