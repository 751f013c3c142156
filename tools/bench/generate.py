"""Decoding side by side with transformers' MusicGen decoder, in a plain cached loop and by its own
generate().

    OMP_NUM_THREADS=1 python tools/bench/generate.py --size small --batches 1 8
    python tools/bench/generate.py --size small --sides bf16 --batches --lengths 1 10 60 300

All sides make the same number of frames of K levels with the delay pattern, unprompted, with top-k
sampling, with random weights of the same shape, in turns, so that what else the machine does falls
on all. Times are those of the processor, not of the clock, with one thread (but see --wall).
``frames/s`` is of all steps; ``undisturbed`` of the fastest tenth of them, which is nearer to what
an idle machine does: where others take turns on a core, the weights are read from memory anew after
each.

========== ========================================================================================
GB/s, MBU  weights that an undisturbed step reads, in the type it reads them in, and keys and
           values, over its time; and over what the same threads read of a large array in the same
           run, before and after it (models that the caches hold are above it); the median is of
           all steps
real time  frames/s of one sequence over those of the audio
first      from the call to the first whole frame after a prompt of 3 s, the codec aside
memory     that building the model and the first run took
========== ========================================================================================
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rvqlm.cli import command_line, parse, run_main

SIZES = {"tiny": (64, 2, 2), "small": (256, 6, 4), "30m": (512, 8, 8), "base": (768, 16, 12)}
"""Width, layers, heads."""
PROMPT_SECONDS = 3
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "peer": 4, "peer-bf16": 2, "peer-generate": 4}
Side = Literal[
    "fp32",
    "bf16",
    "int8",
    "fp32-torch",
    "bf16-torch",
    "int8-torch",
    "fp32-compile",
    "bf16-compile",
    "peer",
    "peer-bf16",
    "peer-generate",
]


@dataclass
class Args:
    size: Literal["tiny", "small", "30m", "base"] = "small"
    """d64 x 2, d256 x 6, d512 x 8, d768 x 16."""
    kv_heads: int = 0
    """Of ours: heads of keys and values; 0: as many as heads."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences decoded together."""
    frames: int = 100
    """Frames of each sequence and turn."""
    turns: int = 3
    """Of each side."""
    codebooks: int = 8
    codebook_size: int = 1024
    top_k: int = 50
    frame_rate: float = 50.0
    """Frames of a second of audio."""
    sides: tuple[Side, ...] = ("fp32", "bf16", "int8", "peer", "peer-generate")
    """Ours with its weights in three types, multiplied by the best kernels here (on a GPU as a
    captured graph), by torch's, or by those that torch.compile makes; and MusicGen (needs
    transformers) in float32, or cast to bf16, in a plain loop, or by its own generate() in
    float32."""
    threads: tuple[int, ...] = ()
    """Thread counts to try, each; unset: torch's choice."""
    lengths: tuple[float, ...] = ()
    """Seconds of audio after which the cost of a frame is measured too, alone, without peer."""
    context_seconds: float = 0.0
    """Go on in windows of so much in these; 0: see all that came before."""
    wall: bool = False
    """Seconds of the clock also with one thread; for a GPU."""
    out: str = ""
    """JSON file for all figures."""


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def ours(args: Args, side: str):
    """(batch, frames, after_step, **options) -> None."""
    from rvqlm.codec_info import CodecInfo
    from rvqlm.generation.sampling import SamplingConfig
    from rvqlm.models.factory import build_model
    from rvqlm.modules.packed import with_weights_in

    width, layers, heads = SIZES[args.size]
    info = CodecInfo("bench", "", 44100, 512, args.codebooks, args.codebook_size)
    shape = {"decoder_dim": width, "nhead": heads, "num_decoder_layers": layers}
    shape["kv_heads"] = args.kv_heads
    torch.manual_seed(0)
    model = build_model("codec-lm", shape, info, {}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.03, 0.03)
    form, _, kernels = side.partition("-")
    dtype = torch.bfloat16 if form == "bf16" else torch.float32
    model = with_weights_in(model, dtype, form == "int8", kernels or "auto")
    sampling = SamplingConfig(top_k=args.top_k)

    def run(batch: int, frames: int, after_step: Callable, **options) -> None:
        made = model.generate(
            batch_size=batch,
            max_new_frames=frames,
            min_new_frames=frames,
            sampling=sampling,
            progress=after_step,
            **options,
        )
        assert made.codes.shape[1] >= frames

    return run


