"""Writing files so that a crash at any moment leaves either the old content or the new, whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block what is there is flushed to the disk
    and put in the place of `path`. If the block raises, `path` stays as it is.

    >>> with replacing("notes.txt") as temporary:
    ...     _ = temporary.write_text("hello")
    """
    path = Path(path)
    name = f".{path.name}.{os.getpid()}.tmp"
    if len(os.fsencode(name)) > 255:  # more than file systems take
        name = f".{os.getpid()}.tmp"
    temporary = path.with_name(name)
    # left by a process of the same number (in a container all have the same); if it is a second
    # name of a checkpoint, writing into it would destroy that one
    _remove(temporary)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        _remove(temporary)  # on failure, and where both names are one file already
    with contextlib.suppress(OSError):  # directories of some file systems cannot be synced
        _sync(path.parent)


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file and put it in the place of `path`."""
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: str | Path, text: str) -> None:
    """A text file in UTF-8."""
    atomic_write(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value, indent: int | None = 1, **options) -> None:
    """A JSON file that ends in a line break; `options` are those of ``json.dumps``."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")


def atomic_folder(path: str | Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` put files into a new temporary folder and make it `path`, which doesn't exist or
    is an empty folder."""
    with replacing(path) as temporary:
        temporary.mkdir()
        fill(temporary)


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """`to` as a second name of `source`, or a copy of it where no such name can be."""
    try:
        os.link(source, to)
    except OSError:  # no hard links here, or not across what is mounted
        shutil.copyfile(source, to)


def blocks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file, piece by piece."""
    with open(path, "rb") as file:
        while block := file.read(size):
            yield block


def _flush(path: Path) -> None:
    """Wait for the disk to have a file, or all files of a folder."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                _sync(file)
    else:
        _sync(path)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
