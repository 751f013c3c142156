"""Files appear whole or not at all, and what is wrong with one is said in one line."""

import errno
import gzip
import json
import os

import pytest

from rvqlm.errors import UserError
from rvqlm.files import (
    atomic_folder,
    atomic_open,
    atomic_write,
    json_line,
    link_or_copy,
    read_json,
    read_lines,
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