def peer(args: Args, side: str):
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    width, layers, heads = SIZES[args.size]
    K, V = args.codebooks, args.codebook_size
    config = MusicgenDecoderConfig(
        vocab_size=V,
        hidden_size=width,
        num_hidden_layers=layers,
        ffn_dim=4 * width,
        num_attention_heads=heads,
        num_codebooks=K,
        max_position_embeddings=args.frames + K,
        dropout=0.0,
        pad_token_id=V,
        bos_token_id=V,
    )
    dtype = torch.bfloat16 if side == "peer-bf16" else torch.float32
    model = MusicgenForCausalLM(config).eval().to(dtype)
    if side == "peer-generate":
        return by_generate(args, model)

    @torch.inference_mode()
    def run(batch: int, frames: int, after_step: Callable) -> None:
        """K rows an item; level k comes k steps late, as its `generate` masks them."""
        ids, past = torch.full((batch * K, 1), V), None
        level = torch.arange(K).repeat(batch)
        for s in range(frames + K - 1):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            values, order = out.logits[:, -1].float().topk(args.top_k)
            drawn = order.gather(1, values.softmax(-1).multinomial(1))
            real = (s >= level) & (s < level + frames)
            ids = torch.where(real[:, None], drawn, V)
            after_step()

    return run


def by_generate(args: Args, model):
    """The same by what the model itself has for it: as many steps, without guidance."""

    class Counter:
        """Is shown the ids that there are before the first step, and those of each."""

        def __init__(self, after_step: Callable):
            self.after_step, self.steps = after_step, -1

        def put(self, ids) -> None:
            self.steps += 1
            if self.steps:
                self.after_step()

        def end(self) -> None: ...

    K, V = args.codebooks, args.codebook_size
    how = {"do_sample": True, "top_k": args.top_k, "num_beams": 1, "num_return_sequences": 1}
    how["decoder_start_token_id"] = V

    def run(batch: int, frames: int, after_step: Callable) -> None:
        counter, start = Counter(after_step), torch.full((batch * K, 1), V)
        made = model.generate(start, max_length=frames + K, streamer=counter, **how)
        assert made.shape == (batch, K, frames) and counter.steps == frames + K - 1

    return run


def bytes_read(args: Args, side: str, batch: int) -> float:
    """By a step, on average: weights, and keys and values in 16 bits, or float32 as weights are."""
    width, layers, heads = SIZES[args.size]
    size = BYTES[side.removesuffix("-torch").removesuffix("-compile")]
    share = 1 if side.startswith("peer") else (args.kv_heads or heads) / heads
    of_layer = (10 + 2 * share) * width**2
    weights = of_layer * layers + args.codebooks * args.codebook_size * width
    held = 2 if side in ("bf16", "int8", "peer-bf16") else 4
    return bytes_of(weights, size, batch * layers * 2 * share * width * args.frames / 2, held)


def bytes_of(weights: float, size: int, keys: float, held: int) -> float:
    """Of weights that are read, each in so many, and of numbers in keys and values likewise."""
    return size * weights + held * keys


def bandwidth(clock: Callable) -> float:
    """Bytes a second that the threads read of a large array, at best."""
    from rvqlm.modules.native import HugePages

    array, best = HugePages().copy(torch.ones(1 << 26)), 0.0
    for _ in range(6):
        begin = clock()
        array.sum()
        best = max(best, array.nbytes / (clock() - begin))
    return best


def first_frame(
    args, run: Callable, clock: Callable, batch: int = 1, frames: int = 1, times: int = 3
) -> float:
    """Milliseconds; the best of some times.

    :param args: its ``frame_rate``, ``codebooks`` and ``codebook_size`` are of the prompt.
    :param frames: that are made before the first of them is whole.
    """
    count = round(PROMPT_SECONDS * args.frame_rate)
    prompt = torch.randint(args.codebook_size, (batch, count, args.codebooks))
    found = []
    for _ in range(times):
        steps = [clock()]
        run(batch, frames, lambda *_, steps=steps: steps.append(clock()), prompt_codes=prompt)
        found.append(steps[-1] - steps[0])
    return 1e3 * min(found)


