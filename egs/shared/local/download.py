"""Fetch a file of a corpus, checked, and unpack it: what has its name is complete.

    python egs/shared/local/download.py --url https://example.org/corpus.tar.gz --out-dir data \
        --sha256 DIGEST --unpack corpus

What has arrived lies in NAME.part until its size and checksum are right; the same command goes on
where an interrupted one stopped. An archive (tar, gzip, bzip2, xz, zip) is unpacked beside it and
takes its place as a whole.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import http.client
import lzma
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError, reason_of
from rvqlm.files import remove, write_text
from rvqlm.locks import locked

TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1, 5, 15, 60)  # seconds before trying again; begun anew whenever something arrived
CHUNK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass
class Flags:
    url: str
    """http or https."""
    out_dir: Path
    """Folder of the file, and of what is unpacked."""
    name: str = ""
    """Of the file (default: the last part of the URL)."""
    size: int | None = None
    """Bytes, where they are published."""
    sha256: str = ""
    """Checksum in hexadecimal digits, where it is published."""
    md5: str = ""
    """The same."""
    unpack: str = ""
    """A file or folder of the archive, such as corpus/dev: it becomes OUT_DIR/corpus/dev when all
    of the archive is there. Once it exists there is nothing to do."""
    remove_archive: bool = False
    """Remove the archive once it is unpacked."""


class _Lost(Exception):
    """The connection broke, or the server can't answer now."""


def fetch(
    url: str,
    path: Path,
    size: int | None = None,
    checksums: dict[str, str] | None = None,
    pauses: tuple[float, ...] = PAUSES,
) -> None:
    """Download `url` to `path`, going on from `path`.part; a file that is there is checked.

    :param checksums: hexadecimal digest by algorithm, ``{"sha256": ...}``.
    :param pauses: seconds before each further try; they begin anew whenever something arrived.
    :raises UserError: not to be had, too little room, not what was published.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"--url {url}: give one that begins with http:// or https://")
    checksums = {name: digest.lower() for name, digest in (checksums or {}).items() if digest}
    if path.exists():
        if wrong := _wrong(path, size, checksums):
            raise UserError(f"{path}: {wrong}; remove it, and it is downloaded again")
        return
    part, left = path.with_name(path.name + ".part"), list(pauses)
    while True:
        before = _length(part)
        try:
            _receive(url, part, size, bool(checksums))
            break
        except _Lost as lost:
            left = list(pauses) if _length(part) > before else left
            if not left:
                kept = f" ({_length(part):,} bytes are kept)" if _length(part) else ""
                raise UserError(f"{url}: {lost}; run the same command again{kept}") from None
            print(f"{url}: {lost}; trying again", file=sys.stderr, flush=True)
            time.sleep(left.pop(0))
    if wrong := _wrong(part, size, checksums):
        _forget(part)
        raise UserError(f"{url}: {wrong}; removed: try again, or see whether the source changed")
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _forget(part)


def _receive(url: str, part: Path, size: int | None, checked: bool) -> None:
    """Append to `part` what it lacks. `checked`: a checksum will tell whether it fits together."""
    tag = _tag(part)
    version = tag.read_text() if tag.exists() else ""
    if not (checked or version):
        _forget(part)  # nobody could tell what it is a part of
    have = _length(part)
    if have and have == size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "rvqlm"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})
    with _network(url):
        try:
            answer = urllib.request.urlopen(
                urllib.request.Request(url, None, headers), None, TIMEOUT
            )
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it is here
            _forget(part)
            raise http.client.HTTPException("it is shorter than what had arrived") from None
    with answer:
        begin, total = _span(answer)
        if begin not in (0, have):
            raise _Lost(f"sent bytes from {begin} on, not from {have}")
        if None not in (size, total) and size != total:
            _forget(part)
            raise UserError(f"{url}: has {total:,} bytes, not the {size:,} that were published")
        if not (size or total or checked or answer.chunked):
            raise UserError(
                f"{url}: the server does not say how long it is; give --size or --sha256"
            )
        if begin == 0:
            _forget(part)
        _require_room(part.parent, (size or total or 0) - begin)
        etag, date = (answer.headers.get(name) or "" for name in ("ETag", "Last-Modified"))
        write_text(tag, etag if etag.startswith('"') else date)  # W/"...": not of these very bytes
        _copy(url, answer, part, total)
    if total is not None and _length(part) < total:
        raise _Lost(f"ended after {_length(part):,} of {total:,} bytes")


def _span(answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte that is sent, and bytes of the whole file where that is told."""
    if answer.status == 206:
        told = answer.headers.get("Content-Range") or ""
        if not (sent := re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told)):
            raise _Lost("sent a part without saying which")
        return int(sent[1]), int(sent[2]) if sent[2] != "*" else None
    return 0, answer.length


