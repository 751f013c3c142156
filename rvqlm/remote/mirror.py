"""The copy on this machine of what lies below a URL: the cache.

Every command works in such copies, and below this room all paths are local. The folder of a URL in
the cache holds the files and a record of them, ``state.json``: the version that each has in the
bucket. It brings what has changed there (`Mirror.pull`), fetches token shards when they are opened
and the audio of an input when its turn comes (`Mirror.fetch`), and takes there what has changed
here (`Mirror.push`). All processes of a machine share it, with locks of the system:

``sync.lock``   exclusive: files and record are being brought together
``use.lock``    shared: a process works with the files, they are not evicted
``busy.lock``   shared: a process writes there and brings it to the bucket: nothing is pulled
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rvqlm.errors import UserError
from rvqlm.files import link_or_copy, remove, write_json
from rvqlm.locks import try_lock
from rvqlm.remote.bucket import Bucket, Entry

LOCK = ".rvqlm.lock"
"""Name of the lock, in a bucket as in a folder."""
FETCHES = 8
"""Objects that are fetched at a time."""
_COPIED = 16 << 20  # smaller files may be written to while they are sent: a copy is


class Known(NamedTuple):
    """What the record says of a file."""

    size: int
    version: str
    mtime_ns: int | None
    """of the file here; None: it is in the bucket only"""


def cache_root() -> Path:
    """``RVQLM_CACHE``, or ``~/.cache/rvqlm/remote``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rvqlm" / "remote"
    root = Path(os.environ.get("RVQLM_CACHE") or base)
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


def cache_bound(root: Path, held: int) -> int:
    """Bytes that the cache may hold: ``RVQLM_CACHE_GB`` GB, or nine tenths of what the disk has for
    it."""
    if text := os.environ.get("RVQLM_CACHE_GB"):
        try:
            return int(float(text) * 1e9)
        except (ValueError, OverflowError):
            raise UserError(f"RVQLM_CACHE_GB={text}: give a number of GB") from None
    return (held + shutil.disk_usage(root).free) * 9 // 10


