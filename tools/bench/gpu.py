"""Whether a GPU computes what a CPU does: every family, head and condition, in training and
generation, and the codecs.

    python tools/bench/gpu.py                        # cuda:0, at most four minutes
    python tools/bench/gpu.py --only codec waits     # some parts
    python tools/bench/gpu.py --simulate             # without a GPU, see below

Each check prints a line when it is done, and the file of ``--json`` is written anew after each, so
that nothing is lost when the machine is. Parts come in the order of their worth; what ``--seconds``
leaves no time for is "not run". Exit status 1 if a check failed. Needs what rvqlm needs, no test
tools. Models are small and their weights large, so that a wrong mask or position shows.

References are computed on the CPU in float64. On the GPU float64 must equal them but for the order
of sums, float32, TF32 and bf16 to the digits they have. Codes drawn in float64 must be the same.

``--simulate`` makes `simulated_cuda`'s GPUs. What runs through there has all of its tensors where
it should and takes the GPU's branches, and its ``waits`` are counted. It says nothing of kernels,
rounding, TF32, memory beyond what tensors take, speed, several ranks, or ``--compile``.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_checks import PARTS, Where, Wrong

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError
from rvqlm.runtime import describe_machine, set_tf32, use_device


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """Parts: equality, generation, codec, training, memory, waits; default: all."""
    seconds: float = 240.0
    """No check begins later."""
    device: str = "cuda:0"
    """The GPU."""
    json: str = ""
    """File for the results."""
    simulate: bool = False
    """Simulate a GPU on the CPU."""


def run(args: Args, where: Where, record: dict) -> int:
    """All checks; the number of those that failed."""
    began, failed = time.monotonic(), 0
    for part in args.only or PARTS:
        for name, work in PARTS[part](where):
            start, said = time.monotonic(), "no time left"
            verdict = "not run"
            if start - began < args.seconds:
                try:
                    set_tf32(False)
                    with redirect_stderr(io.StringIO()):  # lines of the trainer
                        verdict, said = "ok", work()
                except Wrong as e:
                    verdict, said = "FAILED", str(e)
                except Exception as e:
                    last = traceback.extract_tb(e.__traceback__)
                    at = next((f for f in reversed(last) if "/rvqlm/" in f.filename), last[-1])
                    reason = str(e).splitlines()[0] if str(e) else ""
                    at = f"{Path(at.filename).name}:{at.lineno}"
                    verdict, said = "FAILED", f"{type(e).__name__} at {at}: {reason}"
            failed += verdict == "FAILED"
            seconds = time.monotonic() - start
            print(f"{verdict:8}{part:11}{name:42}{seconds:6.1f} s  {said}", flush=True)
            record["checks"].append(
                {"part": part, "name": name, "verdict": verdict, "said": said, "seconds": seconds}
            )
            if args.json:
                Path(args.json).write_text(json.dumps(record, indent=1))
    counts = Counter(c["verdict"] for c in record["checks"])
    print(", ".join(f"{n} {v}" for v, n in counts.items()), f"in {time.monotonic() - began:.0f} s")
    return failed


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "gpu.py", "Whether a GPU computes what a CPU does.", argv)
    if unknown := set(args.only) - set(PARTS):
        raise UserError(f"--only {' '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    around = nullcontext()
    if args.simulate:
        from simulated_cuda import simulated_cuda

        around = simulated_cuda()
    with around, tempfile.TemporaryDirectory() as folder:
        device = use_device(args.device)
        machine = describe_machine()
        print(
            f"{machine['gpus'][device.index or 0]}, torch {machine['torch']}, {machine['commit']}"
        )
        record = {"machine": machine, "args": asdict(args), "checks": []}
        return int(run(args, Where(device, Path(folder), args.simulate), record) > 0)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "gpu")


if __name__ == "__main__":
    sys.exit(main())
