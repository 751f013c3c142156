"""Speed of training on cores that others use, beside its speed on one thread of an idle machine.

    python tools/bench/shared_cores.py                # d256 x 6, on 8 x 400 frames
    python tools/bench/shared_cores.py --seconds 60

A row is a load: none, a busy loop on one core, three niced ones on all of them. Beside it the model
is trained by the clock with one thread, with all of them and as ``--num-threads auto`` chooses, the
trials of the other number and the beginning included. The ratio is that of ``auto`` to the one
thread of the idle machine; exit status 1 where it is below 0.7.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rvqlm.cli import parse, run_main
from rvqlm.runtime import tune_malloc

LEAST = 0.7
LOADS = {"none": (), "one-core": ((0, 0),), "niced": ((19, None),) * 3}
"""Busy loops, each with its niceness and its core (by number among those at hand), if it has
one."""


@dataclass
class Args:
    size: Literal["tiny", "small", "base", "large"] = "small"
    """As of tools/bench/train_step.py."""
    loads: tuple[Literal["none", "one-core", "niced"], ...] = ("none", "one-core", "niced")
    """What else the machine does."""
    ways: tuple[Literal["one", "all", "auto"], ...] = ("one", "all", "auto")
    """Threads. Of the idle machine one is always measured."""
    seconds: float = 20.0
    """Of each."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware has it."""
    batch: int = 0
    """Items of a batch; 0: as the size says."""
    frames: int = 0
    """Frames of an item; 0: as the size says."""
    codebooks: int = 9
    """Levels K."""
    codebook_size: int = 1024
    """Codes V of each."""
    checkpointing: bool = False
    """Activation checkpointing."""


@contextlib.contextmanager
def loaded(load: str) -> Iterator[None]:
    """While busy loops run; they end with this process, however that ends."""
    cores = sorted(os.sched_getaffinity(0))
    loops = []
    for niceness, core in LOADS[load]:
        program = (
            f"import os\nos.nice({niceness})\n"
            f"os.sched_setaffinity(0, {cores if core is None else [cores[core]]})\n"
            f"while os.getppid() == {os.getpid()}:\n    sum(range(100_000))"
        )
        loops.append(subprocess.Popen([sys.executable, "-c", program]))
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def speed(args: Args, model, batch, dtype, way: str) -> tuple[float, str]:
    """Frames a second of a training by the clock, and the threads that it ended with."""
    import torch
    from train_step_cases import Loader

    from rvqlm.cores import FasterThreads
    from rvqlm.runtime import num_cores
    from rvqlm.training.config import SaveConfig, TrainerConfig
    from rvqlm.training.trainer import Trainer

    torch.set_num_threads(1 if way == "one" else num_cores())
    threads = FasterThreads() if way == "auto" else None
    with tempfile.TemporaryDirectory() as folder:
        flags = TrainerConfig(
            folder, "", max_minutes=args.seconds / 60, save=SaveConfig(save_every_minutes=0),
            quiet=True,
        )  # fmt: skip
        trainer = Trainer(
            model, Loader(batch), None, flags, model.info, torch.device("cpu"), dtype,
            threads=threads,
        )  # fmt: skip
        trainer.fit()
        return trainer.total_frames / trainer.elapsed, str(torch.get_num_threads())


def run(argv: Sequence[str] | None = None) -> int:
    args = parse(Args, "shared_cores.py", __doc__.splitlines()[0], argv)
    tune_malloc()
    import torch
    from train_step import SIZES
    from train_step_cases import make_batch, make_model

    from rvqlm.runtime import describe_machine, pick_precision

    dtype = pick_precision(args.precision, torch.device("cpu"))
    size = dict(SIZES[args.size])
    size |= {k: v for k, v in (("batch", args.batch), ("frames", args.frames)) if v}
    torch.manual_seed(0)
    model, batch = make_model(args, size, "delay").train(), make_batch(args, size, "delay")
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}, {dtype}")
    reference = speed(args, model, batch, dtype, "one")[0]
    print(f"idle, one thread: {reference:,.0f} frames/s", flush=True)
    least = float("inf")
    for load in args.loads:
        with loaded(load):
            for way in args.ways:
                found, threads = speed(args, model, batch, dtype, way)
                print(
                    f"{load:10}{way:6}{found:10,.0f} frames/s{found / reference:8.2f} of one idle "
                    f"thread, ended with {threads}",
                    flush=True,
                )
                least = min(least, found / reference) if way == "auto" else least
    return int(least < LEAST)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, "shared_cores.py")


if __name__ == "__main__":
    sys.exit(main())