def compare(args: Args, sides: dict, clock: Callable, memory: dict) -> list[dict]:
    """Print and return what each side takes, with the present number of threads."""
    threads, peak, rows = torch.get_num_threads(), bandwidth(clock), []
    print(f"{threads} threads, which read {peak / 1e9:.1f} GB/s", flush=True)
    first = {}
    for side, run in sides.items():
        if not side.startswith("peer"):
            first[side] = first_frame(args, run, clock)
    for batch in args.batches:
        seconds = {side: [] for side in sides}  # of steps
        for _ in range(args.turns):
            for side, run in sides.items():
                times = [clock()]
                run(batch, args.frames, lambda *_, times=times: times.append(clock()))
                seconds[side] += [b - a for a, b in itertools.pairwise(times)]
        peak = max(peak, bandwidth(clock))
        each = {side: sum(s) / len(s) for side, s in seconds.items()}
        best = {side: sorted(s)[len(s) // 10] for side, s in seconds.items()}
        median = {side: sorted(s)[len(s) // 2] for side, s in seconds.items()}
        for side in sides:
            used = bytes_read(args, side, batch) / best[side]
            row = {
                "side": side,
                "threads": threads,
                "batch": batch,
                "frames_per_second": batch / each[side],
                "undisturbed": batch / best[side],
                "real_time": 1 / each[side] / args.frame_rate,
                "gigabytes_per_second": used / 1e9,
                "mbu": used / peak,
                "mbu_median": bytes_read(args, side, batch) / median[side] / peak,
                "first_frame_ms": first.get(side),
                "memory_mb": memory[side],
            }
            if "peer" in sides:
                ratios = (times["peer"] / times[side] for times in (each, best))
                row["times_peer"], row["times_peer_undisturbed"] = ratios
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict) -> str:
    first = "      -" if row["first_frame_ms"] is None else f"{row['first_frame_ms']:7.1f}"
    said = f"batch {row['batch']:3}  {row['side']:13}{row['frames_per_second']:7,.0f} frames/s"
    said += f"{row['undisturbed']:8,.0f} undisturbed{row['real_time']:7.1f} x real time"
    said += f"{row['gigabytes_per_second']:6.1f} GB/s{row['mbu']:6.0%} MBU"
    said += f" (median {row['mbu_median']:.0%})"
    said += f"{first} ms first{row['memory_mb']:6,.0f} MB"
    if "times_peer" in row:
        said += f"{row['times_peer']:7.2f} {row['times_peer_undisturbed']:.2f} x peer"
    return said


def over_length(args: Args, sides: dict, clock: Callable) -> list[dict]:
    """Cost of a frame by how much audio there is already: mean of the last second, or of as much as
    a window where one goes on in these."""
    rows, rate, options = [], args.frame_rate, {}
    if args.context_seconds:
        options["context_frames"] = round(args.context_seconds * rate)
    for side, run in sides.items():
        if side.startswith("peer"):
            continue
        marks = {0: clock()}  # steps -> when they were done
        last, first = round(max(args.lengths) * rate), None
        run(1, last, lambda step, marks=marks: marks.update({step: clock()}), **options)
        for seconds in args.lengths:
            end = max(step for step in marks if step <= max(rate, seconds * rate))
            begin = max(0, end - max(rate, options.get("context_frames", 0)))
            begin = max(step for step in marks if step <= begin)
            cost = 1e3 * (marks[end] - marks[begin]) / (end - begin)
            first = cost if first is None else first
            rows.append({"side": side, "seconds": seconds, "frame_ms": cost})
            print(f"{side:10} after {seconds:5g} s {cost:7.2f} ms a frame ({cost / first:.2f} x)")
    return rows


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "generate.py", "Decoding, beside MusicGen's decoder.", argv)
    from rvqlm.files import write_json
    from rvqlm.runtime import describe_machine, tune_malloc

    tune_malloc()
    width, layers, heads = SIZES[args.size]
    about = (
        f"d{width} x {layers}, {args.kv_heads or heads} of {heads} heads of keys, {args.codebooks} "
        f"levels of {args.codebook_size}, {args.frames} frames"
    )
    print(about)
    sides, memory = {}, {}
    for side in args.sides:
        before = resident()
        if side.startswith("peer"):
            sides[side] = peer(args, side)
        else:
            sides[side] = ours(args, side)
        sides[side](1, args.frames, lambda *_: None)
        memory[side] = max(0, resident() - before) / 1e6
    rows, lengths = [], []
    for threads in args.threads or (torch.get_num_threads(),):
        torch.set_num_threads(threads)
        clock = time.perf_counter if args.wall or threads > 1 else time.process_time
        rows += compare(args, sides, clock, memory)
        if args.lengths:
            lengths += over_length(args, sides, clock)
    if len(args.threads) > 1:
        for (batch, side), found in itertools.groupby(
            sorted(rows, key=lambda row: (row["batch"], row["side"])),
            key=lambda row: (row["batch"], row["side"]),
        ):
            best = max(found, key=lambda row: row["frames_per_second"])
            rate = f"{best['frames_per_second']:,.0f} frames/s"
            print(f"batch {batch}, {side}: best with {best['threads']} threads, {rate}")
    if args.out:
        command = command_line("generate.py", argv)
        made = {"about": about, "command": command, "machine": describe_machine()}
        write_json(args.out, {**made, "rows": rows, "lengths": lengths})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "generate.py")


if __name__ == "__main__":
    sys.exit(main())
