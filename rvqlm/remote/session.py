"""The URLs that this process works with, and the copies that stand for them.

`localize` is called where commands take paths; below, all paths are local. What is recorded for
other machines (flags in checkpoints, config.yaml, run.json) has the URL again: `named`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rvqlm import locks
from rvqlm.locks import try_lock
from rvqlm.remote.hold import held
from rvqlm.remote.mirror import Mirror
from rvqlm.remote.urls import SCHEMES, checked, is_remote, of_file

T = TypeVar("T")

_mirrors: dict[str, Mirror] = {}
_before: dict[str, dict[str, os.stat_result]] = {}
"""By URL, changes that an earlier command left in the cache."""


_unreached = False


@contextlib.contextmanager
def unreached() -> Iterator[None]:
    """In the block URLs are looked at and stay as they are, and no store is asked for anything: of
    who reads the flags of a command that another machine will run."""
    global _unreached
    before, _unreached = _unreached, True
    try:
        yield
    finally:
        _unreached = before


LATE = "late"
"""In the metadata of a dataclass's field: suffixes of files that `fetch` is to bring when they are
needed, and `localize` only lists."""


def localize(value: T, late: tuple[str, ...] = ()) -> T:
    """A value of a flag with the path of its copy on this machine for every URL in it; the copy is
    brought up to date at the first call. Dataclasses, lists and tuples are looked into.

    :param late: suffixes, in small letters, of files that are not brought before `fetch`.
    :raises UserError: the URL carries credentials, or the store does not answer.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        lates = {f.name: f.metadata.get(LATE, late) for f in dataclasses.fields(value)}
        local = {name: localize(v, lates[name]) for name, v in found.items()}
        changed = {name: v for name, v in local.items() if v is not found[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, (list, tuple)):
        local = [localize(v, late) for v in value]
        return type(value)(local) if any(a is not b for a, b in zip(local, value)) else value
    if isinstance(value, Path):  # has lost a slash
        text = re.sub(rf"^({'|'.join(SCHEMES)}):/(?=[^/])", r"\1://", str(value))
        text = re.sub(r"^file:/(?=[^/])", "file:///", text)
        return value if (local := localize(text, late)) == str(value) else Path(local)
    if not isinstance(value, str):
        return value
    if (path := of_file(value)) is not None:
        return path
    if not is_remote(value):
        return value
    url = checked(value)
    return value if _unreached else str(_mirror(url, late).path)


def _mirror(url: str, late: tuple[str, ...] = ()) -> Mirror:
    if url in _mirrors and _mirrors[url].late and not late:  # now all of it is wanted
        _mirrors[url].late = ()
        _mirrors[url].pull()
    if url not in _mirrors:
        mirror = Mirror(url, late)
        try:
            mirror.pull()
        except BaseException:
            mirror.close()
            raise
        _mirrors[url], _before[url] = mirror, mirror.changes()
        if _hold not in locks.elsewhere:
            locks.elsewhere.append(_hold)
    return _mirrors[url]


def named(text: str) -> str:
    """A text with the URLs for the paths of their copies."""
    for url, mirror in _mirrors.items():
        text = text.replace(str(mirror.path), url)
    return text


def fetch(paths: Iterable[str | os.PathLike]) -> None:
    """Have files here that may lie in a bucket only: token shards, and what was `LATE`."""
    for mirror in _mirrors.values():
        within = [Path(p) for p in paths if Path(p).is_relative_to(mirror.path)]
        if within:
            mirror.fetch(within)


class _Named:
    """A stream whose texts have the URLs for the paths of their copies."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(named(text))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """In the block what is printed has the URLs that were given, not where their copies are."""
    with (
        contextlib.redirect_stdout(_Named(sys.stdout)),
        contextlib.redirect_stderr(_Named(sys.stderr)),
    ):
        yield


def sizes(path: str | os.PathLike) -> dict[str, int]:
    """Bytes of the file, or of the files below the folder, that `path` is, by their paths here,
    whether they have been fetched or not; nothing for what is no copy of a bucket."""
    path = Path(path)
    for mirror in _mirrors.values():
        if path.is_relative_to(mirror.path):
            return {str(p): n for p, n in mirror.sizes().items() if p.is_relative_to(path)}
    return {}


def is_copy(path: str | Path) -> bool:
    """Whether a path is within the copy of a bucket."""
    return any(Path(path).is_relative_to(mirror.path) for mirror in _mirrors.values())


def share(path: Path, main: bool, first: bool, several: bool, together: Callable) -> None:
    """Let the ranks of other machines have the files that the main rank has. All ranks call it.

    :param path: within the experiment.
    :param first: of the ranks of its machine.
    :param several: there are several machines.
    :param together: runs a function on all ranks, whose `UserError` on one is raised on all.
    """
    mirror = next((m for m in _mirrors.values() if path.is_relative_to(m.path)), None)
    if mirror is None or not several:
        return
    together(mirror.push if main else lambda: None)
    together(mirror.pull if first and not main else lambda: None)


def finish() -> None:
    """At the end of a command: bring to the buckets what it wrote without a lock, such as reports
    and evaluations of an experiment."""
    for url, mirror in _mirrors.items():
        if not mirror.changes():
            continue
        with open(mirror.home / "busy.lock", "ab") as file:
            if try_lock(file) is not False:  # else who writes there brings it
                mirror.push(but=_before[url])


@contextlib.contextmanager
def _hold(folder: Path, command: str, wait: float, hint: str) -> Iterator[bool]:
    """Of `locks.elsewhere`."""
    full = Path(folder).resolve()
    mirror = next((m for m in _mirrors.values() if full.is_relative_to(m.path)), None)
    if mirror is None:
        yield False
        return
    with held(mirror, full, command, wait, hint) as changed:
        yield changed
