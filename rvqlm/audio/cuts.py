"""Manifests of audio cuts, read and written one cut at a time: what `rvqlm audio` is made of.

A command reads cuts with `read_cuts`, works on them in processes with `in_order` (the results come
in the order of the cuts, so that equal inputs give equal bytes) and writes them with a `CutWriter`,
which lists what could not be used. Nothing here grows with the number of cuts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import Recording
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import deserialize_item

from rvqlm import runtime
from rvqlm.audio.parts import recording_cut
from rvqlm.audio.read import close_parked
from rvqlm.audio.reader import BadAudio, printable
from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line, read_lines

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


def read_cuts(path: str, flag: str = "--input") -> Iterator[Cut]:
    """The cuts of a lhotse manifest (JSONL, gzipped or not), one at a time.

    A manifest of recordings is read as one of cuts over whole recordings. Raises `UserError` for
    all that is not a cut within one recording.
    """
    for number, line in enumerate(_lines(path, flag), 1):
        where = f"{flag} {path}: item {number}"
        try:
            fields = json.loads(line)
            item = deserialize_item(fields)
        except Exception as e:  # lhotse asserts, and looks up what is not there
            why = f"{type(e).__name__} {e}".splitlines()[0]
            raise UserError(f"{where} is no lhotse cut: {why}") from None
        if isinstance(item, Recording):
            yield recording_cut(item)
        elif isinstance(item, MixedCut):
            raise UserError(f"{where}: {mixed(item.id)}")
        elif getattr(item, "recording", None) is not None:
            yield item
        else:
            raise UserError(
                f"{where} is a {type(item).__name__} without audio; give cuts of recordings, as "
                "rvqlm audio manifest writes them"
            )


def mixed(id: str) -> str:
    """What to say of a MixedCut."""
    return (
        f"cut {id!r} mixes several recordings (a MixedCut), and a cut here lies in one; write the "
        "mixtures as files first (lhotse: CutSet.save_audios) and give their manifest"
    )


def skipped_path(manifest: str | os.PathLike) -> Path:
    """The list of what is not in a manifest: of its own for each, so that none replaces another's.

    >>> print(skipped_path("a/cuts.jsonl.gz"), skipped_path("a/windows.jsonl.gz"))
    a/skipped.jsonl a/windows_skipped.jsonl
    """
    path = Path(manifest)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return path.with_name("skipped.jsonl" if name == "cuts" else f"{name}_skipped.jsonl")


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


class CutWriter:
    """Writes a manifest of cuts, and beside it the list of what was skipped (`skipped_path`), when
    its block ends, and says on stderr what was skipped and what there is to note.

    Raises `UserError`, leaving the list of what was skipped but no manifest, if no cut came.
    """

    def __init__(self, out: str, source: str | None = None):
        self.out = Path(out)
        self._list = skipped_path(self.out)
        if not out.lower().endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"--out {out}: the name must end in .jsonl.gz")
        if source is not None and self.out.exists() and os.path.samefile(source, out):
            raise UserError(f"--out {out} is the input; choose another name")
        self.cuts = self.skipped = 0
        self.seconds = 0.0
        self._first: dict | None = None
        self._notes: dict[str, list[str]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CutWriter:
        make_folder(self.out.parent, "--out")
        self._skips = self._stack.enter_context(atomic_open(self._list))
        self._inner = contextlib.ExitStack()
        self._file = self._inner.enter_context(atomic_open(self.out))
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None and not self.cuts:
            reasons = "; there was nothing to keep"
            if first := self._first:
                reasons = (
                    f", {counted(self.skipped, 'item')} skipped; the first, {first['id']}: "
                    f"{first['reason']} (all of them in {self._list})"
                )
            nothing = UserError(f"{self.out}: no cut is left{reasons}")
            self._inner.__exit__(UserError, nothing, None)
            self._stack.__exit__(None, None, None)
            raise nothing
        self._inner.__exit__(*error)
        self._stack.__exit__(*error)
        if error[0] is not None:
            return
        if self.skipped:
            print(
                f"{counted(self.skipped, 'item')} skipped, listed in {self._list}; the first: "
                f"{self._first['path']}: {self._first['reason']}",
                file=sys.stderr,
            )
        for what, names in self._notes.items():
            shown = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
            print(f"{counted(len(names), 'cut')} {what}: {shown}", file=sys.stderr)

    def write(self, cut: Cut) -> None:
        self._file.write(json_line(cut.to_dict()))
        self.cuts += 1
        self.seconds += cut.duration

    def skip(self, id: str, path: str, reason: str) -> None:
        """Say why an item is not in the manifest."""
        line = {"id": id, "path": printable(path), "reason": reason}
        self._skips.write(json_line(line))
        self.skipped += 1
        self._first = self._first or line

    def note(self, id: str, what: str) -> None:
        """Something that the user should know of a cut, said at the end for all of them."""
        self._notes.setdefault(what, []).append(id)

    def summary(self, what: str = "") -> str:
        """``OUT: 12 cuts, 1.50 h`` and what else there is to say."""
        held = f"{self.out}: {counted(self.cuts, 'cut')}, {clock(self.seconds)}"
        return held + f"; {what}" * bool(what)


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
    finally:
        close_parked()
