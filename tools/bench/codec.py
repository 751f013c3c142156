"""Codecs of the published sizes: speed, chunks against the whole, memory, and the peers' commands.

    python tools/bench/codec.py
    python tools/bench/codec.py --codecs dac-44khz --measure chunks --threads 1
    python tools/bench/codec.py --measure packages --packages .venv-codecs/bin/python

Random weights (`codec_models`) and made audio: speed and exactness depend on neither, but how fast
an LSTM or a transformer forgets does, and with it the overlap that chunks without carried state
would need. Machine and versions are printed first. What is measured:

- speed: real-time factor of encoding and decoding at --chunk-seconds, per number of threads;
- chunks: seconds per second of audio for chunks of 0.5 to 16 s;
- mismatch: share of codes that differ from those of the whole recording in one tensor: chunks as
  the package makes them, and naive ones with more and more overlap until under 0.1 % differ;
- memory: peak resident size above the loaded codec's, for a short and a long recording;
- packages: wall time of `rvqlm tokenize` and of the package's own command on the same files and
  weights, share of equal codes, and the share of time that `rvqlm tokenize` spends outside codecs.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rvqlm.cli import parse, run_main
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.errors import UserError
from rvqlm.runtime import describe_machine, tune_malloc

sys.path.insert(0, str(Path(__file__).parent))
from codec_models import GEOMETRY, build, geometry, signal

Measure = Literal["speed", "chunks", "mismatch", "memory", "packages"]
HERE = Path(__file__).resolve().parent


@dataclass
class Args:
    codecs: tuple[str, ...] = (
        "dac-44khz", "encodec-24khz", "encodec-32khz", "encodec-48khz", "mimi",
    )  # fmt: skip
    """Which of dac-44khz, dac-24khz, dac-16khz, encodec-24khz, encodec-32khz, encodec-48khz, mimi;
    of these, packages takes dac-44khz, encodec-24khz and encodec-48khz."""
    measure: tuple[Measure, ...] = ("speed", "chunks", "mismatch", "memory")
    """What to measure."""
    seconds: float = 16.0
    """Audio for speed, chunks and mismatch."""
    chunk_seconds: float = 2.0
    """Chunk for speed, mismatch and memory."""
    threads: tuple[int, ...] = (1, 0)
    """Threads for speed; the first for the rest. 0: one per core."""
    memory_seconds: tuple[float, float] = (15.0, 60.0)
    """A short and a long recording."""
    repeat: int = 3
    """The best of so many runs counts."""
    packages: str | None = None
    """Python of the environment that tools/test.sh --codecs makes, for packages."""
    files: int = 4
    """Files for packages, of --seconds each."""
    narrow: bool = False
    """Few channels, to try the tool itself; such numbers mean nothing."""


def best(repeat: int, run: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def set_threads(threads: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or cores)
    return torch.get_num_threads()


def differing(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a != b).float().mean())


# ------------------------------------------------------------ one codec, one process


def speed(codec: Codec, args: Args) -> Iterator[str]:
    audio = recording(codec, args.seconds)
    for threads in args.threads:
        count = set_threads(threads)
        codes = encode_whole(codec, audio, args.chunk_seconds).codes
        encode = best(args.repeat, lambda: encode_whole(codec, audio, args.chunk_seconds).codes)
        decode = best(args.repeat, lambda c=codes: decode_long(codec, c, args.chunk_seconds))
        yield (
            f"{count} threads, chunks of {args.chunk_seconds:g} s: encode "
            f"{args.seconds / encode:.1f}x, decode {args.seconds / decode:.1f}x real time "
            f"({encode / args.seconds:.3f} and {decode / args.seconds:.3f} s per s)"
        )


def chunks(codec: Codec, args: Args) -> Iterator[str]:
    count, audio = set_threads(args.threads[0]), recording(codec, args.seconds)
    codes = encode_whole(codec, audio, args.chunk_seconds).codes
    yield f"{count} threads; seconds per second of audio"
    for chunk in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
        encode = best(args.repeat, lambda n=chunk: encode_whole(codec, audio, n).codes)
        decode = best(args.repeat, lambda n=chunk: decode_long(codec, codes, n))
        yield (
            f"chunks of {chunk:4g} s: encode {encode / args.seconds:.3f}, "
            f"decode {decode / args.seconds:.3f}"
        )


def mismatch(codec: Codec, args: Args) -> Iterator[str]:
    set_threads(args.threads[0])
    audio = recording(codec, args.seconds)
    step = codec.frames_in(args.chunk_seconds)
    for dtype in (torch.float64, torch.float32):  # errors of chunking alone, then with rounding
        codec.set_dtype(dtype)
        whole = codec.encode(audio[None])[0][0]
        ours = encode_whole(codec, audio, args.chunk_seconds).codes
        heard = codec.decode(whole[None])[0]
        error = (decode_long(codec, whole, args.chunk_seconds) - heard).abs().max() / heard.std()
        yield (
            f"chunks of {args.chunk_seconds:g} s as they are made, {str(dtype)[6:]}: "
            f"{differing(ours, whole):.3%} of {whole.numel()} codes differ from the whole; decoded "
            f"audio by at most {float(error):.1e} of its RMS"
        )
    if codec.info.segment is not None:
        yield "segments are the codec's own: there is no other way to cut"
        return
    for overlap in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        share = differing(naive(codec, audio, overlap, step), whole)
        context = f"{overlap:3} frames ({overlap / float(codec.info.frame_rate):.2f} s)"
        yield f"without carried state, {context} of context on each side: {share:.3%}"
        if share < 0.001:
            return
    yield "no overlap tried gets below 0.1 %"


def naive(codec: Codec, audio: torch.Tensor, overlap: int, step: int) -> torch.Tensor:
    """Codes from chunks that begin anew, with context that is dropped and nothing else."""
    hop, T = codec.info.hop, codec.info.num_frames(audio.shape[1])
    parts, first = [], 0
    while first < T:  # not the windows of the package, which are never shorter than their context
        left, end = max(0, first - overlap), min(T, first + step)
        codes = codec.encode(audio[None, :, left * hop : min(T, end + overlap) * hop])[0][0]
        parts.append(codes[first - left : end - left])
        first = end
    return torch.cat(parts)


def memory(codec: Codec, args: Args) -> Iterator[str]:
    set_threads(args.threads[0])
    for seconds in args.memory_seconds:
        audio = recording(codec, seconds)
        gc.collect()
        reset_peak()
        before = status("VmRSS")
        codes = encode_whole(codec, audio, args.chunk_seconds).codes
        encoding = status("VmHWM") - before
        reset_peak()
        before = status("VmRSS")
        for _ in decode_pieces(codec, codes, args.chunk_seconds):
            pass
        decoding = status("VmHWM") - before
        yield f"{seconds:g} s: +{encoding} MB to encode, +{decoding} MB to decode"


def decode_pieces(codec: Codec, codes: torch.Tensor, chunk_seconds: float):
    from rvqlm.codecs.chunking import decode_stream

    return decode_stream(codec, codes, chunk_seconds)


def status(key: str) -> int:
    """A size in MB from /proc/self/status (Linux)."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def recording(codec: Codec, seconds: float) -> torch.Tensor:
    return signal(codec.info.channels, codec.info.sampling_rate, seconds)


