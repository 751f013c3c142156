"""The processes of `rvqlm tokenize`: each encodes some shards on one thread and reports back.

Workers share nothing but the file system. They die with their parent, however that ends, and a
worker that dies takes the run down with one clear line; finished items are safe in either case.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from rvqlm.codecs.base import Codec
from rvqlm.codecs.registry import load_codec
from rvqlm.cores import FasterThreads
from rvqlm.errors import UserError
from rvqlm.runtime import use_device
from rvqlm.tokenizing.shard import Progress, ShardJob

REPORT_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_shards(
    job: ShardJob,
    shards: list[int],
    jobs: int,
    codec: Codec,
    load: tuple,
    report: Callable[[int, Progress], None],
) -> None:
    """Encode `shards` in up to `jobs` processes; in this one if one is enough.

    One process finds out as it goes on whether one thread or all are faster (`FasterThreads`).

    `codec` is what the processes inherit where they are forked; where they have to be spawned
    (CUDA, macOS) they make their own with ``load_codec(*load)``. Raises the `UserError` of a worker
    as it is.
    """
    jobs = min(jobs, len(shards))
    if jobs <= 1:
        threads = FasterThreads() if codec.device.type == "cpu" else None
        for shard in shards:
            job.encode(shard, codec, report, threads)
        return
    fork = sys.platform == "linux" and codec.device.type == "cpu"
    context = multiprocessing.get_context("fork" if fork else "spawn")
    workers, pipes = [], []
    try:
        for i in range(jobs):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work,
                args=(job, shards[i::jobs], theirs, codec if fork else load, os.getpid()),
                daemon=True,
            )
            worker.start()
            theirs.close()
            workers.append(worker)
            pipes.append(ours)
        _listen(workers, pipes, report)
    finally:
        for worker in workers:
            worker.kill()  # safe at any moment, and faster than asking
            worker.join()


def _listen(
    workers: list, pipes: list[Connection], report: Callable[[int, Progress], None]
) -> None:
    """Pass reports on until all workers are through; raise what one of them met."""
    open_pipes = dict(zip(pipes, workers))
    while open_pipes:
        for pipe in wait(list(open_pipes)):
            try:
                kind, *content = pipe.recv()
            except EOFError:
                worker = open_pipes.pop(pipe)
                worker.join()
                code = worker.exitcode
                cause = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
                raise UserError(
                    f"an encoding process died ({cause}; out of memory?); finished items are "
                    "kept: run the same command again, with fewer --jobs if memory is short"
                ) from None
            if kind == "progress":
                report(*content)
            elif kind == "done":
                open_pipes.pop(pipe)
            elif kind == "user-error":
                raise UserError(content[0])
            else:
                raise RuntimeError(f"in an encoding process:\n{content[0]}")


def _work(
    job: ShardJob, shards: list[int], pipe: Connection, codec: Codec | tuple, parent: int
) -> None:
    """Body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and will kill us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be watched
    torch.set_num_threads(1)
    last = 0.0

    def report(shard: int, progress: Progress) -> None:
        nonlocal last
        first, end = job.ranges[shard]
        complete = progress.resumed + progress.items == end - first
        if complete or time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            pipe.send(("progress", shard, replace(progress)))
            if progress.speeds:
                progress.speeds.clear()  # each is told once

    try:
        if isinstance(codec, tuple):
            use_device(codec[1])
            codec = load_codec(*codec)
        for shard in shards:
            job.encode(shard, codec, report)
        pipe.send(("done",))
    except UserError as e:
        pipe.send(("user-error", str(e)))
    except Exception:
        pipe.send(("bug", traceback.format_exc()))
