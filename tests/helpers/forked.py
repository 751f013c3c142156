"""Trainings in forked processes, to be killed at any moment: what a crash leaves is left."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.training.logger import TIMINGS

UNTIMED = {*TIMINGS, "config", "since"}


def fork(run: Callable[[], int]) -> int:
    """Process id of a child that returns what `run` does; quiet but for tracebacks."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        torch.set_num_threads(1)
        status = run()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train_with_kills(argv: list[str], kills: list[float]) -> int:
    """Run the trainer, each time killed after so many seconds, then to its end; kills that hit."""
    hits = 0
    for delay in kills:
        pid = fork(lambda: trainer.main(argv))
        end = time.monotonic() + delay
        while time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(pid, signal.SIGKILL)
            hits += wait(pid) == -signal.SIGKILL
        except (ProcessLookupError, ChildProcessError):
            return hits  # it was done
    assert wait(fork(lambda: trainer.main(argv))) == 0
    return hits


def same(a, b, path="") -> None:
    """Assert that two checkpoints (or parts) are equal to the bit but for timings."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a:
            if k not in UNTIMED:
                same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for n, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{n}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or (a != a and b != b), f"{path}: {a} and {b}"


def log_of(exp_dir: Path) -> list[dict]:
    lines = map(json.loads, (Path(exp_dir) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in lines]


def same_experiment(a: Path, b: Path) -> None:
    """Assert that two experiments ended alike: checkpoints and logs."""
    for name in ("latest.pt", "best.pt"):
        same(load_checkpoint(a / name), load_checkpoint(b / name), name)
    assert log_of(a) == log_of(b)