def measure_one(name: str, what: str, args: Args) -> None:
    """Runs in a process of its own: no measurement inherits another's memory."""
    if what != "memory":  # blocks that the allocator keeps would count as used
        tune_malloc()
    codec = build(name, args.narrow)
    if geometry(codec) != GEOMETRY[name]:
        raise RuntimeError(f"{name} is {geometry(codec)}, published is {GEOMETRY[name]}")
    for line in globals()[what](codec, args):
        print(f"{name:14} {what:9} {line}", flush=True)


# ------------------------------------------------------------ against the packages' commands


def packages(name: str, args: Args) -> Iterator[str]:
    """Lines on one codec; the same files and weights for both sides, whole processes."""
    import soundfile

    peer = [args.packages, str(HERE / "codec_packages.py")]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wavs, file = folder / "wavs", str(folder / "weights.pth")
        for part in ("wavs", "short", "theirs", "whole", "heard"):
            (folder / part).mkdir()
        _, _, rate, _ = GEOMETRY[name]
        for i in range(args.files):
            audio = signal(2 if "48" in name else 1, rate, args.seconds, seed=i)
            soundfile.write(wavs / f"{i}.wav", audio.numpy().T, rate, subtype="FLOAT")
        soundfile.write(folder / "short/0.wav", audio[:, : rate // 10].numpy().T, rate)
        quiet([*peer, "weights", name, file])
        seconds = args.files * args.seconds
        ours_line = [sys.executable, "-m", "rvqlm.bin.main", "tokenize", "--codec", file]
        for cores, label in ((1, "one core"), (0, "all cores")):
            wall, said = {}, ""
            for what in ("short", "wavs"):  # the first tells what starting costs
                out = folder / f"ours-{cores}-{what}"
                theirs = [*peer, "command", name, file, folder / what, folder / "theirs"]
                wall["theirs", what], _ = timed(theirs, cores)
                line = [*ours_line, "--input", folder / what, "--out-dir", out, *levels(name)]
                wall["ours", what], said = timed(line, cores)
            share = re.search(r"([\d.]+) ?% of the time outside the codec", said)
            theirs, ours = wall["theirs", "wavs"], wall["ours", "wavs"]
            net = (theirs - wall["theirs", "short"]) / (ours - wall["ours", "short"])
            yield (
                f"{label}, {seconds:g} s of audio: its command {theirs:.1f} s, rvqlm tokenize "
                f"{ours:.1f} s: {theirs / ours:.2f}x; {net:.2f}x without the start "
                f"({wall['theirs', 'short']:.1f} and {wall['ours', 'short']:.1f} s); "
                f"{share[1] if share else '?'} % of tokenize outside the codec"
            )
        quiet([*peer, "codes", name, file, wavs, folder / "whole"])
        yield f"codes equal to its model on whole files: {equal(out, folder / 'whole')}"
        quiet([*peer, "heard", name, file, folder / "theirs", folder / "heard"])
        if any((folder / "heard").iterdir()):
            yield f"codes equal to what its command wrote: {equal(out, folder / 'heard')}"


def levels(name: str) -> list[str]:
    return ["--num-codebooks", str(GEOMETRY[name][0])]


def equal(tokens: Path, folder: Path) -> str:
    """Share of equal codes of a token directory and of a folder of ID.npy."""
    import lhotse

    import rvqlm.data.store  # noqa: F401  registers the reader

    same = total = 0
    for cut in lhotse.CutSet.from_jsonl_lazy(tokens / "cuts.jsonl.gz"):
        a, b = cut.load_features(), np.load(folder / f"{cut.id}.npy", allow_pickle=False)
        n = min(len(a), len(b))
        same += int((a[:n] == b[:n]).sum())
        total += max(len(a), len(b)) * a.shape[1]
    return f"{same / total:.3%} of {total}"


def timed(command: Sequence, cores: int) -> tuple[float, str]:
    """Wall seconds of a command, on one core or on all, and what it said."""

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    began = time.perf_counter()
    done = quiet(command, preexec_fn=pin)
    return time.perf_counter() - began, done.stdout + done.stderr


def quiet(command: Sequence, **options) -> subprocess.CompletedProcess:
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except OSError as e:
        raise UserError(f"--packages {command[0]}: {e.strerror}; run tools/test.sh --codecs") from e
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"{' '.join(command)}: exit {done.returncode}: {last}")
    return done


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Args, "tools/bench/codec.py", __doc__.splitlines()[0], argv)
    unknown = [name for name in args.codecs if name not in GEOMETRY]
    if unknown:
        raise UserError(f"--codecs {unknown[0]}: choose from {', '.join(GEOMETRY)}")
    if "packages" in args.measure and args.packages is None:
        raise UserError("--measure packages needs --packages .venv-codecs/bin/python")
    print({k: v for k, v in describe_machine().items() if v}, flush=True)
    spawn = multiprocessing.get_context("spawn")
    for what in args.measure:
        for name in args.codecs:
            if what == "packages":
                if name in ("dac-44khz", "encodec-24khz", "encodec-48khz"):
                    for line in packages(name, args):
                        print(f"{name:14} {what:9} {line}", flush=True)
                continue
            process = spawn.Process(target=measure_one, args=(name, what, args))
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
