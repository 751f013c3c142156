"""Transcripts of audio files: a text file beside each, or one table for all."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.errors import UserError

COLUMNS = {
    "path": ("path", "id", "file", "filename", "file_name", "audio", "audio_file", "wav", "name",
             "recording", "utterance"),
    "text": ("text", "transcript", "transcription", "sentence", "words"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "language": ("language", "lang", "locale"),
}  # fmt: skip
"""What the columns of a table are called in its first line, if that is no transcript."""
_EXAMPLES = 2  # of either side, where no line fits any file


@dataclass(frozen=True)
class Transcript:
    text: str | None
    speaker: str | None = None
    language: str | None = None


@dataclass
class Texts:
    """Transcripts by the number of the file, and what is wrong with the others."""

    found: dict[int, Transcript] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(where it stands, why it is used for no file)"""


def texts_beside(files: Sequence[str], suffix: str) -> Texts:
    """``a.txt`` beside ``a.wav``; white space and line breaks in it become single spaces."""
    texts, wanted = Texts(), set()
    listings: dict[str, dict[str, str]] = {}
    for number, file in enumerate(files):
        folder, name = os.path.split(file)
        if folder not in listings:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            names = [n for n in names if n.endswith(suffix) and not n.startswith(".")]
            listings[folder] = {composed(n): n for n in names} | {n: n for n in names}
        # a.wav.txt is more exact than a.txt, which a.flac might share
        for candidate in (name + suffix, os.path.splitext(name)[0] + suffix):
            if found := listings[folder].get(candidate, listings[folder].get(composed(candidate))):
                wanted.add((folder, found))
                path = os.path.join(folder, found)
                try:
                    text = " ".join(Path(path).read_text(encoding="utf-8-sig").split())
                except (OSError, UnicodeDecodeError) as e:
                    texts.problems.append((path, _why(e)))
                    break
                texts.found[number] = Transcript(text or None)
                break
    for folder, names in sorted(listings.items()):
        for name in sorted(set(names.values())):
            if (folder, name) not in wanted:
                texts.problems.append((os.path.join(folder, name), "no audio of this name"))
    return texts


def texts_of_table(table: str, files: Sequence[str], ids: Sequence[str]) -> Texts:
    """Lines ``path <tab> text (<tab> speaker (<tab> language))`` of a UTF-8 file, or columns in any
    order with their names (`COLUMNS`) in the first line; others there are passed over.

    A file is named by its id, by its path (absolute, or relative to the input, to the table or to
    the folder of the command), or by its name alone, with or without suffix, where only one file
    has that name; é is the same letter in one character or in two.

    Raises `UserError` for tables that cannot be read, or of which no line names a file.
    """
    where, alone = _names(files, ids)
    texts, names = Texts(), []
    at = {}  # column of each field, where the first line names them
    for number, line in _table_lines(table):
        place, columns = f"{table}:{number}", [column.strip() for column in line.split("\t")]
        if number == 1 and columns[0] not in where and composed(columns[0]) not in alone:
            words = [column.lower() for column in columns]
            at = _named_columns(words)
            if at or words[0] in COLUMNS["path"]:
                continue
        needed = 1 + (max(at["path"], at["text"]) if at else 1)
        if len(columns) < needed or (not at and len(columns) > 4):
            wanted = f"at least {needed}" if at else "2 to 4"
            texts.problems.append((place, f"{len(columns)} columns where {wanted} are wanted"))
            continue
        at_line = at or dict(zip(COLUMNS, range(len(columns))))
        fields = {field: columns[n] for field, n in at_line.items() if n < len(columns)}
        name = fields["path"]
        names.append(name)
        beside = os.path.realpath(os.path.join(os.path.dirname(table), name))
        spelled = (name.removeprefix("./"), beside, os.path.realpath(name))
        file = next((where[s] for s in spelled if s in where), None)
        if file is None:
            file = next((alone[s] for s in map(composed, (name, *spelled)) if s in alone), None)
        if file is None or file < 0:
            why = "no audio of this name" if file is None else "several files have this name"
            texts.problems.append((place, f"{why}: {name}"))
        elif file in texts.found:
            texts.problems.append((place, f"a second line for {name}; the first is used"))
        else:
            text = " ".join(fields["text"].split())
            more = (fields.get(field) or None for field in ("speaker", "language"))
            texts.found[file] = Transcript(text or None, *more)
    if not names and texts.problems:
        raise UserError("--texts {}: {}".format(*texts.problems[0]))
    if not texts.found:
        raise UserError(
            f"--texts {table}: none of its {len(names)} lines names one of the {len(files)} files; "
            f"lines: {_few(names)}; files: {_few(ids)}"
        )
    return texts


def _named_columns(words: list[str]) -> dict[str, int]:
    """The column of each field by its name; empty without a path and a text among them."""
    found = {
        field: words.index(next(name for name in names if name in words))
        for field, names in COLUMNS.items()
        if any(name in words for name in names)
    }
    return found if {"path", "text"} <= found.keys() else {}


def composed(name: str) -> str:
    """A name with its letters and accents in one character each (NFC), as macOS does not write."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_EXAMPLES])
    return shown + (", ..." if len(names) > _EXAMPLES else "") if names else "none"


def _names(files: Sequence[str], ids: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of files by what names them, and by their names alone or composed (-1: more than
    one)."""
    where: dict[str, int] = {}
    alone: dict[str, int] = {}
    for number, (file, id) in enumerate(zip(files, ids)):
        suffix = os.path.splitext(file)[1]
        below = id if id.endswith(suffix) else id + suffix
        exact = (id, below, os.path.realpath(file))
        for name in exact:
            where.setdefault(name, number)
        name = os.path.basename(file)
        for short in {composed(n) for n in (name, os.path.splitext(name)[0], *exact)}:
            alone[short] = -1 if alone.get(short, number) != number else number
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
