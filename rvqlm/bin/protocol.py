#!/usr/bin/env python3
"""``rvqlm protocol``: lists of the field's evaluations.

    rvqlm protocol librispeech --corpus-dir LibriSpeech/test-clean --out-dir lists
    rvqlm protocol seed-tts --meta seedtts_testset/en/meta.lst --out-dir lists
    rvqlm protocol versa --samples exp/mine --out-dir scp

The first two write what is to be generated (rvqlm generate --prompts) and what it is then compared
with (rvqlm judge --references); the last writes samples as lists for the toolkit versa.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import dispatch, parse, run_main
from rvqlm.errors import UserError


@dataclass
class LibriSpeechArgs:
    corpus_dir: Path
    """A part of LibriSpeech as it is unpacked, such as LibriSpeech/test-clean."""
    out_dir: Path
    """Where to write the lists."""
    task: Literal["cross", "continuation"] = "cross"
    """cross: say an utterance in the voice of another of the speaker; continuation: go on from its
    beginning."""
    give: Literal["voice", "prompt"] = "voice"
    """Of cross: the other utterance as a voice (models with --conditions prompt), or as a prompt to
    continue, whose text comes first."""
    min_seconds: float = 4.0
    """Shortest utterance."""
    max_seconds: float = 10.0
    """Longest utterance, of prompts too."""
    seed: int = 0
    """Of the choice of the other utterance."""


@dataclass
class SeedTtsArgs:
    meta: Path
    """The list: lines of name, prompt text, prompt wav and text, apart by |."""
    out_dir: Path
    """Where to write the lists."""
    language: str = ""
    """Of the texts; empty: the name of the list's folder (en, zh)."""
    give: Literal["voice", "prompt"] = "voice"
    """The prompt as a voice, or as a prompt to continue, whose text comes first."""


@dataclass
class VersaArgs:
    samples: tuple[str, ...]
    """Experiments, folders of samples, or audio files."""
    out_dir: Path
    """Where to write pred.scp, gt.scp and text."""
    references: str = ""
    """Their recordings: a folder of audio or a table, as of rvqlm judge."""


def _librispeech(argv: Sequence[str] | None) -> int:
    from rvqlm.judging.protocols import librispeech

    args = parse(LibriSpeechArgs, "rvqlm protocol librispeech", "Lists of LibriSpeech.", argv)
    if not 0 <= args.min_seconds < args.max_seconds:
        raise UserError(f"--min-seconds {args.min_seconds:g}: less than --max-seconds")
    if args.task == "continuation" and args.give != "voice":
        raise UserError("--give prompt is for --task cross; a continuation has its own beginning")
    lengths = (args.min_seconds, args.max_seconds)
    tasks = librispeech(args.corpus_dir, args.task, args.give, *lengths, args.seed)
    name = f"librispeech-{args.corpus_dir.resolve().name}-{args.task}"
    if args.task == "cross":
        name += f"-{args.give}-seed{args.seed}"
    if lengths != (4.0, 10.0):
        name += f"-{lengths[0]:g}to{lengths[1]:g}s"
    return _write(args.out_dir, name, tasks)


def _seed_tts(argv: Sequence[str] | None) -> int:
    from rvqlm.judging.protocols import seed_tts

    args = parse(SeedTtsArgs, "rvqlm protocol seed-tts", "Lists of Seed-TTS eval.", argv)
    language = args.language or args.meta.resolve().parent.name
    if not args.language and language not in ("en", "zh"):
        raise UserError(f"--meta {args.meta}: its folder is no language; give --language")
    tasks = seed_tts(args.meta, language, args.give)
    return _write(args.out_dir, f"seed-tts-{language}-{args.meta.stem}-{args.give}", tasks)


def _write(out_dir: Path, name: str, tasks: list) -> int:
    from rvqlm.judging.protocols import describe, write_lists

    prompts, references = write_lists(out_dir, name, tasks)
    print(f"{prompts}: {describe(tasks)}")
    print(f"wrote {references}")
    return 0


def _versa(argv: Sequence[str] | None) -> int:
    from rvqlm.judging.protocols import write_scp
    from rvqlm.judging.recordings import open_recordings
    from rvqlm.judging.samples import find_samples

    args = parse(VersaArgs, "rvqlm protocol versa", "Lists for the toolkit versa.", argv)
    recordings = open_recordings(args.references, "test", "") if args.references else None
    print("\n".join(write_scp(args.out_dir, find_samples(args.samples, recordings), recordings)))
    return 0


COMMANDS = {
    "librispeech": ("continuation and cross-sentence lists of LibriSpeech", _librispeech),
    "seed-tts": ("lists of Seed-TTS eval, from its meta.lst", _seed_tts),
    "versa": ("samples and their recordings as scp files of the toolkit versa", _versa),
}


def main(argv: Sequence[str] | None = None) -> int:
    return dispatch(
        "rvqlm protocol",
        "lists of evaluations that others run:",
        {name: what for name, (what, _) in COMMANDS.items()},
        lambda name, rest: run_main(COMMANDS[name][1], rest, f"protocol {name}"),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
