#!/usr/bin/env python3
"""``rvqlm recipes``: the recipes of the repository, as the table of ``egs/README.md`` has them.

rvqlm recipes           all of them
rvqlm recipes custom    one folder of them
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError

TABLE = Path(__file__).resolve().parents[2] / "egs" / "README.md"


@dataclass
class Args:
    name: Annotated[str, tyro.conf.Positional] = ""
    """A folder of egs/; nothing: all of them."""
    json: bool = False
    """JSON instead of text."""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a Markdown table by the names of its columns, links and code as plain words.

    :raises UserError: no such file: an installed package comes without the recipes.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: the recipes are not part of the installed package; clone the repository, "
            "and pip install -e it"
        )
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            plain = re.sub(r"\[([^]]+)\]\([^)]+\)|`([^`]+)`", r"\1\2", line)
            rows.append([cell.strip() for cell in plain.strip().strip("|").split(" | ")])
    names, _, *rows = rows
    return [dict(zip(names, row, strict=True)) for row in rows]


def _main(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm recipes", "The recipes of the repository.", argv)
    found = read_table(TABLE)
    folders = list(dict.fromkeys(row["recipe"] for row in found))
    if args.name and args.name not in folders:
        raise UserError(f"no recipe {args.name!r}; there are {', '.join(folders)}")
    found = [row for row in found if args.name in ("", row["recipe"])]
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    for row in found:
        print(f"{row.pop('recipe')}: {row.pop('task')}")
        for name, value in row.items():
            print(f"  {name:<9}{value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
