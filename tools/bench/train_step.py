"""Training steps of every family: frames per second, share of the matmul peak, memory, and what the
trainer adds to them.

    python tools/bench/train_step.py                              # small: d256 x 6, 8 x 400 frames
    python tools/bench/train_step.py --size base --families delay # d768 x 16, 2 x 512
    python tools/bench/train_step.py --device cuda --size base --compile both
    python tools/bench/train_step.py --device cuda --size large --compile both

``trainer`` is `Trainer.fit`: loss guard, clipping, AdamW, EMA, log. ``bare`` is forward, backward
and AdamW on the same model in the same process, in turn with it; the overhead is what the former
takes longer. MusicGen is the decoder of transformers of the same width, depth, K, V and batch,
trained like ``bare``; it is first timed alone, then again in turn with each of ours. Every line of
the table is a process of its own. Times are taken of 5 steps
each: speeds are medians of them, the overhead compares the shortest, which other processes on the
machine disturb least. FLOP/s are counted operations of matrix products and attention over the time
of ``trainer``; the peak is the best of a few square matmuls in the same precision.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from rvqlm.cli import parse, run_main

SIZES = {
    "tiny": {"dim": 64, "layers": 2, "heads": 2, "batch": 2, "frames": 40},
    "small": {"dim": 256, "layers": 6, "heads": 4, "batch": 8, "frames": 400},
    "base": {"dim": 768, "layers": 16, "heads": 12, "batch": 2, "frames": 512},
    "large": {"dim": 1024, "layers": 24, "heads": 16, "batch": 2, "frames": 512},
}
GPU_BATCH = {"small": 64, "base": 24, "large": 16}
"""Items of a batch on a GPU."""
LOG_EVERY = 5


@dataclass
class Args:
    size: Literal["tiny", "small", "base", "large"] = "small"
    """small: d256 x 6, 8 x 400 frames; base: d768 x 16, 2 x 512; large: d1024 x 24, 2 x 512. On a
    GPU 64, 24 and 16 items."""
    families: tuple[str, ...] = ()
    """Of delay, delay_text, parallel, flatten, coarse_first, depth, valle, masked, recognizer;
    default: all."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """Default: bf16 where the hardware has it, and fp32 on CPUs."""
    compile: Literal["no", "yes", "both"] = "no"
    """Compile the blocks."""
    peer: bool = True
    """Measure MusicGen too (needs transformers)."""
    batch: int = 0
    """Items of a batch; 0: as the size says."""
    frames: int = 0
    """Frames of an item; 0: as the size says."""
    codebooks: int = 9
    """Levels K."""
    codebook_size: int = 1024
    """Codes V of each."""
    checkpointing: bool = False
    """Activation checkpointing in ours."""
    steps: int = 10
    """Timed steps a round, a multiple of 5."""
    rounds: int = 3
    """Times that trainer and bare steps take turns."""
    threads: int = 0
    """CPU threads; 0: all cores."""
    kernels: Literal["auto", "torch"] = "auto"
    """As the trainer's."""
    json: str = ""
    """File to write all figures to."""


DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Side:
    """A model whose steps are timed round by round, in a process of its own."""

    def __init__(self, args: Args, size: dict, family: str, precision: str, compiled: bool = False):
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.found = self.pool.submit(prepare, args, size, family, precision, compiled).result()

    def round(self) -> dict:
        """Seconds of steps, by what made them, which are noted in `found`, too; and memory."""
        new = self.pool.submit(take_round).result()
        for key in ("bare", "trainer"):
            self.found[key] = self.found.get(key, []) + new.get(key, [])
        self.found["memory"] = new["memory"]
        return new


def prepare(args: Args, size: dict, family: str, precision: str, compiled: bool) -> dict:
    """What is known of one line of the table before a step is timed, in a fresh process."""
    global _take_round
    from rvqlm.runtime import pick_device, tune_malloc

    tune_malloc()
    import torch

    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    from train_step_cases import Loader, make_batch, make_model, make_musicgen, peak

    from rvqlm.modules import native_training
    from rvqlm.training.meter import training_flops

    device, dtype = pick_device(args.device), getattr(torch, DTYPES[precision])
    native_training.choose(args.kernels, device, dtype)
    if family == "peak":
        return {"peak": peak(device, dtype)}
    torch.manual_seed(0)
    if family == "musicgen":
        model = make_musicgen(args, size).to(device)

        def _take_round() -> dict:
            times = bare(args, size, model, None, device, dtype)
            return {"bare": times, "memory": memory_mb(device)}

        return {}
    model = make_model(args, size, family).to(device).train()
    batch = make_batch(args, size, family)
    result = {"flops": training_flops(model, batch.to(device), dtype)}
    if compiled:
        from rvqlm.training.compiling import compile_model, warm_up

        # as if there were more lengths: code for any of them
        shapes = {(size["batch"], size["frames"] - n) for n in range(8)}
        to_try = compile_model(model, shapes, print)
        result["compile_seconds"] = warm_up(model, to_try, batch, dtype, print)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    bare(args, size, model, batch, device, dtype)
    result["bare_memory"] = memory_mb(device)

    def _take_round() -> dict:
        return {
            "trainer": train(args, model, Loader(batch), device, dtype),
            "bare": bare(args, size, model, batch, device, dtype),
            "memory": memory_mb(device),
        }

    return result


def take_round() -> dict:
    """Times and memory of a round of what this process has prepared."""
    return _take_round()


