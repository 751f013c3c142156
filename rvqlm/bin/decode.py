#!/usr/bin/env python3
"""``rvqlm decode``: tokens to wav files.

    rvqlm decode --input data/tokens --split test --num 5 --out-dir wavs

Takes a token directory, a manifest of token cuts, an export, .npy or .npq files. Audio ends where
its recording did. Files that are there already are kept, so the same command resumes where it was
interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.locks import locked


@dataclass
class Args:
    input: tuple[str, ...]
    """A token directory, a manifest of token cuts, a folder of rvqlm export, or .npy and .npq
    files: folders of them, quoted globs, names."""
    out_dir: Path
    """Where to write ID.wav; folders in an id become folders here."""
    codec: str = ""
    """The codec, by name, folder or weights file; empty: the one that the tokens name. Its
    fingerprint must be theirs."""
    split: str | None = None
    """Only this split of a token directory."""
    ids: tuple[str, ...] = ()
    """Only these cuts."""
    num: int = 0
    """Only the first so many; 0: all."""
    num_codebooks: int = 0
    """Decode only so many levels, coarsest first, to hear what they carry; 0: all."""
    subtype: Literal["pcm16", "pcm24", "float"] = "pcm16"
    """Samples of 16 or 24 bits, or 32-bit float."""
    chunk_seconds: float = 5.0
    """Decode in pieces of about this length where the codec's context is finite; memory depends
    on it, the audio does not."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    order: Literal["tk", "kt"] | None = None
    """Of .npy files without a manifest: tk is (T, K), the default; kt is (K, T)."""
    overwrite: bool = False
    """Decode again what is there."""


def check(args: Args) -> None:
    problems = []
    if args.num < 0:
        problems.append(f"--num {args.num} must be 0 (all) or more")
    if args.num_codebooks < 0:
        problems.append(f"--num-codebooks {args.num_codebooks} must be 0 (all) or more")
    if not 0 < args.chunk_seconds < float("inf"):
        problems.append(f"--chunk-seconds {args.chunk_seconds:g} must be positive")
    if problems:
        raise UserError("; ".join(problems))


def _run(argv: Sequence[str] | None) -> int:
    description = "Decode tokens into wav files."
    args = parse(Args, "rvqlm decode", description, argv)
    check(args)
    from rvqlm.runtime import tune_malloc, use_device

    tune_malloc()
    from rvqlm.exchange.codec import load_codec_for
    from rvqlm.exchange.source import open_tokens
    from rvqlm.exchange.wav import decode_files

    if args.out_dir.exists() and not args.out_dir.is_dir():
        raise UserError(f"--out-dir {args.out_dir}: a file of that name exists; choose a folder")
    device = use_device(args.device)
    source = open_tokens(args.input, args.split, args.order)
    levels = source.info.num_codebooks if source.info else source.peek().codes.shape[1]
    if args.num_codebooks > levels:
        raise UserError(f"--num-codebooks {args.num_codebooks}: the tokens have {levels} levels")
    codec, remark = load_codec_for(source, args.codec, device)
    for text in filter(None, (remark, source.remark)):
        print(f"note: {text}", file=sys.stderr)
    began = time.perf_counter()
    with locked(args.out_dir, "rvqlm decode", make=True):
        done = decode_files(
            source,
            codec,
            args.out_dir,
            ids=args.ids,
            num=args.num,
            num_codebooks=args.num_codebooks or None,
            subtype=args.subtype,
            chunk_seconds=args.chunk_seconds,
            overwrite=args.overwrite,
        )
    words = f"{args.out_dir}: {counted(done.made, 'wav file')}"
    if done.made:
        spent = time.perf_counter() - began
        speed = done.seconds / spent
        words += f", {done.seconds:.1f} s of audio in {spent:.1f} s: {speed:.1f}x real time"
    if done.kept:
        words += f"; {done.kept} were there already (--overwrite decodes them again)"
    print(words)
    for item in done.failed:
        print(f"skipped: {item}", file=sys.stderr)
    if done.failed and not done.made + done.kept:
        raise UserError(
            f"not one of {counted(len(done.failed), 'input')} could be decoded; reasons above"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "decode")


if __name__ == "__main__":
    sys.exit(main())
