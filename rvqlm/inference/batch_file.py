"""``--prompts list.tsv``: a sample a line, made in batches, resumed where it was interrupted.

The first line names the columns: ``name``, the stem of the sample's files, and any flag of
`COLUMNS`, whose value on the command line holds where a cell is empty. What a row becomes depends
on its settings and its name alone, not on the rows around it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_type_hints

import msgspec

from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.names import flat_name
from rvqlm.inference.files import read_sample
from rvqlm.inference.prompts import Prompt

COLUMNS = {
    "prompts": ("prompt", "prompt_seconds", "infill"),
    "conditions": (
        *("text", "language", "durations", "midi", "midi_start"),
        *("source", "voice", "voice_seconds"),
    ),
    "output": ("seconds", "min_seconds", "divide_texts", "seed"),
    "sampling": None,
    "demask": None,
    "speech": None,
}
"""By group of flags; None: all that have one value."""


ROWS_AT_ONCE = 256
"""Whose prompts are read before they are made."""


class Row(NamedTuple):
    """A line of the file."""

    where: str
    """File and number of the line."""
    name: str
    args: Any
    """The command's arguments with those of the row."""

    @property
    def number(self) -> int:
        """In the random stream."""
        return int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=3).digest(), "big")

    def asked(self, **about) -> dict:
        """What decides what the sample becomes, as plain values, with what is known of the model:
        kept in its JSON, by which a later call knows whether it is the same."""
        found = {}
        for group, names in COLUMNS.items():
            values = getattr(self.args, group)
            for f in fields(values):
                value = getattr(values, f.name)
                if (names is None or f.name in names) and value != f.default:
                    found[f.name] = value
        return json.loads(json.dumps({**found, **about}))  # as it is read again


def read_rows(
    path: str, args: Any, check: Callable[[Any], None]
) -> Iterator[tuple[Row | None, str]]:
    """The rows of a file, or None and what is wrong with a line, named with its file and number.

    :param args: of the command line, a dataclass with the groups of `COLUMNS`.
    :param check: raises `UserError` for arguments that do not go together.
    :raises UserError: the file cannot be read, or its first line names no columns or others.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--prompts {path}: cannot be read ({reason_of(e)})") from None
    known = columns_of(args)
    header = [cell.strip().replace("-", "_") for cell in lines[0].rstrip("\r").split("\t")]
    if "name" not in header:
        raise UserError(
            f"{path}:1: no column 'name'; name the columns here, between tabs: name and any of "
            f"{', '.join(known)}"
        )
    for cell in header:
        if (cell != "name" and cell not in known) or header.count(cell) > 1:
            what = "twice" if header.count(cell) > 1 else "unknown"
            raise UserError(f"{path}:1: column {cell!r} {what}; there are name, {', '.join(known)}")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield _row(where, header, line.rstrip("\r").split("\t"), args, known, seen, check), ""
        except UserError as e:
            yield None, f"{where}: {e}"


def _row(where: str, header, cells, args, known, seen: dict[str, int], check) -> Row:
    if len(cells) != len(header):
        raise UserError(f"{len(cells)} cells where the first line has {len(header)} columns")
    given = {column: cell.strip() for column, cell in zip(header, cells)}
    if not (name := given.pop("name")):
        raise UserError("no name")
    stem = flat_name(name)
    if (before := seen.setdefault(stem.casefold(), where)) != where:
        raise UserError(f"the name {name!r} is that of {before}")
    changed: dict[str, dict] = {}
    for column, cell in given.items():
        if cell:
            group, wanted = known[column]
            try:
                value = (cell,) if wanted is tuple else msgspec.convert(cell, wanted, strict=False)
            except msgspec.ValidationError:
                raise UserError(f"{column} {cell!r}: not {_name(wanted)}") from None
            changed.setdefault(group, {})[column] = value
    args = replace(args, **{g: replace(getattr(args, g), **new) for g, new in changed.items()})
    check(args)
    return Row(where, stem, args)


def columns_of(args: Any) -> dict[str, tuple[str, Any]]:
    """Group and type of each column; ``tuple`` where a flag takes several values, a cell one."""
    found = {}
    for group, names in COLUMNS.items():
        of = type(getattr(args, group))
        hints = get_type_hints(of)
        for f in fields(of):
            many = str(hints[f.name]).startswith("tuple")
            if f.name in names if names is not None else not many:
                found[f.name] = group, tuple if many else hints[f.name]
    return found


def _name(wanted: Any) -> str:
    return {"int": "a whole number", "float": "a number"}.get(
        getattr(wanted, "__name__", ""), f"one of its values ({wanted})"
    )


def is_made(folder: Path, row: Row, asked: dict) -> bool:
    """Whether a row's sample is there, complete and of these settings.

    :raises UserError: there is one of others.
    """
    wav = folder / f"{row.name}.wav"
    if not wav.exists() or (about := read_sample(wav)) is None:
        return False
    there = about.get("asked")
    if there == asked:
        return True
    differ = [k for k in {**asked, **(there or {})} if (there or {}).get(k) != asked.get(k)]
    raise UserError(
        f"{wav} is there and was made with another {', '.join(sorted(differ)[:5])}; give "
        "--overwrite, or the row another name"
    )


class Maker(Protocol):
    """What makes samples; it says by itself what it does."""

    folder: Path
    about: dict
    made: set[str]
    """Names of the samples that are written."""

    def prompts(self, args: Any) -> list[Prompt]:
        """What arguments ask for."""

    def make(self, args: Any, prompts: list[Prompt], asked: dict[str, dict]) -> None:
        """Make and write samples, whose JSON has what each was asked for."""


def make_table(
    maker: Maker, path: str, args: Any, check: Callable[[Any], None], say: Callable[[str], object]
) -> tuple[int, int]:
    """Make the rows of a table that are not there: how many were, and how many cannot be made.

    :param say: is told what is wrong with a row; the others are made.
    :raises UserError: see `read_rows`.
    """
    there = failed = 0
    about = {name: maker.about[name] for name in ("model", "checkpoint", "step", "precision")}
    alike: dict[str, list[tuple[Row, Prompt]]] = {}
    for row, problem in read_rows(path, args, check):
        try:
            if row is None:
                raise UserError(problem)
            asked = row.asked(**about)
            if not args.output.overwrite and is_made(maker.folder, row, asked):
                there += 1
                continue
            (prompt,) = maker.prompts(row.args)
        except UserError as e:
            failed += 1
            say(str(e) if row is None else f"{row.where}: {e}")
            continue
        prompt = replace(prompt, name=row.name, numbered=False, number=row.number)
        groups = [getattr(row.args, g) for g in ("output", "sampling", "demask", "speech")]
        alike.setdefault(repr(groups), []).append((row, prompt))
        if sum(map(len, alike.values())) == ROWS_AT_ONCE:
            failed += sum(_make(maker, rows, about, say) for rows in alike.values())
            alike = {}
    return there, failed + sum(_make(maker, rows, about, say) for rows in alike.values())


def _make(maker: Maker, rows: list[tuple[Row, Prompt]], about: dict, say) -> int:
    """Make rows of the same settings; how many of them cannot be."""
    asked = {row.name: row.asked(**about) for row, _ in rows}
    try:
        maker.make(rows[0][0].args, [prompt for _, prompt in rows], asked)
    except UserError as e:
        if len(rows) == 1:
            say(f"{rows[0][0].where}: {e}")
            return 1
        # one of them; the others are made
        rest = [row for row in rows if row[0].name not in maker.made]
        return sum(_make(maker, [row], about, say) for row in rest)
    return 0