class Mirror:
    """The folder of the cache for one URL.

    Attributes
    ----------
    path: what stands for the URL: a folder, or a file.
    late: suffixes of files that are left in the bucket until they are fetched, as shards are.
    """

    def __init__(self, url: str, late: tuple[str, ...] = ()):
        self.url, self.bucket, self.late = url, Bucket(url), late
        name = _name_of(url)
        tag = hashlib.sha256(url.encode()).hexdigest()[:12]
        self.home = cache_root() / f"{url.partition(':')[0]}-{name}-{tag}"
        self.path = self.home / name
        self.home.mkdir(exist_ok=True)
        self._use = _lock(self.home / "use.lock", fcntl.LOCK_SH)
        os.utime(self.home / "use.lock")
        self._known: dict[str, Known] = {}
        self._sent: dict[tuple[int, int, int], str] = {}
        """Objects by inode, time and size of what was sent: a second name of it is copied there."""
        self._thread = threading.RLock()

    def close(self) -> None:
        """No longer in use by this process."""
        os.close(self._use)

    def file(self, name: str) -> Path:
        return self.path / name if name else self.path

    # ------------------------------------------------------------------------------- bring here

    def pull(self) -> bool:
        """Bring what has changed in the bucket, all but token shards and what is `late`; whether
        anything has.

        What was changed here and never reached the bucket stays, to be continued, unless something
        has changed there too: that is then what holds.
        """
        with self._synced(), _unless_busy(self.home) as idle:
            if not idle:  # a command of this machine writes here: this is newer than the bucket
                return False
            there = {n: e for n, e in self.bucket.list().items() if n.rpartition("/")[2] != LOCK}
            if "" in there and len(there) > 1:  # an object of the folder's own name
                del there[""]
            before = {name: (known.size, known.version) for name, known in self._known.items()}
            changed = before != {name: (e.size, e.version) for name, e in there.items()}
            if changed:
                self._discard(there)
            wanted = {n: e for n, e in there.items() if not self._waits(n) and not self._has(n, e)}
            self._known = {
                name: Known(e.size, e.version, self._mtime(name) if self._has(name, e) else None)
                for name, e in there.items()
            }
            self._get({n: e for n, e in wanted.items() if not self.file(n).exists()})
            return changed

    def _waits(self, name: str) -> bool:
        """Whether an object is fetched when it is needed only."""
        return _is_shard(name) or self.file(name).name.lower().endswith(self.late)

    def sizes(self) -> dict[Path, int]:
        """Bytes of what the bucket has, by the path here, fetched or not."""
        return {self.file(name): known.size for name, known in _read_state(self.home).items()}

    def fetch(self, paths: list[Path]) -> None:
        """Have these files here, which lie in the bucket and are brought when they are needed:
        audio, and token shards, compared with the checksums of ``tokens.json``."""
        if all(path.exists() for path in paths):
            return
        with self._synced():
            names = [path.relative_to(self.path).as_posix() for path in paths]
            names = ["" if name == "." else name for name in names]  # an object, no folder
            absent = {n: self._known[n] for n in names if n in self._known}
            absent = {n: Entry(k.size, k.version) for n, k in absent.items() if self._absent(n)}
            self._get(absent, self._sums(absent))

    def _get(self, wanted: dict[str, Entry], sums: dict[str, str] | None = None) -> None:
        if not wanted:
            return
        total = sum(entry.size for entry in wanted.values())
        make_room(total, self)
        if total > _COPIED:
            print(
                f"{self.url}: fetching {len(wanted):,} objects, {total / 1e6:,.0f} MB",
                file=sys.stderr, flush=True,
            )  # fmt: skip

        def get(item: tuple[str, Entry]) -> None:
            name, entry = item
            with contextlib.suppress(FileNotFoundError):  # deleted there since: who opens it says
                entry = self.bucket.get(name, entry, self.file(name), (sums or {}).get(name, ""))
                self._note(name, entry)

        with ThreadPoolExecutor(min(FETCHES, len(wanted))) as pool:
            for _ in pool.map(get, wanted.items()):
                pass

    def _sums(self, names) -> dict[str, str]:
        """SHA-256 of shards, by what the ``tokens.json`` above each says."""
        found = {}
        for folder in {name.rpartition("codes/")[0] for name in names}:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                record = json.loads(self.file(f"{folder}tokens.json").read_text())
                sums = {f"{folder}{s['path']}": s.get("sha256", "") for s in record["shards"]}
                found |= {name: sums[name] for name in names if name in sums}
        return found

    def _discard(self, there: dict[str, Entry]) -> None:
        """Delete what is not in the bucket, or is another there."""
        for name in self._local():
            if name not in there or not self._has(name, there[name]):
                remove(self.file(name))

    # ----------------------------------------------------------------------------- bring there

    def changes(self) -> dict[str, os.stat_result]:
        """Files that are others than in the bucket."""
        found = {}
        for name, stat in self._local().items():
            known = self._known.get(name)
            if known is None or (stat.st_size, stat.st_mtime_ns) != (known.size, known.mtime_ns):
                found[name] = stat
        return found

    def push(self, deletes: bool = False, but: dict[str, os.stat_result] | None = None) -> int:
        """Bring to the bucket what has changed here, data before what names it; how many files.

        :param deletes: what was deleted here goes there as well.
        :param but: changes that are not ours.
        """
        with self._synced():
            changed = self.changes()
            for name, stat in (but or {}).items():
                if name in changed and _unchanged(changed[name], stat):
                    del changed[name]
            gone = [n for n, k in self._known.items() if k.mtime_ns is not None and self._absent(n)]
            gone = gone if deletes and self.path.exists() else []
            if not changed and not gone:
                return 0
            if self.bucket.read_only:
                print(f"{self.url} is only read; what was written is in {self.home}",
                      file=sys.stderr)  # fmt: skip
                return 0
            with self._snapshot(changed) as staged:
                for name in sorted(staged, key=_order):
                    self._put(staged[name], name)
            for name in gone:
                self.bucket.remove(name)
                del self._known[name]
            return len(changed)

    @contextlib.contextmanager
    def _snapshot(self, names) -> Iterator[dict[str, tuple[Path, os.stat_result]]]:
        """Second names of files as they are now, so that what replaces them, or deletes them,
        changes nothing of what is sent. Checkpoints go with the directories that they name: taken
        again until none was replaced meanwhile."""
        staging = self.home / "staging"  # one at a time: we are alone
        while True:
            remove(staging)
            staging.mkdir()
            staged = {}
            for number, name in enumerate(names):
                to, path = staging / str(number), self.file(name)
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted since
                    stat = path.stat()
                    small = stat.st_size < _COPIED and path.suffix != ".pt"
                    shutil.copyfile(path, to) if small else link_or_copy(path, to)
                    staged[name] = (to, stat)
            if all(_same(self.file(n), s) for n, (_, s) in staged.items() if n.endswith(".pt")):
                break
            names = list(self.changes())
        try:
            yield staged
        finally:
            remove(staging)

    def _put(self, staged: tuple[Path, os.stat_result], name: str) -> None:
        file, stat = staged
        key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        twin = self._sent.get(key)
        if twin in self._known and twin != name and self._known[twin].size == stat.st_size:
            entry = self.bucket.copy(twin, name, stat.st_size)
        else:
            entry = self.bucket.put(file, name)
        if name.endswith(".pt"):
            # of the twin's own name another may come next
            self._sent = {k: n for k, n in self._sent.items() if n != name} | {key: name}
        # a log that has grown since is sent again next time
        size = entry.size
        self._known[name] = Known(size, entry.version, stat.st_mtime_ns)

    # ---------------------------------------------------------------------------------- record

    def _local(self) -> dict[str, os.stat_result]:
        """Files that are here, without those that only a running process needs."""
        if self.path.is_file():
            return {"": self.path.stat()}
        found = {}
        for folder, _, files in os.walk(self.path):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.path).as_posix()
                passing = file.startswith(".") and file.endswith((".tmp", ".lock"))
                if not passing and path.parent.name != "ranks":
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = path.stat()
        return found

    def _absent(self, name: str) -> bool:
        return not self.file(name).exists()

    def _mtime(self, name: str) -> int:
        return self.file(name).stat().st_mtime_ns

    def _has(self, name: str, entry: Entry) -> bool:
        """Whether the file here is this object."""
        known = self._known.get(name)
        if known is None or (known.size, known.version) != (entry.size, entry.version):
            return False
        try:
            stat = self.file(name).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (known.size, known.mtime_ns)

    def _note(self, name: str, entry: Entry) -> None:
        self._known[name] = Known(entry.size, entry.version, self._mtime(name))

    @contextlib.contextmanager
    def _synced(self) -> Iterator[None]:
        """Alone on this machine with files and record."""
        with self._thread, _locked(self.home / "sync.lock"):
            self._known = _read_state(self.home)
            try:
                yield
            finally:
                _write_state(self.home, self.url, self._known)


