"""Reading and writing files: whole or not at all, and what is wrong with one in one line.

Everything that is written goes through `atomic_write`, `atomic_open` or `atomic_folder`, so that a
crash at any moment leaves either the old content or the new.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rvqlm.errors import UserError


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk and put it in the place of `path`."""
    with _replacing(Path(path)) as temporary:
        write(temporary)


@contextlib.contextmanager
def atomic_open(path: str | Path, level: int = 5) -> Iterator[BinaryIO]:
    """A file to write, gzipped if its name says so, that takes the place of `path` at the end of
    the block; an error in the block leaves `path` as it was.

    :param level: of compression. The same content gives the same bytes.
    """
    path = Path(path)
    with _replacing(path) as temporary, open(temporary, "wb") as raw:
        if path.suffix == ".gz":  # no name and no time in the header
            with gzip.GzipFile("", "wb", compresslevel=level, fileobj=raw, mtime=0) as packed:
                yield packed
        else:
            yield raw


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, which is `path` at the end of the block; an error in the block leaves
    nothing. `path` does not exist before or is an empty folder."""
    with _replacing(Path(path)) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    atomic_write(path, lambda to: to.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write plain values as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def json_line(fields: dict) -> bytes:
    """A line of a JSONL file, newline included."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(fields).encode() + b"\n"


def read_json(
    path: str | Path, remedy: str, missing: str = "", convert: Callable[[Any], Any] = lambda v: v
) -> Any:
    """The values of a JSON file, passed through `convert`.

    Raises `UserError`, ending in `remedy`, where the file is missing (`missing`: what that means)
    or damaged, which is also what the usual errors of `convert` say.
    """
    try:
        return convert(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        what = f": {missing}" if missing else ""
        raise UserError(f"{path} not found{what}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as e:
        raise UserError(f"{path} is damaged ({e}); {remedy}") from None


def read_lines(path: str | Path, what: str, remedy: str) -> Iterator[bytes]:
    """The lines of a file, gzipped or plain, that are not blank, one at a time.

    Raises `UserError` that begins with `what`, ending in `remedy` where the file is missing.
    """
    try:
        with gzip.open(path, "rb") if str(path).lower().endswith(".gz") else open(path, "rb") as f:
            yield from (line for line in f if line.strip())
    except FileNotFoundError:
        raise UserError(f"{what} not found; {remedy}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{what} is cut short or damaged ({e}); make it again") from None
    except OSError as e:
        raise UserError(f"{what}: {e.strerror or e}") from None


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """Make `to` a second name of `source`, or a copy of it where no such name can be."""
    try:
        os.link(source, to)
    except OSError:  # no hard links here, or not across what is mounted
        shutil.copyfile(source, to)


def blocks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file, so many bytes at a time."""
    with open(path, "rb") as file:
        while block := file.read(size):
            yield block


def sha256_of(path: str | Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name; what is written there, a file or a folder, takes the place of `path` at
    the end of the block."""
    name = f".{path.name}.{os.getpid()}.tmp"
    if len(os.fsencode(name)) > 255:  # more than file systems take
        name = f".{os.getpid()}.tmp"
    temporary = path.with_name(name)
    # left by a process of the same number (in a container all have the same); if it is a second
    # name of a checkpoint, writing into it would destroy that one
    remove(temporary)
    try:
        yield temporary
        for file in (temporary, *temporary.rglob("*")):
            if file.is_file():
                _sync(file)
        os.replace(temporary, path)
    finally:
        remove(temporary)  # on failure, and where both names are one file already
    with contextlib.suppress(OSError):  # directories of some file systems cannot be synced
        _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
