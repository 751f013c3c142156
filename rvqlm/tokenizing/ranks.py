"""The processes of torchrun or srun, and how they notice that one of them is gone.

Ranks share nothing but the output folder. Each holds the lock of a file there for as long as it
lives: a lock that is free again without the rank's work being done means that it will never be.
Where the file system has no locks, that goes unnoticed.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rvqlm.errors import UserError
from rvqlm.locks import try_lock
from rvqlm.slurm import join_step, started_by_srun

GONE_SECONDS = 10.0
"""How long a lock must have been free: of an earlier run's rank it is free until its own starts."""

LOCK_SECONDS = 10.0

START_SECONDS = 600.0
"""How long to wait for a rank that never showed up."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun or srun; a single one without them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        if join_step():
            print(f"Slurm: {os.environ['WORLD_SIZE']} tasks share the work", file=sys.stderr)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ.get(n, d)) for n, d in zip(names, (0, 1, 0))))

    def device(self, name: str) -> str:
        """The device that a user's ``--device`` means here: cuda is each rank's own GPU."""
        if self.world_size > 1 and name == "auto":
            import torch

            name = "cuda" if torch.cuda.is_available() else "cpu"
        if self.world_size == 1 or name != "cuda":
            return name
        if started_by_srun():
            import torch

            if torch.cuda.device_count() == 1:  # tasks may be shown one GPU each
                return "cuda:0"
        return f"cuda:{self.local_rank}"

    def sign_in(self, folder: Path) -> BinaryIO | None:
        """Lock this rank's file; it stays locked until the returned file is closed or we die.

        Rank 0 takes away what dead ranks of an earlier run have left. Returns None where the
        folder is gone: the others have finished.
        """
        if self.rank == 0:
            for other in range(1, self.world_size):
                if _state(lock_path(folder, other)) == "gone":
                    lock_path(folder, other).unlink(missing_ok=True)
        path, deadline = lock_path(folder, self.rank), time.monotonic() + LOCK_SECONDS
        while True:
            try:
                file = open(path, "ab")  # noqa: SIM115
            except FileNotFoundError:
                return None
            if try_lock(file) is not False:
                if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    return file
            elif time.monotonic() > deadline:  # longer than one looks whether it is free
                file.close()
                raise UserError(
                    f"{path}: another process is rank {self.rank} of this folder; stop it first"
                )
            file.close()  # rank 0 took the file away in this very moment
            time.sleep(0.02)

    def wait(self, ready: Callable[[], set[int]], folder: Path, what: str) -> None:
        """Return when `ready` has no more ranks to wait for.

        ready: the ranks that something is still expected of. what: that is, for messages.
        Raises `UserError` if one of them is gone, or has not come for `START_SECONDS`.
        """
        began = said = time.monotonic()
        states: dict[int, tuple[str, float]] = {}  # and since when
        while waiting := ready():
            now = time.monotonic()
            for rank in waiting:
                state = _state(lock_path(folder, rank))
                if states.get(rank, ("", 0))[0] != state:
                    states[rank] = state, now
                patience = {"alive": math.inf, "gone": GONE_SECONDS, "absent": START_SECONDS}
                # it may have finished in between, hence the second look
                if now - states[rank][1] > patience[state] and rank in ready():
                    how = "stopped" if state == "gone" else "has not started"
                    raise UserError(
                        f"rank {rank} {how} and {what} is missing; finished items are kept: run "
                        "the same command again"
                    )
            if now - said > 60:
                said = now
                names = ", ".join(map(str, sorted(waiting)))
                print(f"waiting for {what} of rank {names}, {now - began:.0f} s", file=sys.stderr)
            time.sleep(0.1)


def lock_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.lock"


def _state(path: Path) -> str:
    """``alive``, ``gone`` or ``absent``: whether there is a lock, and whether somebody holds it."""
    try:
        with open(path, "rb") as file:
            return "gone" if try_lock(file, shared=True) else "alive"
    except FileNotFoundError:
        return "absent"
