"""One writer in a folder at a time: a lock for every command that works in one.

The lock is the hidden file `NAME` of the folder, locked with flock for as long as the command
lives, so that a killed one leaves it free. It tells who holds it. Some network file systems have no
such locks, or keep them to one machine; so what the file tells is looked at as well: a process of
this machine is looked up, and one of another touches the file every `BEAT_SECONDS`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from rvqlm.errors import UserError
from rvqlm.files import remove_torn

NAME = ".rvqlm.lock"

BEAT_SECONDS = 5.0

SILENT_SECONDS = 30.0
"""A holder on another machine that has not touched its lock for so long is dead."""

SETTLE_SECONDS = 1.0
"""So long it may take until who holds the file is told by it; without flock: so long after writing
its name into the file the last writer has won."""

_RECORD_BYTES = 512
"""Each record has the same length: one write replaces another whole."""

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)

_open_locks: set[int] = set()

elsewhere: list[Callable[[Path, str, float, str], contextlib.AbstractContextManager[bool]]] = []
"""Locks to hold as well, given folder, command, wait and hint as `locked` is: those of the buckets
that folders are copies of. Each yields whether what is in the folder has changed."""


class _Busy(Exception):
    """Somebody holds the lock: `owner` is what the file tells, {} if nothing yet."""

    def __init__(self, owner: dict):
        self.owner = owner


@contextlib.contextmanager
def locked(
    folder: str | Path,
    command: str,
    wait: float = 0.0,
    *,
    make: bool = False,
    beside: bool = False,
    hint: str = "",
) -> Iterator[bool]:
    """Hold the lock of `folder` during the block; half-written files of dead processes are removed
    first.

    Yields whether another command had to be waited for: what was read before may have changed.
    A folder that is missing, or that we may not write in, is not locked: what the command does
    there says why.

    :param command: for messages, ``rvqlm train``.
    :param wait: seconds to wait for another command's end, which is said on stderr.
    :param make: make the folder, with `beside` that above it, if it is missing; left empty, it goes
        again.
    :param beside: `folder` appears when it is complete; the lock lies beside it.
    :param hint: what else a user can do, for the message.
    :raises UserError: another command holds it, with its host, process and time.
    """
    folder = Path(folder)
    full = folder.resolve()
    path = full.with_name(f".{full.name}.lock") if beside else full / NAME
    made = _make_folder(path.parent) if make else []
    began, waited = time.monotonic(), False
    while True:
        try:
            lock = _take(path, folder, command)
            break
        except _Busy as busy:
            passed = time.monotonic() - began
            # it is about to write who it is; or it was killed, and a child that it had just forked
            # is about to let go
            unsettled = not busy.owner or gone(busy.owner)
            if unsettled and passed < SETTLE_SECONDS:
                time.sleep(0.02)
                continue
            who = f"{folder}: {described(busy.owner)} is writing there"
            if passed >= wait:
                raise UserError(f"{who}; wait for it or stop it{hint}") from None
            if not waited:
                print(f"{who}; waiting up to {wait / 60:g} minutes", file=sys.stderr, flush=True)
            waited = True
            time.sleep(min(1.0, wait - passed))
    if lock is None:
        yield waited
        return
    try:
        with _held(path, lock), contextlib.ExitStack() as stack:
            remove_torn(path.parent, full.name if beside else None)
            for other in elsewhere:
                waited |= stack.enter_context(other(full, command, wait, hint))
            yield waited
    finally:
        for parent in made:  # if nothing came of it
            with contextlib.suppress(OSError):
                parent.rmdir()


def try_lock(file: int | BinaryIO, shared: bool = False, patience: float = 0.0) -> bool | None:
    """Lock an open file with flock, until it is closed; False if another has held its lock for
    `patience` seconds, None where the file system knows no locks."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except OSError as e:
            if e.errno in _NO_FLOCK:
                return None
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; those that were missing, the innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    with contextlib.suppress(OSError):  # what the command does there says why
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path, folder: Path, command: str) -> int | None:
    """The opened and locked file; None where it cannot be written. `_Busy` if it is held."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            if e.errno in (*_REFUSED, errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        try:
            if not _try(file, path, folder, command):
                continue  # its holder took the file away in this very moment
            _open_locks.add(file)
            return file
        finally:
            if file not in _open_locks:
                os.close(file)


def _try(file: int, path: Path, folder: Path, command: str) -> bool:
    if (real := try_lock(file)) is False:
        raise _Busy(_read(file))
    if not _is(file, path):
        return False
    owner = _read(file)
    if owner:
        if not _dead(owner, path, folder, real):
            raise _Busy(owner)
        print(f"{folder}: {described(owner)} was killed; its lock is taken over", file=sys.stderr)
    record = {"command": command, "since": datetime.now().isoformat(" ", "seconds"), **identity()}
    try:
        os.pwrite(file, json.dumps(record).ljust(_RECORD_BYTES - 1).encode() + b"\n", 0)
    except OSError as e:  # the disk is full
        path.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(folder)) from None
    with contextlib.suppress(OSError):  # others may write here too
        os.fchmod(file, 0o666)
    if not real:
        os.fsync(file)
        time.sleep(SETTLE_SECONDS)
        if (winner := _read_path(path)) != record:
            raise _Busy(winner)
    return True


@contextlib.contextmanager
def _held(path: Path, file: int) -> Iterator[None]:
    """Touch the file while the block runs, and take it away at the end."""
    over, process = threading.Event(), os.getpid()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(file)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if os.getpid() == process and file in _open_locks:
            with contextlib.suppress(OSError):
                if _is(file, path):
                    path.unlink()
            _open_locks.discard(file)
            os.close(file)


def _forget() -> None:
    """In a forked child: a lock ends with the process that took it, whatever its children do."""
    for file in _open_locks:
        with contextlib.suppress(OSError):
            os.close(file)
    _open_locks.clear()


os.register_at_fork(after_in_child=_forget)


# ----------------------------------------------------------------------------- who holds it


def identity() -> dict:
    """This process, among all those of all machines that may look at the folder."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), **_machine()}


