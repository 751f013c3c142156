"""Writing files so that a crash at any moment leaves either the old content or the new, whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, flush it to the disk and put it in the place of `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # left by a process of the same number (in a container all have the same); if it is a second
    # name of a checkpoint, writing into it would destroy that one
    temporary.unlink(missing_ok=True)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # on failure, and where both names are one file already
    with contextlib.suppress(OSError):  # directories of some file systems cannot be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
