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
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from rvqlm import runtime
from rvqlm.audio.parts import recording_cut
from rvqlm.audio.read import close_parked
from rvqlm.audio.reader import BadAudio, printable
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line, read_lines


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
        elif getattr(item, "recording", None) is not None:
            yield item
        else:
            raise UserError(
                f"{where} is a {type(item).__name__} without audio; give cuts of recordings, as "
                "rvqlm audio manifest writes them"
            )


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
    """Writes a manifest of cuts, and ``skipped.jsonl`` beside it, when its block ends, and says on
    stderr what was skipped.

    Raises `UserError`, leaving the list of what was skipped but no manifest, if no cut came.
    """

    def __init__(self, out: str, source: str | None = None):
        self.out = Path(out)
        self._list = self.out.with_name("skipped.jsonl")
        if not out.lower().endswith((".jsonl", ".jsonl.gz")):
            raise UserError(f"--out {out}: the name must end in .jsonl.gz")
        if source is not None and self.out.exists() and os.path.samefile(source, out):
            raise UserError(f"--out {out} is the input; choose another name")
        self.cuts = self.skipped = 0
        self.seconds = 0.0
        self._first: dict | None = None
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
                    f", {self.skipped} were skipped; the first, {first['id']}: "
                    f"{first['reason']} (all of them in {self._list})"
                )
            nothing = UserError(f"{self.out}: no cut is left{reasons}")
            self._inner.__exit__(UserError, nothing, None)
            self._stack.__exit__(None, None, None)
            raise nothing
        self._inner.__exit__(*error)
        self._stack.__exit__(*error)
        if error[0] is None and self.skipped:
            print(
                f"{self.skipped} items skipped, listed in {self._list}; the first: "
                f"{self._first['path']}: {self._first['reason']}",
                file=sys.stderr,
            )

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

    def summary(self, what: str = "") -> str:
        """``OUT: 12 cuts, 1.50 h`` and what else there is to say."""
        return f"{self.out}: {self.cuts} cuts, {clock(self.seconds)}" + (f"; {what}" * bool(what))


def clock(seconds: float) -> str:
    """``90 s`` or ``1.50 h``, whichever can be read."""
    return f"{seconds / 3600:.2f} h" if seconds >= 600 else f"{seconds:.1f} s"


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