def memory_mb(device) -> float:
    """Peak of the device, or of the process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def bare(args: Args, size: dict, model, batch, device, dtype) -> list[float]:
    """Seconds of a step: forward, backward, AdamW, and nothing else."""
    import torch
    from train_step_cases import clock, random_codes

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=batch is not None)
    codes = random_codes(args, size)
    if batch is None:  # MusicGen: (B * K, T) ids, (B, T, K) labels
        ids = codes.transpose(1, 2).reshape(-1, size["frames"]).to(device)
        labels = codes.to(device)
    times = [clock(device)]
    for step in range(1, LOG_EVERY + args.steps + 1):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if batch is None:
                loss = model(input_ids=ids, labels=labels).loss
            else:
                out = model(batch.to(device))
                loss = out.loss / out.normalizer
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            times.append(clock(device))
    return per_step(times[1:])


def per_step(times: list[float]) -> list[float]:
    return [(after - before) / LOG_EVERY for before, after in pairwise(times)]


def train(args: Args, model, loader, device, dtype) -> list[float]:
    """The same by the trainer, lines of the log included."""
    from rvqlm.training.config import LogConfig, SaveConfig, TrainerConfig
    from rvqlm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        flags = TrainerConfig(
            folder,
            "",
            max_steps=LOG_EVERY + args.steps,
            log=LogConfig(log_every_steps=LOG_EVERY),
            save=SaveConfig(save_every_minutes=0),
        )
        Trainer(model, loader, None, flags, model.info, device, dtype).fit()
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        return per_step([line["elapsed"] for line in lines if line["kind"] == "train"])


def row(name: str, frames: int, found: dict, peak: float, musicgen: float | None) -> str:
    """A line of the table; ``musicgen``: seconds of its step, in turn with these."""
    bare = statistics.median(found["bare"])
    trainer = statistics.median(found["trainer"] or [bare])
    cells = [f"{name:26}{frames / bare:10.0f}"]
    if found["trainer"]:
        extra = min(found["trainer"]) / min(found["bare"]) - 1
        rate = found["flops"] / trainer
        cells.append(f"{frames / trainer:10.0f}{100 * extra:9.1f}%")
        cells.append(f"{rate / 1e9:10.0f}{100 * rate / peak:8.0f}%")
    else:
        cells.append(" " * 39)
    cells.append(f"{found['memory']:10.0f}")
    if musicgen is not None:
        cells.append(f"{musicgen / trainer:10.2f}{musicgen / bare:10.2f}")
    if "compile_seconds" in found:
        cells.append(f"   compiled in {found['compile_seconds']:.0f} s")
    return "".join(cells)


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "train_step.py", "Speed and memory of training steps.", argv)
    import torch
    from train_step_cases import FAMILIES

    from rvqlm.runtime import describe_machine, has_fast_bf16, pick_device

    device = pick_device(args.device)
    size = dict(SIZES[args.size])
    if device.type == "cuda":
        size["batch"] = GPU_BATCH.get(args.size, size["batch"])
    size |= {k: getattr(args, k) for k in ("batch", "frames") if getattr(args, k)}
    precisions = args.precisions or (("fp32",) if device.type == "cpu" else ()) + (
        ("bf16",) if has_fast_bf16(device) else ()
    )
    machine = describe_machine()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["cpu"]
    print(
        f"{where}, {args.threads or machine['cores']} threads, torch {machine['torch']}, commit "
        f"{machine['commit']}\nd{size['dim']} x {size['layers']}, K={args.codebooks}, "
        f"V={args.codebook_size}, batch {size['batch']} x {size['frames']}"
    )
    frames, record = size["batch"] * size["frames"], {}
    for precision in precisions:
        peak = Side(args, size, "peak", precision).found["peak"]
        print(f"\n{precision}, matmul peak {peak / 1e9:,.0f} GFLOP/s")
        print(
            f"{'':26}{'bare':>10}{'trainer':>10}{'overhead':>10}{'':10}{'of':>9}{'peak':>10}"
            f"{'of MusicGen':>20}\n{'':26}{'frames/s':>10}{'frames/s':>10}{'':>10}{'GFLOP/s':>10}"
            f"{'peak':>9}{'MiB':>10}{'trainer':>10}{'bare':>10}"
        )
        peer = Side(args, size, "musicgen", precision) if args.peer else None
        if peer is not None:
            for _ in range(args.rounds):
                peer.round()
            print(row("MusicGen", frames, peer.found, peak, None), flush=True)
            record[f"musicgen {precision}"] = peer.found
        for family in args.families or FAMILIES:
            for compiled in {"no": (False,), "yes": (True,), "both": (False, True)}[args.compile]:
                side = Side(args, size, family, precision, compiled)
                # in turn: other work on the machine slows both
                of_peer = []
                for _ in range(args.rounds):
                    side.round()
                    of_peer += peer.round()["bare"] if peer is not None else []
                musicgen = statistics.median(of_peer) if of_peer else None
                name = f"{family}, compiled" if compiled else family
                print(row(name, frames, side.found, peak, musicgen), flush=True)
                record[f"{name} {precision}"] = {**side.found, "musicgen": of_peer}
                side.pool.shutdown()
        if peer is not None:
            peer.pool.shutdown()
    if args.json:
        Path(args.json).write_text(
            json.dumps({"machine": machine, "args": asdict(args), **record}, indent=1)
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "train_step")


if __name__ == "__main__":
    sys.exit(main())
