"""One writer of a folder in a bucket at a time, among all machines: a lock object, and what was
written brought there.

The object `mirror.LOCK` says who writes and is written anew every `BEAT_SECONDS`. The store itself
lets one of two make it (a conditional put). One whose holder is silent for `SILENT_SECONDS` is
taken over; a holder that finds another's name there stops and brings nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.locks import described, gone, identity, known_owner
from rvqlm.remote.mirror import LOCK, Mirror, busy

BEAT_SECONDS = 10.0
SILENT_SECONDS = 90.0
SETTLE_SECONDS = 2.0
"""After a lock was made: by then another has that did so in the same moment, where the store has no
conditional put, or after the lock of one that was killed. The last one holds it."""
LOOK_SECONDS = 2.0
"""How often a training's folder is looked at for new checkpoints."""
LOG_SECONDS = 30.0
"""How often its logs and samples are sent."""
IN_BACKGROUND = ("rvqlm train",)
"""Commands whose files are sent while they run; of others at the end."""


@contextlib.contextmanager
def held(mirror: Mirror, folder: Path, command: str, wait: float, hint: str) -> Iterator[bool]:
    """Hold the lock of `folder`, within a mirror, in the bucket during the block; what the block
    writes goes there. Yields whether the bucket had changed since it was looked at.

    :param wait: seconds to wait for another's end.
    :raises UserError: another holds it; at the end, not all has reached the bucket.
    """
    if mirror.bucket.read_only:
        raise UserError(f"{mirror.url} can only be read; give another place to write to")
    inner = folder.resolve().relative_to(mirror.path).as_posix()
    name = LOCK if inner == "." else f"{inner}/{LOCK}"
    lock = _Lock(mirror, name, command)
    lock.take(wait, hint)
    over = threading.Event()
    threads = [threading.Thread(target=lock.beat, args=(over,), daemon=True)]
    if command in IN_BACKGROUND:
        threads.append(threading.Thread(target=_send, args=(lock, over), daemon=True))
    try:
        changed = mirror.pull()
        with busy(mirror.home):
            for thread in threads:
                thread.start()
            try:
                yield changed
            except BaseException:
                _end(over, threads)
                try:
                    lock.push()
                except UserError as e:  # the first error is what ends the command
                    _say(f"rvqlm: {e}")
                raise
            _end(over, threads)
            lock.push()
    finally:
        over.set()
        lock.release()


def _end(over: threading.Event, threads: list[threading.Thread]) -> None:
    over.set()
    for thread in threads:
        thread.join()


def _send(lock: _Lock, over: threading.Event) -> None:
    """Send new checkpoints at once and all else now and then."""
    sent = time.monotonic()
    while not over.wait(LOOK_SECONDS) and not lock.lost:
        due = time.monotonic() - sent >= LOG_SECONDS
        if due or any(name.endswith(".pt") for name in lock.mirror.changes()):
            try:
                lock.push()
            except UserError as e:
                _say(f"rvqlm: {e}")
            except OSError as e:  # the disk of the cache
                _say(f"rvqlm: {lock.mirror.url}: {e}")
            sent = time.monotonic()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Lock:
    def __init__(self, mirror: Mirror, name: str, command: str):
        self.mirror, self.bucket, self.name = mirror, mirror.bucket, name
        self.where = mirror.bucket.shown(name.rpartition("/")[0])
        since = datetime.now().isoformat(" ", "seconds")
        self.record = {"command": command, "since": since, **identity(), "id": uuid.uuid4().hex}
        self.lost = False
        """Another has it."""

    def _bytes(self) -> bytes:
        return json.dumps({**self.record, "beat": time.time()}).encode()

    def take(self, wait: float, hint: str) -> None:
        began, waited = time.monotonic(), False
        while True:
            data = self.bucket.read(self.name)
            who = described(known_owner(data or b""))
            if data is not None and self._lives(data, who):
                passed, busy = time.monotonic() - began, f"{self.where}: {who} is writing there"
                if passed >= wait:
                    raise UserError(f"{busy}; wait for it or stop it{hint}")
                if not waited:
                    _say(f"{busy}; waiting up to {wait / 60:g} minutes")
                waited = True
                time.sleep(min(1.0, wait - passed))
                continue
            if data is not None:
                if self.bucket.read(self.name) != data:
                    continue
                _say(f"{self.where}: {who} was killed; its lock is taken over")
                self.bucket.remove(self.name)
            if self.bucket.write(self.name, self._bytes(), once=True):
                time.sleep(SETTLE_SECONDS)
                if self._is_ours():
                    return

    def _lives(self, data: bytes, who: str) -> bool:
        """Whether who wrote the lock is there: looked up, on this machine; on another the object
        changes within `SILENT_SECONDS`, whatever the clocks say."""
        if (owner := known_owner(data)) and gone(owner):
            return False
        _say(f"{self.where}: seeing whether {who} still lives")
        began = time.monotonic()
        while time.monotonic() - began < SILENT_SECONDS:
            time.sleep(min(1.0, SILENT_SECONDS / 10))
            if self.bucket.read(self.name) != data:
                return True
        return False

    def _is_ours(self) -> bool:
        try:
            found = json.loads(self.bucket.read(self.name) or b"{}")
        except ValueError:
            return False
        return isinstance(found, dict) and found.get("id") == self.record["id"]

    def beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT_SECONDS):
            try:
                if not self._is_ours():
                    self._lose()
                    return
                self.bucket.write(self.name, self._bytes())
            except UserError as e:
                _say(f"rvqlm: {e}")

    def _lose(self) -> None:
        self.lost = True
        _say(f"rvqlm: {self.where}: another has taken the lock over; ending")
        os.kill(os.getpid(), signal.SIGTERM)

    def push(self) -> None:
        """Bring there what has changed, as long as the lock is ours."""
        try:
            if self.lost or not self._is_ours():
                self.lost = True
                raise UserError("another has taken the lock over")
            self.mirror.push(deletes=True)
        except UserError as e:
            raise UserError(
                f"{self.where}: not all has reached the bucket ({e}); it is in {self.mirror.home}: "
                "run the same command again on this machine"
            ) from None

    def release(self) -> None:
        with contextlib.suppress(UserError):
            if not self.lost and self._is_ours():
                self.bucket.remove(self.name)
