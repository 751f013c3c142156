"""Whether a GPU computes what a CPU does: every family, head and condition, in training and
generation, each kernel of attention, the codecs, optimizers, ranks, ``--compile``,
``--cuda-graphs``.

    python tools/bench/gpu.py                        # cuda:0, at most eight minutes
    python tools/bench/gpu.py --only codec waits     # some parts
    python tools/bench/gpu.py --simulate             # without a GPU, see below

Then how fast it is: tables of training and generation, in Markdown at the end. ``--only train-speed
generation-speed`` gives them all of the time.

Each check prints a line when it is done, and the file of ``--json`` is written anew after each, so
that nothing is lost when the machine is. Parts come in the order of their worth. Each has a share
of ``--seconds``, and what those before it left; what that leaves no time for is "not run". Exit
status 1 if a check failed. Needs what rvqlm needs, no test tools. Models are small and their
weights large, so that a wrong mask or position shows.

References are computed on the CPU in float64. On the GPU float64 must equal them but for the order
of sums, float32, TF32 and bf16 to the digits they have. Codes drawn in float64 must be the same.

``--simulate`` makes `simulated_cuda`'s GPUs. What runs through there has all of its tensors where
it should and takes the GPU's branches, and its ``waits`` are counted. It says nothing of kernels,
rounding, TF32, memory beyond what tensors take, speed. The parts ``attention``, ``ranks`` and
``compile`` cannot be simulated and run on the CPU instead: with its kernels, over gloo, and what
dynamo finds run as it is. Of the tables launches and waits remain.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_attention_checks import attention
from gpu_checks import Check, NotRun, Where, Wrong, equality, generation, memory, training, waits
from gpu_codec_checks import codec
from gpu_generation_speed import TABLE as GENERATION
from gpu_generation_speed import generation_speed
from gpu_run_checks import compiling, graphs, ranks
from gpu_speed import tables
from gpu_train_speed import TABLE as TRAINING
from gpu_train_speed import train_speed

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError
from rvqlm.runtime import describe_machine, set_tf32, use_device


class Part(NamedTuple):
    checks: Callable[[Where], Iterable[tuple[str, Check]]]
    share: float
    """Of the time, beside those of the others."""
    simulated: bool = True
    """Otherwise it runs on the CPU where a GPU is simulated."""


PARTS = {
    "codec": Part(codec, 0.08),
    "equality": Part(equality, 0.26),
    "attention": Part(attention, 0.06, simulated=False),
    "generation": Part(generation, 0.16),
    "training": Part(training, 0.16),
    "ranks": Part(ranks, 0.06, simulated=False),
    "memory": Part(memory, 0.03),
    "waits": Part(waits, 0.05),
    "compile": Part(compiling, 0.14, simulated=False),
    "train-graph": Part(graphs, 0.08),
    "train-speed": Part(train_speed, 0.17, simulated=False),  # each row says where it is
    "generation-speed": Part(generation_speed, 0.13, simulated=False),
}
TABLES = {"train-speed": TRAINING, "generation-speed": GENERATION}


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """Parts: codec, equality, attention, generation, training, ranks, memory, waits, compile,
    train-graph, train-speed, generation-speed; default: all."""
    seconds: float = 480.0
    """No check begins later."""
    device: str = "cuda:0"
    """The GPU."""
    json: str = ""
    """File for the results."""
    simulate: bool = False
    """Simulate a GPU on the CPU."""


def outcome(work: Check) -> tuple[str, object]:
    """The verdict on a check and what it said, figures of a row where it has them."""
    set_tf32(False)
    try:
        with redirect_stderr(io.StringIO()):  # lines of the trainer
            return "ok", work()
    except NotRun as e:
        return "not run", str(e)
    except Wrong as e:
        return "FAILED", str(e)
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)
        at = next((f for f in reversed(last) if "/rvqlm/" in f.filename), last[-1])
        reason = str(e).splitlines()[0] if str(e) else ""
        return "FAILED", f"{type(e).__name__} at {Path(at.filename).name}:{at.lineno}: {reason}"


def run(args: Args, where: Where, record: dict) -> int:
    """All checks; the number of those that failed."""
    began, failed, until = time.monotonic(), 0, 0.0
    chosen = {name: PARTS[name] for name in args.only or PARTS}
    for part, (checks, share, simulated) in chosen.items():
        until += args.seconds * share / sum(p.share for p in chosen.values())
        around, here = nullcontext(), where
        if where.simulated and simulated:
            from simulated_cuda import simulated_cuda

            around = simulated_cuda()
        elif where.simulated:
            here = replace(where, device=torch.device("cpu"))
        with around:
            for name, work in checks(here):
                start, verdict, said = time.monotonic(), "not run", "no time left"
                if start - began < until:
                    verdict, said = outcome(work)
                failed += verdict == "FAILED"
                seconds = time.monotonic() - start
                print(f"{verdict:8}{part:17}{name:42}{seconds:6.1f} s  {said}", flush=True)
                record["checks"].append(
                    {"part": part, "name": name, "device": str(here.device), "verdict": verdict,
                     "said": str(said), "seconds": seconds,
                     "figures": said if isinstance(said, dict) else None}
                )  # fmt: skip
                if args.json:
                    Path(args.json).write_text(json.dumps(record, indent=1))
    counts = Counter(c["verdict"] for c in record["checks"])
    print(", ".join(f"{n} {v}" for v, n in counts.items()), f"in {time.monotonic() - began:.0f} s")
    if said := tables(TABLES, record):
        print(said)
    return failed


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "gpu.py", "Whether a GPU computes what a CPU does.", argv)
    if unknown := set(args.only) - set(PARTS):
        raise UserError(f"--only {' '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    machine = describe_machine()
    device = torch.device("cuda", 0) if args.simulate else use_device(args.device)
    card = "simulated GPU" if args.simulate else machine["gpus"][device.index or 0]
    print(f"{card}, torch {machine['torch']}, {machine['commit']}")
    record = {"machine": machine, "args": asdict(args), "checks": []}
    with tempfile.TemporaryDirectory() as folder:
        return int(run(args, Where(device, Path(folder), args.simulate), record) > 0)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "gpu")


if __name__ == "__main__":
    sys.exit(main())
