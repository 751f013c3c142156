"""What the scripts that make a stand-in for a corpus have in common."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rvqlm.files import atomic_folder


def make_once(folder: Path, make: Callable[[Path], float]) -> int:
    """Have a folder filled, whole or not at all, unless it is there; the exit status.

    :param make: fills a folder, returns seconds of audio.
    """
    if folder.exists():
        print(f"{folder} is there already")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as made:
        seconds = make(made)
    print(f"{folder}: {seconds:.0f} s of audio")
    return 0


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
