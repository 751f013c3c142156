"""Files appear whole or not at all, and what is wrong with one is said in one line."""

import contextlib
import errno
import gzip
import json
import os
import zlib
from dataclasses import dataclass
from typing import TypedDict

import pytest
import yaml

from rvqlm import files
from rvqlm.errors import UserError
from rvqlm.files import (
    Count,
    Finite,
    atomic_folder,
    atomic_open,
    atomic_write,
    fits,
    json_line,
    link_or_copy,
    read_json,
    read_jsonl,
    read_lines,
    read_yaml,
    write_json,
)


def test_failed_write_leaves_the_one_before(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("good")

    def fail(to):
        to.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        atomic_write(path, fail)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_what_a_dead_process_of_the_same_number_left_is_not_written_into(tmp_path):
    path = tmp_path / "latest.pt"
    path.write_text("old")
    os.link(path, tmp_path / f".latest.pt.{os.getpid()}.tmp")
    os.link(path, tmp_path / "archived.pt")
    atomic_write(path, lambda to: to.write_text("new"))
    assert path.read_text() == "new" and (tmp_path / "archived.pt").read_text() == "old"


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.bin", "a.jsonl.gz"])
def test_an_error_leaves_the_old_file_and_no_scraps(tmp_path, name):
    path = tmp_path / name
    with atomic_open(path) as file:
        file.write(b"old")
    old = path.read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_open(path) as file:
        file.write(b"new")
        assert path.read_bytes() == old
        file.write(1 // 0)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [name]


def test_equal_content_is_packed_to_equal_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        with atomic_open(tmp_path / name) as file:
            file.write(b"lines\n" * 99)
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "b.gz").read_bytes() and gzip.decompress(packed) == b"lines\n" * 99


def test_the_longest_names(tmp_path):
    path = tmp_path / ("\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 127)
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]} and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"

    def fill(to):
        (to / "inner").mkdir()
        (to / "inner/a").write_text("a")
        assert not folder.exists()

    with pytest.raises(OSError), atomic_folder(folder) as temporary:
        fill(temporary)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    (tmp_path / f".folder.{os.getpid()}.tmp").mkdir()  # of a dead process of the same number
    (tmp_path / f".folder.{os.getpid()}.tmp/b").write_text("b")
    with atomic_folder(folder) as temporary:
        fill(temporary)
    assert [p.name for p in folder.rglob("*")] == ["inner", "a"]
    with pytest.raises(OSError), atomic_folder(folder) as temporary:  # never instead of another
        (temporary / "a").write_text("a")
    assert [p.name for p in folder.rglob("*")] == ["inner", "a"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    source, to = tmp_path / "source", tmp_path / "to"
    source.write_text("a")
    link_or_copy(source, to)
    assert to.samefile(source)
    to.unlink()

    def refuse(*paths):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, to)
    assert not to.samefile(source) and to.read_text() == "a"


def test_a_name_that_is_no_utf_8_makes_a_line():
    assert json_line({"a": "é"}) == '{"a": "é"}\n'.encode()
    assert json_line({"a": "\udcff"}) == b'{"a": "\\udcff"}\n'


def test_json(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json not found: no notes; run x"):
        read_json(path, "run x", "no notes")
    write_json(path, {"a": [1, "é"]})
    assert read_json(path, "run x") == {"a": [1, "é"]}
    assert read_json(path, "run x", convert=lambda v: v["a"][0]) == 1
    for convert in (lambda v: v["b"], lambda v: v.b, lambda v: int(v["a"][1])):
        with pytest.raises(UserError, match=r"a\.json is damaged .*; run x"):
            read_json(path, "run x", convert=convert)
    for text in (b'{"a": [1', b"\xff"):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"a\.json is damaged .*; run x"):
            read_json(path, "run x")


def test_lines_of_manifests(tmp_path):
    for path in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        with pytest.raises(UserError, match="manifest m not found; run x"):
            list(read_lines(path, "manifest m", "run x"))
        with atomic_open(path) as file:
            file.write(b"one\n\n  \ntwo")
        assert list(read_lines(path, "m", "run x")) == [b"one\n", b"two"]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:12], b"no gzip", whole[:14] + b"\0" + whole[15:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="m is cut short or damaged"):
            list(read_lines(path, "m", "run x"))
    with pytest.raises(UserError, match="m: Is a directory"):
        list(read_lines(tmp_path, "m", "run x"))


class Line(TypedDict):
    id: str
    seconds: Finite


@dataclass
class Rate:
    """A schema that is an object."""

    rate: Count


DEEP = "[" * 100_000 + "]" * 100_000


