"""egs/shared/local/download.py against a server of this machine that fails in every way."""

import bz2
import gzip
import hashlib
import io
import socket
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rvqlm.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "egs" / "shared" / "local"))

import download

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Source:
    """What the server has, and how it misbehaves; the requests it got."""

    def __init__(self):
        self.body, self.etag = BODY, '"one"'
        self.ranges = True  # whether it knows them
        self.cuts: list[int] = []  # of each answer in turn: bytes until the connection breaks
        self.statuses: list[int] = []  # of each answer in turn; then 200
        self.length = True  # whether it tells it
        self.asked: list[tuple[str | None, str | None]] = []  # Range, If-Range

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers["Range"], handler.headers["If-Range"]
        self.asked.append((wanted, condition))
        status = self.statuses.pop(0) if self.statuses else 200
        begin = 0
        if status == 200 and wanted and self.ranges and condition in (None, self.etag):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if begin < len(self.body) else 416
        handler.send_response(status)
        if status == 206:
            last = len(self.body) - 1
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.body)}")
        elif status == 416:
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        body = self.body[begin:] if status in (200, 206) else b""
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.source.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def source(server):
    server.source = Source()
    return server.source


@pytest.fixture
def url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/corpus.bin"


def fetch(url: str, path: Path, pauses=(0, 0), **kwargs) -> bytes:
    download.fetch(url, path, pauses=pauses, **kwargs)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # no .part, no .tag
    return path.read_bytes()


@pytest.mark.parametrize(
    "published",
    [{}, {"size": len(BODY)}, {"checksums": {"sha256": SHA256.upper()}}],
    ids=["nothing", "size", "sha256"],
)
def test_goes_on_after_breaks(source, url, tmp_path, published):
    source.cuts, source.statuses = [1000, 500, 0, 70_000], [200, 200, 503]
    assert fetch(url, tmp_path / "a", **published) == BODY
    begins = [r and int(r[6:-1]) for r, _ in source.asked]
    assert begins == [None, 1000, 1500, 1500, 71_500]
    assert {c for _, c in source.asked[1:]} == {'"one"'}


def test_another_run_goes_on(source, url, tmp_path, capsys):
    source.cuts = [1000, 0, 0]
    with pytest.raises(
        UserError, match=r"ended after 1,000 of 256,000 bytes.*1,000 bytes are kept"
    ):
        fetch(url, tmp_path / "a")
    assert not (tmp_path / "a").exists() and capsys.readouterr().err.count("trying again") == 2
    assert fetch(url, tmp_path / "a") == BODY
    assert source.asked[-1] == ("bytes=1000-", '"one"')


def test_a_whole_part_needs_only_its_name(source, url, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY)
    assert fetch(url, tmp_path / "a", checksums={"sha256": SHA256}) == BODY  # the server says 416
    (tmp_path / "a").rename(tmp_path / "a.part")
    assert fetch(url, tmp_path / "a", size=len(BODY), checksums={"sha256": SHA256}) == BODY
    assert len(source.asked) == 1


def test_what_changed_meanwhile_is_begun_anew(source, url, tmp_path):
    source.cuts = [1000]
    with pytest.raises(UserError):
        fetch(url, tmp_path / "a", pauses=())
    source.body, source.etag = BODY[::-1], '"two"'
    assert fetch(url, tmp_path / "a") == BODY[::-1]
    # of what nobody says which version it is nothing is kept
    source.etag, source.cuts = "", [1000]
    with pytest.raises(UserError):
        fetch(url, tmp_path / "b", pauses=())
    (tmp_path / "a").unlink()
    source.body = BODY
    assert fetch(url, tmp_path / "b") == BODY and source.asked[-1] == (None, None)


def test_a_longer_part_is_begun_anew(source, url, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY + b"x")
    assert fetch(url, tmp_path / "a", checksums={"sha256": SHA256}) == BODY


def test_a_server_without_ranges(source, url, tmp_path):
    source.ranges, source.cuts = False, [1000, 2000]
    assert fetch(url, tmp_path / "a") == BODY and len(source.asked) == 3


def test_what_is_not_as_published_is_removed(source, url, tmp_path):
    for published, message in [
        ({"checksums": {"sha256": "0" * 64}}, "its sha256 is .*, not 000"),
        ({"checksums": {"sha256": SHA256, "md5": "0" * 32}}, "its md5 is"),
        ({"size": 5}, "has 256,000 bytes, not the 5 that were published"),
    ]:
        with pytest.raises(UserError, match=message):
            fetch(url, tmp_path / "a", **published)
        assert not list(tmp_path.iterdir())


def test_what_is_there_is_checked_and_left(source, url, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"of somebody")
    with pytest.raises(UserError, match=f"{path}: has 11 bytes, not 256,000; remove it"):
        fetch(url, path, size=len(BODY))
    path.write_bytes(BODY)
    assert fetch(url, path, checksums={"sha256": SHA256}) == BODY and not source.asked


