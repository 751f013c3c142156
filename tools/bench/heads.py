"""Heads: loss, forward and backward, against the same with all logits and torch's cross_entropy.

    python tools/bench/heads.py                          # 3,200 frames, K = 9, V = 1024, d = 256
    python tools/bench/heads.py --dtype float32 --rows 800

Both sides count nats and hits per level. Each measurement is a process of its own with the
allocator settings of training; the times are medians, the memory is the growth of the resident
set at its peak.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rvqlm.cli import parse, run_main

CASES = {
    "linear": {"kind": "linear"},
    "linear, a state per level": {"kind": "linear", "states": True},
    "linear, one level a row": {"kind": "linear", "one": True},
    "linear, shared": {"kind": "linear", "shared": True},
    "mlp": {"kind": "mlp"},
    "mlp, shared": {"kind": "mlp", "shared": True},
    "depth": {"kind": "depth"},
}


@dataclass
class Args:
    rows: int = 3200
    """Frames of the batch."""
    codebooks: int = 9
    """Levels K."""
    codebook_size: int = 1024
    """Codes V of each."""
    dim: int = 256
    """Width d of the hidden states."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the matmuls (autocast)."""
    repeats: int = 5
    """Timed repetitions, after one that is not."""
    threads: int = 1
    """Threads of torch."""


def measure(args: Args, name: str, side: str) -> dict[str, float]:
    from rvqlm.runtime import tune_malloc

    tune_malloc()
    import torch
    import torch.nn.functional as F

    from rvqlm.codec_info import CodecInfo
    from rvqlm.models.codec_lm import CodecLMConfig

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    N, K, V, d = args.rows, args.codebooks, args.codebook_size, args.dim
    case = CASES[name]
    shared = case.get("shared", False)
    config = CodecLMConfig(decoder_dim=d, head=case["kind"], shared_head=shared)
    heads = config.make_heads(CodecInfo("bench", "", 16000, 320, K, V))
    states = case.get("states", False)
    hidden = torch.randn((N, K, d) if states else (N, d), requires_grad=True)
    targets = torch.randint(V, (N, K))
    valid = torch.ones(N, K, dtype=torch.bool)
    if case.get("one"):
        valid = F.one_hot(torch.randint(K, (N,)), K).bool()

    def plain():
        logits = heads(hidden, targets)
        if states:  # of the state of each level its own
            logits = torch.stack([logits[:, k, k] for k in range(K)], 1)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        nats = nats.view(N, K) * valid
        hits = (logits.detach().argmax(-1) == targets) & valid
        return nats.sum(), nats.detach().sum(0), hits.sum(0)

    def step():
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = plain()[0] if side == "plain" else heads.loss(hidden, targets, valid)[0]
        loss.backward()
        for p in [hidden, *heads.parameters()]:
            p.grad = None
        return time.perf_counter() - start

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [step() for _ in range(args.repeats + 1)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"ms": 1e3 * statistics.median(times), "mib": peak / 1024}


def in_process(*args) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "heads.py", "Fused losses of heads against plain ones.", argv)
    print(f"{'':28}{'ours ms':>9}{'plain ms':>10}{'ratio':>7}{'ours MiB':>10}{'plain MiB':>11}")
    for name in CASES:
        ours, plain = in_process(args, name, "ours"), in_process(args, name, "plain")
        print(
            f"{name:28}{ours['ms']:9.0f}{plain['ms']:10.0f}{plain['ms'] / ours['ms']:7.2f}"
            f"{ours['mib']:10.0f}{plain['mib']:11.0f}"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "heads")


if __name__ == "__main__":
    sys.exit(main())