def _machine() -> dict:
    """The running system, and which processes it shows us: containers hide others from each
    other."""
    boot, space = socket.gethostname(), ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"boot": boot, "space": space}


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks; "" where that is not told, None if it is
    gone or waits only for its parent to ask how it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # somebody else's
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def gone(owner: dict) -> bool:
    """Whether the process that a lock file names is one that we would see here, and don't."""
    here = _machine()
    seen = owner["boot"] == here["boot"] and owner["space"] == here["space"]
    return seen and _started(owner["pid"]) != owner["started"]


def _dead(owner: dict, path: Path, folder: Path, real: bool | None) -> bool:
    """Whether the process that a lock file names is no more.

    :param real: we hold the flock, so that no process of this machine does.
    """
    here = _machine()
    if owner["boot"] == here["boot"] and (real or owner["space"] == here["space"]):
        return bool(real) or gone(owner)
    print(f"{folder}: seeing whether {described(owner)} still lives", file=sys.stderr, flush=True)
    touched, began = _touched(path), time.monotonic()
    while time.monotonic() - began < SILENT_SECONDS:
        time.sleep(min(0.5, SILENT_SECONDS / 10))
        if _touched(path) != touched:
            return False
    return True


def _touched(path: Path) -> int | None:
    """When a file was changed last; opened, since network file systems look anew only then."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _is(file: int, path: Path) -> bool:
    """Whether `path` still is the open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _read(file: int) -> dict:
    return known_owner(os.pread(file, _RECORD_BYTES, 0))


def known_owner(record: bytes) -> dict:
    """What a lock tells of its holder; {} if nothing that is known here."""
    try:
        owner = json.loads(record)
        words = ("command", "since", "host", "started", "boot", "space")
        known = isinstance(owner["pid"], int) and all(isinstance(owner[k], str) for k in words)
        return owner if known else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _read_path(path: Path) -> dict:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return {}
    try:
        return _read(file)
    finally:
        os.close(file)


def described(owner: dict) -> str:
    if not owner:
        return "another command"
    return "{command} (host {host}, process {pid}, since {since})".format(**owner)
