"""Symbol tables in k2's text format, ``tokens.txt``: one ``symbol id`` a line.

    <eps> 0
    <space> 1
    a 2

The file, and what a table answers, is the same as with ``k2.SymbolTable``, so either side reads
what the other wrote; k2 need not be installed. White space parts the two columns and cannot be in
a symbol: `write_symbol` gives white space a visible form, ``<space>`` for a space and ``<U+00A0>``
(the code point) for any other, and `read_symbol` takes it back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.files import write_text

EPS = "<eps>"
"""Symbol 0, which no text contains: the blank of a recogniser trained with CTC."""
SPACE = "<space>"
_ESCAPED = re.compile(r"<space>|<U\+([0-9A-F]{4,6})>")


def write_symbol(text: str) -> str:
    """The form of `text` that can stand in a table.

    >>> write_symbol(" "), write_symbol("a"), write_symbol("\\u00a0")
    ('<space>', 'a', '<U+00A0>')
    """
    return "".join(SPACE if c == " " else f"<U+{ord(c):04X}>" if c.isspace() else c for c in text)


def read_symbol(symbol: str) -> str:
    """The text that `write_symbol` wrote."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)) if m[1] else " ", symbol)


class SymbolTable:
    """Symbols and their ids, which need not be consecutive; id 0 is the empty symbol.

    >>> table = SymbolTable.of(["b", "a"])
    >>> table["a"], table[0], len(table), "c" in table
    (2, '<eps>', 3, False)
    """

    def __init__(self, symbols: Mapping[int, str]):
        """symbols: by id; without an id 0, ``<eps>`` is added there, as in k2.

        Raises `UserError` for negative ids, symbols given twice, empty ones or ones with white
        space.
        """
        self._symbols: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        for id, symbol in sorted(symbols.items()):
            self._add(symbol, int(id))
        if 0 not in self._symbols:
            self._add(EPS, 0)

    def _add(self, symbol: str, id: int) -> None:
        if id < 0:
            raise UserError(f"symbol {symbol!r} has the id {id}; ids begin at 0")
        if symbol == "" or any(c.isspace() for c in symbol):
            raise UserError(
                f"symbol {symbol!r} of id {id}: empty, or white space in it; write {SPACE} for one"
            )
        if symbol in self._ids:
            raise UserError(
                f"symbol {symbol!r} has two ids, {self._ids[symbol]} and {id}; give it one"
            )
        if id in self._symbols:
            raise UserError(f"id {id} has two symbols, {self._symbols[id]!r} and {symbol!r}")
        self._symbols[id] = symbol
        self._ids[symbol] = id

    @classmethod
    def of(cls, symbols: Iterable[str]) -> SymbolTable:
        """``<eps>`` as 0, then `symbols` in their order."""
        return cls(dict(enumerate([EPS, *symbols])))

    @classmethod
    def from_str(cls, text: str, where: str = "symbol table") -> SymbolTable:
        """Read the format; empty lines are passed over.

        where: the name of the source in messages. Raises `UserError` with the line's number for
        lines of other than two columns, ids that are no numbers and anything given twice.
        """
        table = cls.__new__(cls)
        table._symbols, table._ids = {}, {}
        for number, line in enumerate(text.split("\n"), 1):
            columns = line.split()
            try:
                if not columns:
                    continue
                if len(columns) != 2:
                    raise UserError(
                        f"{len(columns)} columns where a symbol and its id are wanted; a space as "
                        f"a symbol is written {SPACE}"
                    )
                symbol, id = columns
                if not (id.isascii() and id.isdigit()):
                    raise UserError(f"{id!r} is no id; ids are numbers from 0 on")
                table._add(symbol, int(id))
            except UserError as e:
                raise UserError(f"{where}:{number}: {e}") from None
        try:
            if 0 not in table._symbols:
                table._add(EPS, 0)
        except UserError as e:
            raise UserError(f"{where}: {e}; {EPS} has the id 0") from None
        return table

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> SymbolTable:
        """Read ``tokens.txt``, in UTF-8; `UserError` as `from_str`, or where there is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
        except OSError as e:
            raise UserError(f"{path}: {e.strerror or e}; rvqlm text makes symbol tables") from None
        return cls.from_str(text, str(path))

    def to_str(self) -> str:
        """The lines of the file, by id."""
        return "".join(f"{self._symbols[id]} {id}\n" for id in self.ids)

    def to_file(self, path: str | os.PathLike) -> None:
        """Write the file, in UTF-8; it appears when it is complete."""
        write_text(path, self.to_str())

    @property
    def ids(self) -> list[int]:
        """In order of size."""
        return sorted(self._symbols)

    @property
    def symbols(self) -> list[str]:
        """In alphabetical order."""
        return sorted(self._ids)

    @property
    def eps(self) -> str:
        """The symbol of id 0."""
        return self._symbols[0]

    def get(self, key: int | str) -> str | int:
        """The symbol of an id, or the id of a symbol; `KeyError` where there is none."""
        return self._symbols[int(key)] if isinstance(key, Integral) else self._ids[key]

    __getitem__ = get

    def find(self, symbol: str) -> int | None:
        """The id of a symbol, None where the table lacks it."""
        return self._ids.get(symbol)

    def __contains__(self, key: int | str) -> bool:
        return int(key) in self._symbols if isinstance(key, Integral) else key in self._ids

    def __len__(self) -> int:
        return len(self._symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymbolTable) and self._symbols == other._symbols

    __hash__ = None  # holds dictionaries

    def __repr__(self) -> str:
        return f"<SymbolTable of {len(self)} symbols>"
