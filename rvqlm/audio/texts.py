"""Transcripts of audio files: a text file beside each, or one table for all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.errors import UserError

HEADER_WORDS = ("path", "id", "file", "filename", "audio", "wav", "name", "recording", "utterance")


@dataclass(frozen=True)
class Transcript:
    text: str | None
    speaker: str | None = None


@dataclass
class Texts:
    """Transcripts by the number of the file, and what is wrong with the others."""

    found: dict[int, Transcript] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(where it stands, why it is used for no file)"""


def texts_beside(files: Sequence[str], suffix: str) -> Texts:
    """``a.txt`` beside ``a.wav``; white space and line breaks in it become single spaces."""
    texts, wanted = Texts(), set()
    listings: dict[str, set[str]] = {}
    for number, file in enumerate(files):
        folder, name = os.path.split(file)
        if folder not in listings:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            listings[folder] = {n for n in names if n.endswith(suffix) and not n.startswith(".")}
        # a.wav.txt is more exact than a.txt, which a.flac might share
        for candidate in (name + suffix, os.path.splitext(name)[0] + suffix):
            if candidate in listings[folder]:
                wanted.add((folder, candidate))
                path = os.path.join(folder, candidate)
                try:
                    text = " ".join(Path(path).read_text(encoding="utf-8-sig").split())
                except (OSError, UnicodeDecodeError) as e:
                    texts.problems.append((path, _why(e)))
                    break
                texts.found[number] = Transcript(text or None)
                break
    for folder, names in sorted(listings.items()):
        for name in sorted(names):
            if (folder, name) not in wanted:
                texts.problems.append((os.path.join(folder, name), "no audio of this name"))
    return texts


def texts_of_table(table: str, files: Sequence[str], ids: Sequence[str]) -> Texts:
    """Lines ``path <tab> text (<tab> speaker)`` of a UTF-8 file, a first line of names left out.

    A file is named by its id, by its path (absolute, or relative to the input, to the table or to
    the folder of the command), or by its name alone, with or without suffix, where only one file
    has that name.
    """
    where, alone = _names(files, ids)
    texts = Texts()
    for number, line in _table_lines(table):
        place, columns = f"{table}:{number}", line.split("\t")
        name = columns[0].strip()
        if number == 1 and name.lower() in HEADER_WORDS and name not in where:
            continue
        if not 2 <= len(columns) <= 3:
            texts.problems.append((place, f"{len(columns)} columns where 2 or 3 are wanted"))
            continue
        beside = os.path.realpath(os.path.join(os.path.dirname(table), name))
        spelled = (name.removeprefix("./"), beside, os.path.realpath(name))
        file = next((where[s] for s in spelled if s in where), alone.get(name))
        if file is None or file < 0:
            why = "no audio of this name" if file is None else "several files have this name"
            texts.problems.append((place, f"{why}: {name}"))
        elif file in texts.found:
            texts.problems.append((place, f"a second line for {name}; the first is used"))
        else:
            speaker = columns[2].strip() if len(columns) == 3 else ""
            text = " ".join(columns[1].split())
            texts.found[file] = Transcript(text or None, speaker or None)
    return texts


def _names(files: Sequence[str], ids: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of files by what names them, and by their names alone (-1: more than one)."""
    where: dict[str, int] = {}
    alone: dict[str, int] = {}
    for number, (file, id) in enumerate(zip(files, ids)):
        suffix = os.path.splitext(file)[1]
        below = id if id.endswith(suffix) else id + suffix
        for name in (id, below, os.path.realpath(file)):
            where.setdefault(name, number)
        name = os.path.basename(file)
        for short in {name, os.path.splitext(name)[0]}:
            alone[short] = -1 if short in alone else number
    return where, alone


def _table_lines(table: str) -> Iterator[tuple[int, str]]:
    try:
        with open(table, encoding="utf-8-sig", newline=None) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--texts {table}: {_why(e)}") from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return error.strerror or str(error)
