"""Reading and writing files: whole or not at all, and what is wrong with one in one line.

Everything that is written goes through `atomic_write`, `atomic_open` or `atomic_folder`, so that a
crash at any moment leaves either the old content or the new. Everything that is read may have been
written by anybody: `read_json`, `read_jsonl` and `read_yaml` take a bounded amount of memory and
compare what they find with a schema, a type that msgspec understands.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import time
import typing
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta

from rvqlm.errors import UserError, reason_of

MOST = 64 << 20
"""Bytes of a line of a JSONL file, unpacked, at most; of a JSON or YAML file too, or `_RATIO` times
its size where that is more."""
_RATIO = 50
_DEPTH = 100  # of nested YAML: its C parser has no bound of its own and overflows the stack

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""In schemas: a whole number from 0 on."""
Positive = Annotated[int, Meta(ge=1, lt=1 << 62)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""In schemas: a number that is neither infinite nor NaN, both of which Python's JSON has."""
Name = Annotated[str, Meta(min_length=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
"""In schemas: a SHA-256."""


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk and put it in the place of `path`."""
    with replacing(Path(path)) as temporary:
        write(temporary)


@contextlib.contextmanager
def atomic_open(path: str | Path, level: int = 5) -> Iterator[BinaryIO]:
    """A file to write, gzipped if its name says so, that takes the place of `path` at the end of
    the block; an error in the block leaves `path` as it was.

    :param level: of compression. The same content gives the same bytes.
    """
    path = Path(path)
    with replacing(path) as temporary, open(temporary, "wb") as raw:
        if path.suffix == ".gz":  # no name and no time in the header
            with gzip.GzipFile("", "wb", compresslevel=level, fileobj=raw, mtime=0) as packed:
                yield packed
        else:
            yield raw


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, which is `path` at the end of the block; an error in the block leaves
    nothing. `path` does not exist before or is an empty folder."""
    with replacing(Path(path)) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; what is no character (of a file name) is escaped."""
    data = text.encode(errors="backslashreplace")
    atomic_write(path, lambda to: to.write_bytes(data))


def write_json(
    path: str | Path, value: Any, indent: int | None = 1, checksum: bool = False
) -> None:
    """Write plain values as JSON, atomically.

    :param checksum: add one to the dictionary, under that name, which `read_json` compares.
    """
    write_text(path, json.dumps(with_checksum(value) if checksum else value, indent=indent) + "\n")


def with_checksum(values: dict) -> dict:
    """The values with "checksum", the CRC-32 of them all however they are laid out, at the end.

    >>> with_checksum({"a": (1, 2)})
    {'a': [1, 2], 'checksum': 'crc32:726169d5'}
    """
    plain = {k: v for k, v in json.loads(json.dumps(values)).items() if k != "checksum"}
    crc = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    return plain | {"checksum": f"crc32:{crc:08x}"}


def without_checksum(values: Any) -> Any:
    """The values without "checksum"; `ValueError` where it is another one than theirs. A file
    without one is taken as it is."""
    if not isinstance(values, dict) or "checksum" not in values:
        return values
    if values["checksum"] != with_checksum(values)["checksum"]:
        raise ValueError('other values than its checksum is of; if you edited it, drop "checksum"')
    return {k: v for k, v in values.items() if k != "checksum"}


def json_line(fields: dict) -> bytes:
    """A line of a JSONL file, newline included."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(fields).encode() + b"\n"


def fits(value: Any, type: Any) -> Any:
    """Plain values, as JSON has them, as an instance of a schema.

    A `TypedDict` is only compared: the value itself comes back, with the entries that it does not
    name. Schemas convert nothing else (no "1" to 1); ``1.0`` is no int.

    >>> fits({"rate": 1}, dict[str, Finite])
    {'rate': 1.0}

    :raises ValueError: it does not; the message says where: ``$.rate: expected float, got str``.
    """
    try:
        found = msgspec.convert(value, type)
    except msgspec.ValidationError as e:
        what, _, place = str(e).replace("`", "").partition(" - at ")
        what = what[:1].lower() + what[1:]
        raise ValueError(f"{place}: {what}" if place else what) from None
    return value if typing.is_typeddict(type) else found


def read_json(
    path: str | Path,
    remedy: str,
    missing: str = "",
    convert: Callable[[Any], Any] = lambda v: v,
    type: Any = Any,
) -> Any:
    """The values of a JSON file, gzipped or plain, that `fits` the schema `type`, passed through
    `convert`; a checksum that it has is compared and left out.

    Raises `UserError`, ending in `remedy`, where the file is missing (`missing`: what that means)
    or damaged, which is also what the usual errors of `convert` say.
    """
    try:
        text = _all_of(path)
        return convert(fits(without_checksum(json.loads(text.decode())), type))
    except FileNotFoundError:
        what = f": {missing}" if missing else ""
        raise UserError(f"{path} not found{what}; {remedy}") from None
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path}: {reason_of(e)}; {remedy}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError) as e:
        what = "nested too deeply" if isinstance(e, RecursionError) else e
        raise UserError(f"{path} is damaged ({what}); {remedy}") from None


def read_text(path: str | Path) -> str:
    """A text file in UTF-8; `UserError` for another, or one that is too large for a text."""
    try:
        return _all_of(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (UTF-8)") from None
    except (ValueError, OSError) as e:
        raise UserError(f"{path}: {reason_of(e)}") from None


def _open(path: str | Path) -> BinaryIO:
    return gzip.open(path, "rb") if str(path).lower().endswith(".gz") else open(path, "rb")


def _all_of(path: str | Path) -> bytes:
    """What is in a file, gzipped or plain; `ValueError` where its size bounds nothing."""
    most, size, parts = max(MOST, _RATIO * os.stat(path).st_size), 0, []
    with _open(path) as file:
        while part := file.read(1 << 16):
            parts.append(part)
            if (size := size + len(part)) > most:
                raise ValueError(f"more than {most >> 20} MB")
    return b"".join(parts)


def read_lines(path: str | Path, what: str, remedy: str) -> Iterator[bytes]:
    """The lines of a file, gzipped or plain, that are not blank, one at a time.

    Raises `UserError` that begins with `what`, ending in `remedy` where the file is missing; for a
    line longer than `MOST` and for as much of nothing, which a few bytes of gzip can stand for.
    """
    blank = 0
    try:
        with _open(path) as f:
            while line := f.readline(MOST + 1):
                if line.isspace():
                    blank += len(line)
                else:
                    blank = 0
                if max(blank, len(line)) > MOST:
                    raise UserError(f"{what}: a line of more than {MOST >> 20} MB; make it again")
                if not blank:
                    yield line
    except FileNotFoundError:
        raise UserError(f"{what} not found; {remedy}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{what} is cut short or damaged ({e}); make it again") from None
    except OSError as e:
        raise UserError(f"{what}: {reason_of(e)}") from None


def read_jsonl(path: str | Path, what: str, remedy: str, type: Any = dict) -> Iterator[Any]:
    """The lines of a JSONL file that are not blank, each of which `fits` the schema `type`.

    Raises `UserError` as `read_lines`, and naming the first line that does not fit.
    """
    for number, line in enumerate(read_lines(path, what, remedy), 1):
        try:
            yield fits(_parsed(line), type)
        except (ValueError, RecursionError) as e:
            why = "nested too deeply" if isinstance(e, RecursionError) else e
            why = "not JSON" if isinstance(e, json.JSONDecodeError | UnicodeDecodeError) else why
            raise UserError(f"{what}, entry {number}: {why}; make it again") from None


def _parsed(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)  # three times as fast
    except msgspec.DecodeError:
        return json.loads(line)  # takes half characters, of names that are no UTF-8, and says more


def read_yaml(path: str | Path, what: str, type: Any = Any) -> Any:
    """The values of a YAML file, gzipped or plain, that `fits` the schema `type`; see `parse_yaml`.

    Raises `UserError` that begins with `what`.
    """
    try:
        text = _all_of(path)
    except (EOFError, ValueError, zlib.error, OSError) as e:
        raise UserError(f"{what}: {reason_of(e)}") from None
    return parse_yaml(text, what, type)


def parse_yaml(text: bytes | str, what: str, type: Any = Any) -> Any:
    """The values of a YAML document that `fits` the schema `type`.

    Raises `UserError` that begins with `what` for what is no YAML, for a key that comes twice, and
    for aliases that stand for more than the document could have spelt out.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        seen: set[int] = set()  # mappings, before others were merged into them (<<)

        def flatten_mapping(self, node):
            if id(node) not in self.seen:
                self.seen.add(id(node))
                names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                for name, times in Counter(names).most_common(1):
                    if times > 1:
                        raise ValueError(f"key {name!r} given twice")
            super().flatten_mapping(node)

    try:
        text = text.decode() if isinstance(text, bytes) else text
        _require_small(yaml.parse(text, Loader), len(text))
        return fits(yaml.load(text, Loader), type)
    except UnicodeDecodeError:
        raise UserError(f"{what}: not a text file") from None
    except (ValueError, OverflowError, UserError) as e:
        raise UserError(f"{what}: {e}") from None
    except Exception as e:  # its constructors raise KeyError, IndexError and AttributeError too
        raise UserError(f"{what}: not YAML: {' '.join(str(e).split())[:200]}") from None


def _require_small(events: Iterator, size: int) -> None:
    """Raise `ValueError` for a YAML document of too many levels, or that names things so often (a
    list of ten of a list of ten of ...) that written out it would be larger than `size`."""
    sizes: dict[str, int] = {}
    within: list[tuple[str | None, int]] = [(None, 0)]  # anchor and nodes of what is open
    for event in events:
        kind, anchor, nodes = type(event).__name__, getattr(event, "anchor", None), 0
        if kind == "AliasEvent":
            nodes = sizes.get(anchor, size + 1_000)  # unknown: it is within what it names
        elif kind == "ScalarEvent":
            nodes = 1
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            within.append((anchor, 1))
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, nodes = within.pop()
        if nodes and anchor and kind != "AliasEvent":
            sizes[anchor] = nodes
        within[-1] = (within[-1][0], within[-1][1] + nodes)
        if len(within) > _DEPTH:
            raise ValueError("nested too deeply")
        if within[-1][1] > size + 1_000:
            raise ValueError("its aliases (*name) stand for more than a file of its size can say")


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """Make `to` a second name of `source`, or a copy of it where no such name can be."""
    try:
        os.link(source, to)
    except OSError:  # no hard links here, or not across what is mounted
        shutil.copyfile(source, to)


def blocks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file, so many bytes at a time."""
    with open(path, "rb") as file:
        while block := file.read(size):
            yield block


def sha256_of(path: str | Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name; what is written there, a file or a folder, takes the place of `path` at
    the end of the block."""
    name = f".{path.name}.{os.getpid()}.tmp"  # as `remove_torn` knows it
    if len(os.fsencode(name)) > 255:  # more than file systems take
        name = f".{os.getpid()}.tmp"
    temporary = path.with_name(name)
    # left by a process of the same number (in a container all have the same); if it is a second
    # name of a checkpoint, writing into it would destroy that one
    remove(temporary)
    try:
        yield temporary
        for file in (temporary, *temporary.rglob("*")):
            if file.is_file():
                _sync(file)
        os.replace(temporary, path)
    finally:
        remove(temporary)  # on failure, and where both names are one file already
    with contextlib.suppress(OSError):  # directories of some file systems cannot be synced
        _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_torn(folder: str | Path, name: str | None = None) -> None:
    """Delete what processes that are no more have left half-written in a folder and in those within
    it; with `name`, only what was to become FOLDER/NAME. The caller holds the folder's lock."""
    folder = Path(folder)
    within = [] if name is not None else [p for p in folder.iterdir() if p.is_dir()]
    for path in (p for place in (folder, *within) for p in place.glob(".*.tmp")):
        of, _, pid = path.name[1:].removesuffix(".tmp").rpartition(".")
        if pid.isascii() and pid.isdigit() and name in (None, of):
            with contextlib.suppress(OSError):
                if not _is_of(path, int(pid)):
                    remove(path)


def _is_of(path: Path, pid: int) -> bool:
    """Whether a file may be in the hands of another process that runs here."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    try:  # the same numbers come again, in containers each time
        ticks = float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return True
    began = time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    return path.stat().st_mtime > began - 1


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