def test_mistakes_and_refusals(source, url, tmp_path, monkeypatch):
    source.statuses = [404]
    with pytest.raises(UserError, match=r"corpus.bin: HTTP Error 404"):
        fetch(url, tmp_path / "a")
    assert len(source.asked) == 1  # asking again would not help
    source.length, source.etag = False, ""
    with pytest.raises(UserError, match="does not say how long it is"):
        fetch(url, tmp_path / "a")
    assert fetch(url, tmp_path / "a", checksums={"sha256": SHA256}) == BODY
    (tmp_path / "a").unlink()
    source.length = True
    for bad in ("file:///etc/passwd", "ftp://127.0.0.1/a", "corpus.bin"):
        with pytest.raises(UserError, match="begins with http"):
            fetch(bad, tmp_path / "a")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/a"
        with pytest.raises(UserError, match="Connection refused; run the same command again"):
            fetch(nobody, tmp_path / "a")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match="256,000 bytes are to come and 100 are free"):
        fetch(url, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ----------------------------------------------------------------------------- archives


def gzipped(data: bytes) -> bytes:
    """Without the time of day, lest each worker names its tests otherwise."""
    return gzip.compress(data, mtime=0)


def tar(*members: tarfile.TarInfo | tuple[str, bytes], pack=gzipped) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o644
                archive.addfile(info, io.BytesIO(member[1]))
    return pack(stream.getvalue())


def zipped(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tree(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


FILES = (("top/README", b"read"), ("top/dev/a", b"aa"), ("top/dev/b/c", b"c"), ("loose", b"l"))


def run(*args: object, capsys) -> tuple[int, str, str]:
    status = download.run_main(download.main, [str(a) for a in args])
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    "body",
    [
        tar(*FILES),
        tar(special("./", tarfile.DIRTYPE), *FILES, pack=bz2.compress),
        tar(*FILES, pack=bytes),
        zipped(*FILES),
    ],
    ids=["gz", "bz2", "tar", "zip"],
)
def test_an_archive_is_fetched_and_unpacked_once(source, url, tmp_path, capsys, body):
    source.body = body
    out = tmp_path / "my data"
    args = ("--url", url, "--out-dir", out, "--size", len(body), "--unpack", "top/dev")
    status, said, _ = run(*args, capsys=capsys)
    assert status == 0 and said == f"{out}/top/dev\n"
    assert tree(out) == dict(FILES) | {"corpus.bin": body}
    (out / "corpus.bin").unlink()
    assert run(*args, capsys=capsys)[0] == 0 and len(source.asked) == 1
    # another archive beside it: what is there stays
    source.body = tar(("top/README", b"other"), ("top/test/a", b"t"))
    args = ("--url", url, "--out-dir", out, "--unpack", "top/test", "--remove-archive")
    assert run(*args, capsys=capsys)[0] == 0
    assert tree(out) == dict(FILES) | {"top/test/a": b"t"}


@pytest.mark.parametrize(
    "body, message",
    [
        (tar(*FILES, ("../out", b"x")), "../out: leads out of the folder"),
        (tar(*FILES, ("/tmp/out", b"x")), "/tmp/out: leads out"),
        (tar(special("top", tarfile.SYMTYPE, "/tmp"), *FILES), "top is neither file nor folder"),
        (tar(special("top/l", tarfile.LNKTYPE, "../../out"), *FILES), "top/l is neither"),
        (tar(special("top/p", tarfile.FIFOTYPE), *FILES), "top/p is neither"),
        (tar(special("top/d", tarfile.CHRTYPE), *FILES), "top/d is neither"),
        (zipped(*FILES, ("a/../../out", b"x")), "a/../../out: leads out"),
        (tar(*FILES)[:-30], "damaged, or no archive"),
        (tar(*FILES)[:-8] + bytes(8), "damaged, or no archive"),  # only its checksum tells
        (tar(*FILES, pack=bz2.compress)[:-30], "damaged, or no archive"),
        (tar(*FILES, pack=bytes)[:700], "damaged, or no archive"),
        (zipped(*FILES)[:-30], "damaged, or no archive"),
        (zipped(*FILES).replace(b"read", b"reap", 1), "damaged, or no archive"),
        (b"<html>Please log in</html>" * 40, "damaged, or no archive"),
        (b"", "damaged, or no archive"),
        (tar(("other/a", b"x")), "has no top/dev; in it: other"),
    ],
)
def test_what_cannot_be_unpacked_leaves_nothing(tmp_path, capsys, body, message):
    out = tmp_path / "data"
    out.mkdir()
    (out / "corpus").write_bytes(body)
    args = ("--url", "http://127.0.0.1:9/corpus", "--out-dir", out, "--unpack", "top/dev")
    status, said, error = run(*args, capsys=capsys)
    assert status == 2 and message in error and error.count("\n") == 1 and not said
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert tree(out) == {"corpus": body} and len(list(out.iterdir())) == 1


def test_a_place_to_unpack_is_a_name(tmp_path, capsys):
    (tmp_path / "corpus").write_bytes(tar(*FILES))
    args = ("--url", "http://127.0.0.1:9/corpus", "--out-dir", tmp_path, "--unpack")
    for place in ("../x", tmp_path / "x", "."):
        status, _, error = run(*args, place, capsys=capsys)
        assert status == 2 and error.count("\n") == 1 and "--unpack" in error, place
    status, _, error = run(*args[:1], "http://127.0.0.1:9/", *args[2:4], capsys=capsys)
    assert status == 2 and "give --name" in error


def test_a_bomb_does_not_fill_the_disk(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(tar(("top/zeros", bytes(1 << 20))))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 9999}))
    with pytest.raises(UserError, match="1,048,576 bytes are to come and 9,999 are free"):
        download.unpack(tmp_path / "a", tmp_path, "top")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