def test_what_fits_a_schema():
    line = {"id": "\udcff", "seconds": 1, "more": {"\udcff": [1]}}
    assert fits(line, Line) is line  # with what the schema does not name
    assert fits({"rate": 3, "more": 4}, Rate) == Rate(3)


@pytest.mark.parametrize(
    ("value", "type", "message"),
    [
        ([{"rate": "1"}], list[Rate], "$[0].rate: expected int, got str"),
        ({"rate": -1}, Rate, "$.rate: expected int >= 0"),
        ({"rate": 10**30}, Rate, "$.rate: expected int <"),
        ({"rate": True}, Rate, "$.rate: expected int, got bool"),
        ({"id": "a"}, Line, "object missing required field seconds"),
        ({"id": "a", "seconds": float("nan")}, Line, "$.seconds: expected float"),
        ({"id": "a", "seconds": float("inf")}, Line, "$.seconds: expected float"),
        ({"id": None, "seconds": 1.0}, Line, "$.id: expected str, got null"),
        ([], Line, "expected object, got array"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(value, type, message):
    with pytest.raises(ValueError) as error:
        fits(value, type)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ['{"rate": ' + "9" * 9999 + "}", DEEP, '{"rate": NaN}', '{"rate": 1e999}', '"a"', ""]
)
def test_json_of_anybody(tmp_path, text):
    """Digits without end, nesting without end, numbers that are none."""
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged .*; run x") as error:
        read_json(path, "run x", type=Rate)
    assert len(str(error.value)) < 300
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=r"^m, entry 1: .*; make it again") if text else nothing():
        list(read_jsonl(path, "m", "run x", Rate))


def nothing():
    return contextlib.nullcontext()


def test_what_is_no_file(tmp_path):
    for read in (lambda: read_json(tmp_path, "x"), lambda: read_yaml(tmp_path, "m")):
        with pytest.raises(UserError, match="Is a directory"):
            read()


def test_lines_are_bounded(tmp_path, monkeypatch):
    """A few MB of gzip hold a line, or blank lines, of many GB."""
    monkeypatch.setattr(files, "MOST", 1000)
    path = tmp_path / "a.jsonl.gz"
    for text in (b"[" * 1001, b"\n" * 1001, b"1\n" + b" " * 5000 + b"\n2\n"):
        for path in (tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl"):
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
            with pytest.raises(UserError, match=r"^m: a line of more than 0 MB"):
                list(read_jsonl(path, "m", "run x", int))
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[]" + b" " * 998))
    assert read_json(path, "run x") == []
    path.write_bytes(gzip.compress(b"[]" + b" " * 99_999))
    with pytest.raises(UserError, match="more than 0 MB"):
        read_json(path, "run x")
    with pytest.raises(UserError, match="more than 0 MB"):
        read_yaml(path, "m")


def test_a_bomb_is_not_unpacked(tmp_path):
    """Reading stops at the bound: the rest of the stream here is no gzip at all."""
    packer = zlib.compressobj(9, wbits=31)
    path = tmp_path / "a.jsonl.gz"
    data = b"".join(packer.compress(b"1" * (1 << 20)) for _ in range(files.MOST // (1 << 20) + 9))
    path.write_bytes(data + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 99)
    with pytest.raises(UserError, match="a line of more than 64 MB"):
        list(read_lines(path, "m", "run x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: [*a, *a]\n", None),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n", None),
        ("a0: &a0 [x, x, x]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
        ), "its aliases"),
        ("a: &a [*a]", "its aliases"),
        ("a: 1\nb: 2\na: 3", "key 'a' given twice"),
        ("x: [{a: 1, a: 1}]", "key 'a' given twice"),
        (DEEP, "nested too deeply"),
        ("a: " + "9" * 9999, "limit"),
        ("a: 2001-99-99", "month"),
        ("? [1]\n: 2", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: *b", "its aliases|undefined"),
    ],
)  # fmt: skip
def test_yaml_of_anybody(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    if message is None:
        assert read_yaml(path, "m") == yaml.safe_load(text)
        return
    with pytest.raises(UserError, match=f"^m: .*({message})") as error:
        read_yaml(path, "m")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_yaml_with_a_schema(tmp_path):
    path = tmp_path / "a.yaml.gz"
    path.write_bytes(gzip.compress(b"[{rate: 1}]"))
    assert read_yaml(path, "m", list[Rate]) == [Rate(1)]
    path.write_bytes(gzip.compress(b"[{rate: x}]"))
    with pytest.raises(UserError, match=r"^m: \$\[0\]\.rate: expected int, got str"):
        read_yaml(path, "m", list[Rate])
    path.write_bytes(b"[]")
    with pytest.raises(UserError, match=r"^m: Not a gzipped file"):
        read_yaml(path, "m")
