"""What ends a training early: `StopSignals` after the step that is running, `Watchdog` when it
hangs, after it has said where.

A hang (a file system that went away, a collective that one rank never joins) would otherwise hold
its machines for as long as they are booked. The process ends with status 75, "try again later" in
sysexits.h, on which a scheduler or a loop in a shell can start it anew; it resumes from latest.pt.

The thread needs Python's lock to run. Where a hang holds it, faulthandler's own thread, which does
not, writes the stacks to stderr and ends the process with status 1 two minutes later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

STATUS = 75
BACKSTOP_SECONDS = 120.0
"""After the limit: when the process is ended without the help of Python."""
DISK_SECONDS = 60.0
"""For writing stacks: the disk may be what hangs."""


class StopSignals:
    """Context in which SIGINT and SIGTERM ask for the end of a training instead of ending it; a
    second one, more than two seconds later, raises `KeyboardInterrupt`.

    :param loud: say on stderr that the signal came.
    """

    def __init__(self, loud: bool = True):
        self.loud = loud
        self.number: int | None = None
        """The signal that came."""
        self._came = 0.0

    def __enter__(self) -> None:
        self._before = {s: signal.signal(s, self.take) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.number is not None:
            # Ctrl-C under torchrun comes twice, from the terminal and from torchrun
            if now - self._came > 2:
                raise KeyboardInterrupt
            return
        self.number, self._came = number, now
        if self.loud:  # not print: the signal may have come in the middle of one
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving at the end of this step\n".encode())


class Watchdog:
    """Wants a `beat` in every `minutes`.

    Parameters
    ----------
    exp_dir: folder of the experiment, the same for all ranks where they share a disk.
    minutes: 0: watches nothing.
    clock: seconds that only go forward.

    With several ranks each writes ``EXP/ranks/rank-N.json`` once a second at most, with the keys
    rank, host, pid, step, where, since (seconds since 1970). The first rank to give up prints where
    all of them are, and the others follow it once they have written their stacks too.
    """

    def __init__(
        self,
        exp_dir: str | Path,
        rank: int,
        world_size: int,
        minutes: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.exp_dir, self.rank, self.world_size = Path(exp_dir), rank, world_size
        self.limit = minutes * 60 if minutes else float("inf")
        self.poll = min(1.0, self.limit / 10)
        """Seconds between two looks."""
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.beat(0, "start")

    @property
    def _marker(self) -> Path:
        """Tells the other ranks that one has given up."""
        return self.exp_dir / "ranks" / "hang"

    def start(self) -> None:
        if self.limit == float("inf"):
            return
        if self.world_size > 1:
            self._marker.parent.mkdir(parents=True, exist_ok=True)
            self._marker.unlink(missing_ok=True)  # of an earlier run: no rank hangs already
        self.beat(0, "start")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="rvqlm-watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int, where: str) -> None:
        """`where` begins now. Costs a microsecond."""
        self._last = (step, where, self._clock(), time.time())

    def stop(self) -> None:
        """Training is over: nothing is ended any more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        armed = -float("inf")
        while not self._stop.wait(self.poll):
            # not at every look: each arming starts a thread of the operating system
            if time.monotonic() - armed > 10 * self.poll:
                armed = time.monotonic()
                faulthandler.dump_traceback_later(self.limit + BACKSTOP_SECONDS, exit=True, file=2)
            with contextlib.suppress(OSError):  # of a disk that is away for a moment
                self._look()

    def _look(self) -> None:
        if self.world_size > 1:
            with contextlib.suppress(OSError):  # where a rank stands is worth less than training
                self._write_place()
            if self._marker.exists():
                self._give_up(first=False)
        if self._clock() - self._last[2] >= self.limit:
            self._give_up(first=self._claim())

    def _place(self) -> dict:
        step, where, _, since = self._last
        return {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(),
                "step": step, "where": where, "since": since}  # fmt: skip

    def _write_place(self) -> None:
        path = self.exp_dir / "ranks" / f"rank-{self.rank}.json"
        temporary = path.with_suffix(".tmp")
        # without a flush to the disk: this may be lost, and comes every second
        temporary.write_text(json.dumps(self._place()))
        os.replace(temporary, path)

    def _claim(self) -> bool:
        """Whether this rank is the first to give up."""
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            pass  # no disk: everybody speaks
        return True

    def _give_up(self, first: bool) -> None:
        faulthandler.dump_traceback_later(DISK_SECONDS, exit=True, file=2)
        step, where, began, _ = self._last
        if first:
            # not print: its lock may be what is waited for
            os.write(2, ("\n" + "\n".join(self.report()) + "\n").encode())
        try:
            with open(self.exp_dir / f"hang-rank-{self.rank}.txt", "w") as file:
                file.write(
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank} of {self.world_size}, "
                    f"step {step}: {where} for {self._clock() - began:.0f} s\n"
                )
                for thread in threading.enumerate():
                    file.write(f"thread 0x{thread.ident or 0:016x} is {thread.name}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as e:
            os.write(2, f"hang-rank-{self.rank}.txt could not be written: {e}\n".encode())
        if self.world_size > 1:
            time.sleep(self.poll * (5 if first else 10))  # torchrun ends all after the first
        os._exit(STATUS)

    def report(self) -> list[str]:
        """A line per rank: where it is and since when."""
        silent = self._clock() - self._last[2]
        lines = [
            f"rvqlm: no progress of rank {self.rank} for {_span(silent)} (--hang-minutes "
            f"{self.limit / 60:g}): ending with status {STATUS}; start again to resume from "
            "latest.pt"
        ]
        places: dict[int, dict] = {}
        for rank in range(self.world_size):
            with contextlib.suppress(OSError, ValueError):
                path = self.exp_dir / "ranks" / f"rank-{rank}.json"
                places[rank] = json.loads(path.read_text())
        places[self.rank] = self._place()
        longest = min(places, key=lambda rank: places[rank]["since"])
        for rank in range(self.world_size):
            p = places.get(rank)
            if p is None:
                lines.append(
                    f"rank {rank}: unknown, it left no {self.exp_dir}/ranks/rank-{rank}.json"
                )
                continue
            lines.append(
                f"rank {rank}: step {p['step']}, {p['where']} since "
                f"{time.strftime('%H:%M:%S', time.localtime(p['since']))} "
                f"({_span(time.time() - p['since'])}), {p['host']} pid {p['pid']}"
                + (", the longest" if rank == longest and len(places) > 1 else "")
            )
        return [*lines, f"stacks: {self.exp_dir}/hang-rank-N.txt"]


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
