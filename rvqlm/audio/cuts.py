"""Manifests of audio cuts, read and written one cut at a time: what `rvqlm audio` is made of.

A command reads cuts with `read_cuts`, works on them in processes with `in_order` (the results come
in the order of the cuts, so that equal inputs give equal bytes) and writes them with a `CutWriter`,
which lists what could not be used. Nothing here grows with the number of cuts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from lhotse import Recording
from lhotse.cut import Cut

from rvqlm import runtime
from rvqlm.audio.items import entry_of, item_of
from rvqlm.audio.parts import recording_cut, source_path
from rvqlm.audio.read import close_parked
from rvqlm.audio.reader import BadAudio, first_line, printable
from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line, read_jsonl, read_lines

_NAMED = 5  # cuts in a note


def _lines(path: str, flag: str) -> Iterator[bytes]:
    if not path.lower().endswith((".jsonl", ".jsonl.gz")):
        raise UserError(
            f"{flag} {path}: give a manifest of cuts, a .jsonl.gz file as `rvqlm audio manifest` "
            "writes it"
        )
    return read_lines(path, f"{flag} {path}", "make it with rvqlm audio manifest")


def count_cuts(path: str, flag: str = "--input") -> int:
    """How many cuts a manifest has; `UserError` if none, or if it cannot be read."""
    count = sum(1 for _ in _lines(path, flag))
    if not count:
        raise UserError(f"{flag} {path}: the manifest is empty")
    return count


def read_cuts(
    path: str, flag: str = "--input", skip: Callable[[str, str, str], object] | None = None
) -> Iterator[Cut]:
    """The cuts of a lhotse manifest (JSONL, gzipped or not), one at a time.

    A manifest of recordings is read as one of cuts over whole recordings. Entries that are no cut
    within one recording, or none that could be read, are passed over; `skip`, such as
    `CutWriter.skip`, gets id, path and reason of each. Raises `UserError` for what is no entry.
    """
    for number, line in enumerate(_lines(path, flag), 1):
        fields = entry_of(line, f"{flag} {path}: item {number}")
        try:
            item = item_of(fields)
        except ValueError as e:
            if skip is not None:
                skip(str(fields["id"]), path, str(e))
            continue
        yield recording_cut(item) if isinstance(item, Recording) else item


def list_path(manifest: str | os.PathLike, what: str) -> Path:
    """The list of what was skipped, or warned of, in making a manifest: of its own for each, so
    that none replaces another's.

    >>> list_path("a/cuts.jsonl.gz", "skipped").name, list_path("loud.jsonl", "warned").name
    ('skipped.jsonl', 'loud_warned.jsonl')
    """
    path = Path(manifest)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return path.with_name(f"{what}.jsonl" if name == "cuts" else f"{name}_{what}.jsonl")


def with_custom(item: Any, **fields: Any) -> Any:
    """Set custom fields; the dictionary of the item it was copied from stays as it is."""
    item.custom = {**(item.custom or {}), **fields}
    return item


def group_of(cut: Cut) -> str:
    """What must not be divided between training and test: the custom field ``group``, or else the
    recording."""
    return str((cut.custom or {}).get("group", cut.recording.id))


# ---------------------------------------------------------------------------------- writing


def make_folder(path: Path, flag: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{flag} {path}: {e.strerror}; choose a folder to write in") from None


class _Line(TypedDict):
    """Of a list of what was skipped or warned of."""

    id: str
    path: str
    reason: str


class CutWriter:
    """Writes a manifest of cuts, and beside it the lists of what was skipped and of what is in it
    but not as it should be (`list_path`), when its block ends, and says on stderr what is in them
    and what else there is to note.

    Raises `UserError`, leaving these lists but no manifest, if no cut came.
    """

    def __init__(self, out: str, source: str | None = None):
        self.out = Path(out)
        self._lists = {what: list_path(self.out, what) for what in ("skipped", "warned")}
        if not out.lower().endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"--out {out}: the name must end in .jsonl.gz")
        if source is not None and self.out.exists() and os.path.samefile(source, out):
            raise UserError(f"--out {out} is the input; choose another name")
        self.cuts = 0
        self.seconds = 0.0
        self._counts = Counter()
        self._first: dict[str, dict] = {}
        self._notes: dict[str, list[str]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CutWriter:
        make_folder(self.out.parent, "--out")
        self._files = {
            what: self._stack.enter_context(atomic_open(path)) for what, path in self._lists.items()
        }
        self._inner = contextlib.ExitStack()
        self._file = self._inner.enter_context(atomic_open(self.out))
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None and not self.cuts:
            reasons = "; there was nothing to keep"
            if first := self._first.get("skipped"):
                reasons = (
                    f", {counted(self.skipped, 'item')} skipped; the first, {first['id']}: "
                    f"{first['reason']} (all of them in {self._lists['skipped']})"
                )
            nothing = UserError(f"{self.out}: no cut is left{reasons}")
            self._inner.__exit__(UserError, nothing, None)
            self._stack.__exit__(None, None, None)
            self._without_empty()
            raise nothing
        self._inner.__exit__(*error)
        self._stack.__exit__(*error)
        if error[0] is not None:
            return
        self._without_empty()
        for what, number in sorted((+self._counts).items()):
            print(listed(what, number, self._lists[what], self._first[what]), file=sys.stderr)
        for what, names in self._notes.items():
            shown = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
            print(f"{counted(len(names), 'cut')} {what}: {shown}", file=sys.stderr)

    def _without_empty(self) -> None:
        if not self._counts["warned"]:  # few folders need that list
            self._lists["warned"].unlink(missing_ok=True)

    def write(self, cut: Cut) -> None:
        self._file.write(json_line(cut.to_dict()))
        self.cuts += 1
        self.seconds += cut.duration

    def skip(self, id: str, path: str, reason: str) -> None:
        """Say why an item is not in the manifest."""
        self._list("skipped", id, path, reason)

    def warn(self, id: str, path: str, notes: Sequence[str] | None) -> None:
        """Say what of an item is damaged or missing, if anything is. None: it was not read this
        time, and what the list said before is still so."""
        if notes is None and (before := self._warned_before.get(id)) is not None:
            self._list("warned", id, path, before)
        elif notes:
            self._list("warned", id, path, "; ".join(notes))

    @functools.cached_property
    def _warned_before(self) -> dict[str, str]:
        """Reasons by id, from the list that this one will replace."""
        with contextlib.suppress(UserError):
            lines = read_jsonl(self._lists["warned"], "warnings", "", _Line)
            return {line["id"]: line["reason"] for line in lines}
        return {}

    def _list(self, what: str, id: str, path: str, reason: str) -> None:
        line = {"id": id, "path": printable(path), "reason": reason}
        self._files[what].write(json_line(line))
        self._counts[what] += 1
        self._first.setdefault(what, line)

    @property
    def skipped(self) -> int:
        return self._counts["skipped"]

    def note(self, id: str, what: str) -> None:
        """Something that the user should know of a cut, said at the end for all of them."""
        self._notes.setdefault(what, []).append(id)

    def summary(self, what: str = "") -> str:
        """``OUT: 12 cuts, 1.50 h`` and what else there is to say."""
        held = f"{self.out}: {counted(self.cuts, 'cut')}, {clock(self.seconds)}"
        return held + f"; {what}" * bool(what)


def listed(what: str, number: int, path: str | os.PathLike, first: dict) -> str:
    """The sentence about a list of items that were skipped, or warned of."""
    meaning = {"skipped": "skipped", "warned": "incomplete, damaged or unlike the manifest"}[what]
    return (
        f"{counted(number, 'item')} {meaning}, listed in {path}; the first: {first['path']}: "
        f"{first['reason']}"
    )


def clock(seconds: float) -> str:
    """Whichever can be read.

    >>> clock(90), clock(1000), clock(5400)
    ('90.0 s', '16.7 min', '1.50 h')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 600 else f"{seconds:.1f} s"


# ---------------------------------------------------------------------------------- processes


def in_order(
    work: Callable[[Any], Any], items: Iterable[Any], jobs: int
) -> Iterator[tuple[Any, Any | BadAudio]]:
    """`runtime.in_order` for work that may raise `BadAudio`, which is given instead of a result.

    jobs: processes; 0 is one per core.
    """
    if jobs < 0:
        raise UserError(f"--jobs {jobs} must be 0 (automatic) or more")
    jobs = jobs or runtime.num_cores()
    return runtime.in_order(partial(_guarded, work), items, jobs if jobs > 1 else 0)


def _guarded(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except BadAudio as e:
        return e
    except (UserError, OSError, MemoryError):  # of the machine, not of the item
        raise
    except Exception as e:  # whatever a decoder does to one file, others follow
        return BadAudio(_path_of(item), f"unreadable: {type(e).__name__}: {first_line(e)}")
    finally:
        close_parked()


def _path_of(item: Any) -> str:
    """For messages: the file that an item of work, or one of several, is about."""
    for one in item if isinstance(item, tuple) else (item,):
        if hasattr(one, "recording"):
            return source_path(one.recording)
        if hasattr(one, "path"):
            return one.path
    return "?"
