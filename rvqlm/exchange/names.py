"""From ids of cuts to paths of files, never outside the folder they belong in, and back."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rvqlm.cli import counted
from rvqlm.errors import UserError, reason_of

_LONGEST = 200  # bytes of a name: file systems allow 255, suffixes and temporary names need some


def path_for_id(folder: Path, id: str, suffix: str) -> Path:
    """Where the file for `id` goes: folders of the id become folders, the suffix is appended.

    Ids that are no relative paths (``..``, a leading slash, names too long or with bytes no file
    name has) are changed and get a hash of the id, so that two ids never share a path.

    >>> print(path_for_id(Path("out"), "disc 1/a.b", ".wav"))
    out/disc 1/a.b.wav
    >>> print(path_for_id(Path("out"), "../../etc/passwd", ".wav"))
    out/_/_/etc/passwd-4d606f08a952.wav
    """
    parts = id.split("/")
    good = [_plain(part) for part in parts]
    if good != parts:
        good[-1] += "-" + _mark(id)
    return folder.joinpath(*good[:-1], good[-1] + suffix)


def new_path(folder: Path, id: str, suffix: str) -> Path:
    """`path_for_id` in a folder that is being filled, with the folders of the id made.

    Raises `UserError` where a file of that name is there already: of an equal id, or of one that
    the file system takes for equal.
    """
    path = path_for_id(folder, id, suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = path.exists()
    except OSError as e:  # "a.npy/b" beside "a"
        raise UserError(f"the item {id!r} cannot be a file: {reason_of(e)}; rename it") from None
    if taken:
        raise UserError(
            f"the item {id!r} would replace another in {path.relative_to(folder)}; ids must "
            "differ, in more than capital letters where the file system takes these for equal"
        )
    return path


def flat_name(id: str) -> str:
    """An id as the name of a file without folders; two ids may have one name, see `Names`.

    >>> flat_name("disc 1/a.b")
    'disc 1_a.b'
    """
    return _plain(id.replace("/", "_"))


class Names:
    """Stems of file names, none of which is given twice or is among those `taken` already.

    >>> names = Names(["b"])
    >>> [names.take("a"), names.take("a"), names.take("b"), names.take("c", first=0)]
    ['a', 'a-01', 'b-01', 'c-00']
    """

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = {name.casefold() for name in taken}  # as some file systems compare them

    def take(self, name: str, suffixes: Sequence[str] = ("",), first: int | None = None) -> str:
        """`name`, or where it is taken with any of the suffixes, the next of ``name-01``,
        ``name-02``, ...; with a `first` number it never goes without one."""
        numbers = itertools.count(1 if first is None else first)
        stems = (f"{name}-{number:02d}" for number in numbers)
        for stem in stems if first is not None else itertools.chain([name], stems):
            wanted = {(stem + suffix).casefold() for suffix in suffixes}
            if not wanted & self._taken:
                break
        self._taken |= wanted
        return stem


def _mark(id: str) -> str:
    return hashlib.blake2b(id.encode(errors="surrogatepass")).hexdigest()[:12]


def _plain(part: str) -> str:
    """The part itself if it can name a file, else something that can."""
    name = "_" if part in ("", ".", "..") else part.replace("\0", "_")
    name = "_" + name[2:] if name.startswith("._") else name  # see `find_files`
    name = name.encode(errors="replace").decode()  # half a character becomes a question mark
    while len(name.encode()) > _LONGEST:
        name = name[:-1]
    return name


def find_files(inputs: Sequence[str], suffix: str) -> list[tuple[str, str]]:
    """(id, path) of the files that folders, quoted globs and names of files mean, sorted.

    Args:
        inputs: of a user.
        suffix: such as ``.npy``; in folders only files that end so are taken, at any depth, but
            for the ``._x`` that macOS puts beside x.

    An id is the path below the folder that all of them share, without the suffix. Raises
    `UserError` for an input that means nothing.
    """
    paths: dict[str, None] = {}
    roots = []
    for text in map(str, inputs):
        if os.path.isdir(text):
            found = [*_below(text, suffix)]
            roots.append(text)
        else:
            found = [text] if os.path.lexists(text) else glob.glob(text, recursive=True)
            found = [f for f in found if not os.path.isdir(f)]
            roots += [os.path.dirname(f) for f in found]
        if not found:
            raise UserError(
                f"{text}: no {suffix} file there; give a folder, a quoted glob or names of files"
            )
        paths.update(dict.fromkeys(found))
    root = os.path.commonpath([os.path.abspath(r) for r in roots])
    files = sorted(paths)
    names = [Path(os.path.relpath(f, root)).as_posix() for f in files]
    stems = [n[: -len(suffix)] if n.lower().endswith(suffix) else n for n in names]
    shared = {s for s, n in Counter(stems).items() if n > 1}  # a.npq beside a.NPQ
    return [(n if s in shared else s, f) for n, s, f in zip(names, stems, files)]


def _below(folder: str, suffix: str) -> Iterator[str]:
    paths = (path for path in Path(folder).rglob("*") if path.name.lower().endswith(suffix))
    return (str(p) for p in paths if not p.name.startswith("._") and not p.is_dir())


def left_out(inputs: Sequence[str], suffix: str, files: list[tuple[str, str]]) -> str:
    """What to say of the files that lie below those that were named, and were not: a pattern such
    as ``out/*.npq`` takes the top of an export of ids with folders. "" where there are none.

    Args:
        inputs, suffix, files: of `find_files`, and what that gave.
    """
    patterns = [i for i in map(str, inputs) if not os.path.lexists(i)]
    if patterns:
        folder = os.path.dirname(patterns[0][: re.search(r"[*?[]", patterns[0]).start()]) or "."
    elif len(inputs) > 1 and all(os.path.isfile(i) for i in inputs):
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(i)) for i in inputs])
        if not os.path.isfile(os.path.join(folder, "codec.json")):
            return ""  # no export: these files were meant
    else:
        return ""
    taken = {os.path.abspath(path) for _, path in files}
    rest = sorted(p for p in _below(folder, suffix) if os.path.abspath(p) not in taken)
    if not rest:
        return ""
    return (
        f"{counted(len(rest), suffix + ' file')} below {folder} left out, {rest[0]} first; give "
        f"the folder itself to take all of them"
    )
