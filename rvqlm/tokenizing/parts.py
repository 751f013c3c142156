"""Tokenization in parts: each job of an array does one range of the input in a folder of its own.

``--part 17/1000`` makes ``OUT/part-00017-of-01000``, a token directory like any other, so a part is
there as a whole or not at all, and one that was killed continues. Every job lists the whole input
and cuts it at the same places; ``OUT/parts.json`` keeps what all must agree on. How many shards a
part has depends on the number of parts only, not on the machine: repeated anywhere, a part has the
same bytes. `rvqlm.tokenizing.combine` makes them one.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path

from rvqlm.audio.source import Listing, Source, SourcePart
from rvqlm.cli import kebab
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json
from rvqlm.locks import locked
from rvqlm.remote.session import named
from rvqlm.tokenizing.config import TokenizeConfig
from rvqlm.tokenizing.plan import Identity, plan_path
from rvqlm.tokenizing.schemas import MOST_PARTS, Parts

_FOLDER = re.compile(r"part-([0-9]{5})-of-([0-9]{5})")
_TASKS = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")


@dataclass(frozen=True)
class Part:
    """One of several parts; they count from 0.

    >>> Part.parse("17/1000").folder(Path("data"))
    PosixPath('data/part-00017-of-01000')
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of ``17/1000`` or ``auto/1000``; `UserError` for anything else, or out of range."""
        found = re.fullmatch(r"(auto|[0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if found is None:
            raise UserError(f"--part {text}: give number/parts such as 17/1000, or auto/1000")
        number, of, where = found[1], int(found[2]), ""
        if number == "auto":
            name = next((n for n in _TASKS if os.environ.get(n)), None)
            if name is None:
                raise UserError(
                    f"--part {text}: neither {' nor '.join(_TASKS)} is set; give 0/{of}"
                )
            number, where = os.environ[name], f" ({name}={os.environ[name]})"
        if not 1 <= of <= MOST_PARTS:
            raise UserError(f"--part {text}: from 1 to {MOST_PARTS} parts can be combined")
        if not re.fullmatch("[0-9]{1,9}", number, re.ASCII) or int(number) >= of:
            raise UserError(
                f"--part {text}{where}: parts count from 0: give 0/{of} to {of - 1}/{of}"
            )
        return cls(int(number), of)

    def folder(self, out: Path) -> Path:
        return out / f"part-{self.number:05d}-of-{self.of:05d}"

    @property
    def shards(self) -> int:
        """Shards that its items are shared out over, for as many processes."""
        return max(1, min(16, MOST_PARTS // self.of))

    def of_input(
        self, source: Source, listing: Listing, identity: Identity
    ) -> tuple[Source, Listing, Identity]:
        """What this part has of an input that all parts agree on."""
        first, last = listing.split(self.of)[self.number]
        source = SourcePart(source, listing, first, last)
        part = source.scan()
        record = {"number": self.number, "of": self.of, "first": first, "last": last}
        return (
            source,
            part,
            replace(identity, items=len(part), digest=part.digest, part=record),
        )


def parts_path(out: Path) -> Path:
    return out / "parts.json"


def read_parts(out: Path) -> Parts:
    """``parts.json``; `UserError` where there is none."""
    remedy = f"run rvqlm tokenize with --out-dir {out} and --part"
    return read_json(parts_path(out), remedy, "not a folder of parts", type=Parts)


def join_parts(out: Path, part: Part, identity: Identity, config: TokenizeConfig) -> None:
    """Write down what all parts must have in common, or compare: `UserError` if this one differs.
    Where machines share no folder, it is compared when the parts are combined."""
    if plan_path(out).exists():
        raise UserError(
            f"--out-dir {out} holds an unfinished rvqlm tokenize without --part; finish it, or "
            "choose another --out-dir"
        )
    if not parts_path(out).exists():
        record = {"codec": identity.codec.to_dict(), **identity.recorded()}
        record |= {"of": part.of, "command": command_of(config)}
        with locked(out, "rvqlm tokenize", wait=600):  # all of an array may have come at once
            if not parts_path(out).exists():
                write_json(parts_path(out), record)
    record = read_parts(out)
    identity.require_same(record, out)
    if record["of"] != part.of:
        raise UserError(
            f"--out-dir {out} is made in {record['of']} parts, not {part.of}; give that number, "
            f"or remove {parts_path(out)} and the folders of the parts"
        )


def require_no_parts(out: Path) -> None:
    """Raise `UserError` for a folder that is being made in parts."""
    if parts_path(out).exists():
        raise UserError(
            f"--out-dir {out} is made in parts: give --part, or make them one with rvqlm combine "
            f"--out-dir {out}"
        )


def part_folders(out: Path) -> Iterator[tuple[Part, Path]]:
    """All folders of parts, whether there is anything in them or not."""
    for path in sorted(out.glob("part-*-of-*")):
        if (found := _FOLDER.fullmatch(path.name)) and path.is_dir():
            yield Part(int(found[1]), int(found[2])), path


def command_of(config: TokenizeConfig) -> str:
    """The command with every flag that is not at its default, but without --part."""
    words = ["rvqlm", "tokenize"]
    groups = [config.input, config.codec, config.audio, config.audio.outside, config.work]
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            usual = value == field.default and field.default is not MISSING
            if usual or is_dataclass(value) or field.name in ("part", "dry_run"):
                continue
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{kebab(field.name)}", *map(str, values)]
    return named(shlex.join(words))


def numbers(of: Iterable[int]) -> str:
    """As Slurm's --array takes them.

    >>> numbers([4, 7, 8, 9])
    '4,7-9'
    """
    ordered = sorted(of)
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1), len(ordered)]
    runs = (ordered[a:b] for a, b in pairwise(starts))
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
