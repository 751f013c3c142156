"""Memory and speed of training on a CPU over many shapes of batches, by settings of the allocator.

    python tools/bench/allocator.py
    python tools/bench/allocator.py --steps 160 --layers 6 --seconds 60

Each line is a process of its own that trains a codec-lm (delay pattern, AdamW) on batches of random
shapes, the same ones for every line. ``tuned`` is what `rvqlm.runtime.tune_malloc` does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rvqlm.cli import parse, run_main

OFF = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
THP = {"THP_MEM_ALLOC_ENABLE": "1"}
SETTINGS = {
    "glibc": {},
    "tuned": {"tune": "1"},
    "no mmap": OFF,
    "no mmap, one arena": {**OFF, "MALLOC_ARENA_MAX": "1"},
    "no mmap, top pad 256 MB": {**OFF, "MALLOC_TOP_PAD_": "268435456"},
    "no mmap, trim every 20": {**OFF, "trim": "20"},
    "mmap from 32 MB": {
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
    },
    "huge pages": THP,
    "no mmap, huge pages": {**OFF, **THP},
    "mmap from 32 MB, huge pages": {
        **THP,
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
    },
}

CHILD = "ALLOCATOR_BENCH_SETTING"
"""Names the line to a process of its own: settings work from the first allocation on."""


@dataclass
class Args:
    settings: tuple[str, ...] = ()
    """Of the table; default: all."""
    dim: int = 256
    """Width d."""
    layers: int = 4
    """Layers."""
    seconds: float = 30.0
    """Seconds of audio in a batch, at 86 frames a second."""
    steps: int = 60
    """Steps."""
    shapes: int = 0
    """Shapes of batches, which then come again and again; 0: each step has one of its own."""
    bf16: bool = True
    """Autocast to bf16."""
    threads: int = 1
    """Threads of torch."""


def child(args: Args, setting: dict) -> dict:
    if "tune" in setting:
        from rvqlm.runtime import tune_malloc

        tune_malloc()
    import torch

    from rvqlm.batch import Batch
    from rvqlm.codec_info import CodecInfo
    from rvqlm.models.codec_lm import CodecLM, CodecLMConfig

    torch.set_num_threads(args.threads)
    info = CodecInfo("bench", "", 44100, 512, 9, 1024)
    shape = {"decoder_dim": args.dim, "nhead": args.dim // 64, "num_decoder_layers": args.layers}
    model = CodecLM(CodecLMConfig(**shape), info).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    budget, times, sizes = round(86 * args.seconds), [], []
    for step in range(args.steps):
        if args.shapes and step % args.shapes == 0:
            generator.manual_seed(0)
        longest = int(torch.randint(40, min(1300, budget), (), generator=generator))
        items = budget // longest
        codes = torch.randint(1024, (items, longest, 9), generator=generator).to(torch.int16)
        lengths = torch.full((items,), longest)
        batch = Batch(codes, lengths, torch.ones(items, dtype=torch.bool), torch.arange(items))
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            out = model(batch)
        (out.loss / out.normalizer).backward()
        optimizer.step()
        optimizer.zero_grad()
        del out
        if "trim" in setting and step % int(setting["trim"]) == 0:
            ctypes.CDLL(None).malloc_trim(0)
        times.append(time.perf_counter() - began)
        sizes.append(resident_mb())
    gc.collect()
    half = sorted(times[len(times) // 2 :])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step": half[len(half) // 2],
        "cpu": (usage.ru_utime + usage.ru_stime) / args.steps,
        "system": usage.ru_stime / args.steps,
        "faults": usage.ru_minflt / args.steps,
        "rss": [sizes[i] for i in (args.steps // 10, args.steps // 2, -1)],
        "peak": usage.ru_maxrss / 1024,
    }


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "allocator.py", "Memory and speed by allocator settings.", argv)
    if CHILD in os.environ:
        print(json.dumps(child(args, SETTINGS[os.environ[CHILD]])))
        return 0
    print(
        f"{'':28}{'s/step':>8}{'CPU s':>8}{'system':>8}{'faults':>9}{'RSS MB after 1/10':>19}"
        f"{'1/2':>7}{'all':>7}{'peak':>7}"
    )
    for name in args.settings or SETTINGS:
        env = {k: v for k, v in SETTINGS[name].items() if k.isupper()}
        env = {**os.environ, **env, CHILD: name}
        command = [sys.executable, *sys.argv]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        r = json.loads(done.stdout.splitlines()[-1])
        first, middle, last = r["rss"]
        print(
            f"{name:28}{r['step']:8.3f}{r['cpu']:8.3f}{r['system']:8.3f}{r['faults']:9.0f}"
            f"{first:19.0f}{middle:7.0f}{last:7.0f}{r['peak']:7.0f}",
            flush=True,
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "allocator")


if __name__ == "__main__":
    sys.exit(main())
