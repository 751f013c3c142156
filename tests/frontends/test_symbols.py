"""The symbol table: k2's format and answers, and clear words about damaged files."""

import pytest

from rvqlm.errors import UserError
from rvqlm.frontends.symbols import EPS, SymbolTable, read_symbol, write_symbol

# as k2.SymbolTable.to_str() of version 1.23.4 writes the same symbols
GOLDEN = "<eps> 0\n<space> 1\n' 2\nɔ̃ 3\nː 4\n<U+00A0> 5\n▁the 6\n\u200b 7\n# 8\n"
SYMBOLS = ["<space>", "'", "ɔ̃", "ː", "<U+00A0>", "▁the", "\u200b", "#"]


def test_golden_text(tmp_path):
    table = SymbolTable.of(SYMBOLS)
    assert table.to_str() == GOLDEN
    table.to_file(tmp_path / "tokens.txt")
    assert (tmp_path / "tokens.txt").read_bytes() == GOLDEN.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.txt"]  # nothing temporary is left
    assert SymbolTable.from_file(tmp_path / "tokens.txt") == table


def test_answers():
    table = SymbolTable({7: "b", 2: "a"})
    assert table["a"] == 2 and table[7] == "b" and table[0] == EPS == table.eps
    assert table.get("b") == 7 and table.find("b") == 7 and table.find("c") is None
    assert "a" in table and 7 in table and "c" not in table and 3 not in table
    assert len(table) == 3 and table.ids == [0, 2, 7] and table.symbols == ["<eps>", "a", "b"]
    assert table != SymbolTable({7: "b", 3: "a"}) and table != "a"
    for key in ("c", 3):
        with pytest.raises(KeyError):
            table[key]


def test_other_empty_symbols_gaps_and_order():
    table = SymbolTable.from_str("b 9\n\n  a\t3 \n<blk> 0\r\n")
    assert table.eps == "<blk>" and table.to_str() == "<blk> 0\na 3\nb 9\n"


@pytest.mark.parametrize("text", [" ", "\t", "\u00a0", "\u3000", "\x1f", "a", "a b", "<", "ɔ̃"])
def test_white_space_has_a_written_form(text):
    symbol = write_symbol(text)
    assert len(symbol.split()) == 1 and read_symbol(symbol) == text
    table = SymbolTable.of([symbol])
    assert SymbolTable.from_str(table.to_str()) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<eps> 0\na 1 2\n", r"tokens.txt:2: 3 columns .* <space>"),
        ("<eps> 0\n\n  1\n", r"tokens.txt:3: 1 columns"),
        ("a x\n", r"tokens.txt:1: 'x' is no id"),
        ("a -1\n", r"tokens.txt:1: '-1' is no id"),
        ("a 1_0\n", r"tokens.txt:1: '1_0' is no id"),
        ("<eps> 0\na 1\na 2\n", r"tokens.txt:3: symbol 'a' has two ids, 1 and 2"),
        ("<eps> 0\na 1\nb 1\n", r"tokens.txt:3: id 1 has two symbols, 'a' and 'b'"),
        ("<eps> 3\n", r"tokens.txt: symbol '<eps>' has two ids, 3 and 0"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "tokens.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        SymbolTable.from_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"tokens\.txt: No such file.*rvqlm text"):
        SymbolTable.from_file(tmp_path / "tokens.txt")
    (tmp_path / "tokens.txt").write_bytes("é 1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        SymbolTable.from_file(tmp_path / "tokens.txt")


@pytest.mark.parametrize("symbol", ["", " ", "a b", "a\u2028"])
def test_symbols_that_no_file_can_hold_are_refused(symbol):
    with pytest.raises(UserError, match="empty, or white space in it; write <space>"):
        SymbolTable.of([symbol])


def test_same_as_k2(tmp_path):
    k2 = pytest.importorskip("k2")
    ours, path = SymbolTable.of(SYMBOLS), str(tmp_path / "tokens.txt")
    ours.to_file(path)
    theirs = k2.SymbolTable.from_file(path)
    assert theirs.to_str() == ours.to_str() == GOLDEN
    assert theirs.ids == ours.ids and theirs.symbols == ours.symbols and len(theirs) == len(ours)
    for key in (*SYMBOLS, *range(len(ours))):
        assert theirs[key] == ours[key] and (key in theirs) and (key in ours)
    theirs.to_file(path)
    assert SymbolTable.from_file(path) == ours
    sparse = "b 9\n\na\t3\n"  # <eps> is added
    assert k2.SymbolTable.from_str(sparse).to_str() == SymbolTable.from_str(sparse).to_str()