def _copy(url: str, answer: http.client.HTTPResponse, part: Path, total: int | None) -> None:
    from tqdm import tqdm

    often = 0.5 if sys.stderr.isatty() else 60.0  # a line a minute in a file
    bar = tqdm(
        desc=part.stem, initial=_length(part), total=total, unit="B", unit_scale=True,
        unit_divisor=1024, mininterval=often, delay=often,
    )  # fmt: skip
    with bar, open(part, "ab") as file:
        while True:
            with _network(url):
                data = answer.read1(CHUNK)
            if not data:
                break
            file.write(data)
            bar.update(len(data))


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code not in _TRANSIENT:
            raise UserError(f"{url}: {reason_of(error)}") from None
        raise _Lost(reason_of(error)) from None
    except http.client.InvalidURL as error:
        raise UserError(f"{url}: {reason_of(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None)
        raise _Lost(reason_of(cause if isinstance(cause, Exception) else error)) from None


def _wrong(path: Path, size: int | None, checksums: dict[str, str]) -> str:
    """What is wrong with a file, "" if nothing is known to be."""
    if size is not None and _length(path) != size:
        return f"has {_length(path):,} bytes, not {size:,}"
    for name, digest in checksums.items():
        found = hashlib.new(name, usedforsecurity=False)
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                found.update(data)
        if found.hexdigest() != digest:
            return f"its {name} is {found.hexdigest()}, not {digest}"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(part: Path) -> Path:
    """The file that tells which version of the source a part is of, where the server tells."""
    return part.with_name(part.name + ".tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _require_room(folder: Path, number: int) -> None:
    free = shutil.disk_usage(folder).free
    if number > free:
        raise UserError(f"{folder}: {number:,} bytes are to come and {free:,} are free")


# ----------------------------------------------------------------------------- archives

_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def unpack(archive: Path, folder: Path, wanted: str) -> None:
    """Unpack all of `archive` into `folder`; `wanted`, a relative path in it, appears last.

    What is there of the same name stays as it is.

    :raises UserError: no archive, damaged, without `wanted`, with a name that leads out of the
        folder or with what is neither file nor folder.
    """
    path = PurePosixPath(wanted)
    temporary = folder / f".{archive.name}.{os.getpid()}.tmp"  # as `locked` knows it
    remove(temporary)
    temporary.mkdir()
    try:
        _extract(archive, temporary)
        if not (temporary / path).exists():
            names = ", ".join(sorted(p.name for p in temporary.iterdir())[:8]) or "nothing"
            raise UserError(f"{archive}: has no {wanted}; in it: {names}")
        os.sync()  # a name must not reach the disk before its content
        for depth, part in enumerate(path.parts):
            parent = PurePosixPath(*path.parts[:depth])
            (folder / parent).mkdir(exist_ok=True)
            for entry in sorted((temporary / parent).iterdir()):
                if entry.name != part and not (folder / parent / entry.name).exists():
                    os.replace(entry, folder / parent / entry.name)
        os.replace(temporary / path, folder / path)
    finally:
        remove(temporary)


def _extract(archive: Path, folder: Path) -> None:
    def filtered(member: tarfile.TarInfo, to: str) -> tarfile.TarInfo:
        _require_inside(member.name, f"{archive}: {member.name}")
        if not (member.isfile() or member.isdir()):
            raise UserError(f"{archive}: {member.name} is neither file nor folder; not unpacked")
        _require_room(folder, member.size)
        return tarfile.data_filter(member, to)

    if not hasattr(tarfile, "data_filter"):
        raise UserError("unpacking needs Python 3.10.12, 3.11.4 or later; or unpack it yourself")
    with open(archive, "rb") as file:
        begin = file.read(8)
    try:
        if begin.startswith(b"PK"):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    _require_inside(name, f"{archive}: {name}")
                _require_room(folder, sum(member.file_size for member in packed.infolist()))
                packed.extractall(folder)
            return
        opened = next((o for magic, o in _PACKED.items() if begin.startswith(magic)), open)
        with opened(archive, "rb") as file, tarfile.open(fileobj=file, mode="r|") as packed:
            packed.extractall(folder, filter=filtered)
            while file.read(CHUNK):  # its checksum is behind all of it
                pass
    except OSError as error:
        if error.errno is not None:  # the disk
            raise
        raise UserError(f"{archive}: damaged, or no archive ({reason_of(error)})") from None
    except _DAMAGED as error:
        raise UserError(f"{archive}: damaged, or no archive ({reason_of(error)})") from None


_DAMAGED = (
    *(EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(ValueError, RuntimeError, NotImplementedError),  # of zipfile: names, passwords, methods
)


def _require_inside(name: str, what: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{what}: leads out of the folder")


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "download.py", "Fetch a file of a corpus, checked, and unpack it.", argv)
    name = flags.name or PurePosixPath(unquote(urlsplit(flags.url).path)).name
    if not name or "/" in name:
        raise UserError(f"--url {flags.url}: ends with no name of a file; give --name")
    if flags.unpack:
        _require_inside(flags.unpack, f"--unpack {flags.unpack}")
        if not PurePosixPath(flags.unpack).parts:
            raise UserError(
                f"--unpack {flags.unpack}: name what the archive is for, as in corpus/dev"
            )
    path, result = flags.out_dir / name, flags.out_dir / (flags.unpack or name)
    flags.out_dir.mkdir(parents=True, exist_ok=True)
    with locked(flags.out_dir, "download.py"):
        if not (flags.unpack and result.exists()):
            fetch(flags.url, path, flags.size, {"sha256": flags.sha256, "md5": flags.md5})
            if flags.unpack:
                unpack(path, flags.out_dir, flags.unpack)
                if flags.remove_archive:
                    path.unlink()
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