def make_room(needed: int, keep: Mirror) -> None:
    """Evict from the cache, least recently used first, until so many bytes more are within its
    bound: files that the bucket has too, of URLs that no process works with.

    :raises UserError: they do not fit.
    """
    root = keep.home.parent
    with _locked(root / "evict.lock"):
        homes = [p for p in root.iterdir() if (p / "use.lock").exists()]
        held = {home: _held(home) for home in homes}
        bound = cache_bound(root, sum(held.values()))
        for home in sorted(homes, key=lambda h: (h / "use.lock").stat().st_mtime):
            if sum(held.values()) + needed <= bound:
                return
            if home != keep.home:
                _evict(home)
                held[home] = _held(home)
        total = sum(held.values())
        if total + needed > bound:
            raise UserError(
                f"{keep.url}: {needed / 1e9:.3g} GB more are needed here and the cache {root}, "
                f"which holds {total / 1e9:.3g} GB in use, may hold {bound / 1e9:.3g} GB; raise "
                "RVQLM_CACHE_GB, or give another disk with RVQLM_CACHE"
            )


def _evict(home: Path) -> None:
    """Delete files of a URL that the bucket has too, unless they are in use."""
    with open(home / "use.lock", "rb") as file:
        if not try_lock(file):
            return
        known = _read_state(home)
        if not known:
            return
        url = json.loads((home / "state.json").read_text())["url"]
        for name, of in known.items():
            path = home / _name_of(url) / name
            with contextlib.suppress(OSError):
                stat = path.stat()
                if (stat.st_size, stat.st_mtime_ns) == (of.size, of.mtime_ns):
                    path.unlink()
                    known[name] = of._replace(mtime_ns=None)
        _write_state(home, url, known)


def _held(home: Path) -> int:
    return sum(p.stat().st_size for p in home.rglob("*") if p.is_file() and not p.is_symlink())


def _read_state(home: Path) -> dict[str, Known]:
    """A record that is damaged counts for none: all is compared with the bucket anew."""
    try:
        files = json.loads((home / "state.json").read_text())["files"]
        return {name: Known(*values) for name, values in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _write_state(home: Path, url: str, known: dict[str, Known]) -> None:
    record = {"url": url, "files": {name: list(values) for name, values in known.items()}}
    write_json(home / "state.json", record, indent=None)


def _name_of(url: str) -> str:
    """Of the file or folder of the cache that stands for a URL."""
    return re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])[-80:]


def _is_shard(name: str) -> bool:
    return name.endswith(".rvq") and Path(name).parent.name == "codes"


def _order(name: str) -> tuple[int, str]:
    """Data first; then checkpoints; last what says that all the rest is there."""
    file = name.rpartition("/")[2]
    last = {"tokens.json": 3, "splits.json": 4, "latest.pt": 6}
    kind = 2 if file.endswith(".pt") else 5 if file.startswith("index_") else 0
    return last.get(file, kind), name


def _same(path: Path, stat: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), stat)
    except OSError:
        return False


def _unchanged(now: os.stat_result, before: os.stat_result) -> bool:
    return (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _lock(path: Path, how: int) -> int:
    """An open file with a lock of the system, waited for; held until it is closed."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(file, how)
    return file


@contextlib.contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    file = _lock(path, how)
    try:
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _unless_busy(home: Path) -> Iterator[bool]:
    with open(home / "busy.lock", "ab") as file:
        yield try_lock(file) is not False


def busy(home: Path) -> contextlib.AbstractContextManager[None]:
    """While a command writes there."""
    return _locked(home / "busy.lock", fcntl.LOCK_SH)
