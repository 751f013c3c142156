"""Audio files as an input of `rvqlm tokenize`: folders, globs, single files and lists of paths.

Every real file is listed once, however many links lead to it: what is in the data twice would end
up in two splits. A file keeps its own name where that was found, else the first link's.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rvqlm.audio.read import AUDIO_SUFFIXES
from rvqlm.audio.reader import printable
from rvqlm.audio.source import MANIFEST_SUFFIXES, Item, Listing, Source
from rvqlm.errors import UserError
from rvqlm.remote.session import fetch, named, sizes

LIST_SUFFIXES = (".txt", ".lst", ".list")

# Bytes a second, to guess durations from sizes; everything else is taken for lossy.
_BYTES_PER_SECOND = {s: 88_200 for s in (".wav", ".aif", ".aiff", ".au", ".w64", ".caf")}
_BYTES_PER_SECOND[".flac"] = 50_000
_LOSSY_BYTES_PER_SECOND = 16_000


class FileSource(Source):
    """Audio files; ids are paths without suffix, below the folder that was given or all share.

    The suffix stays where ids would be equal without it (a.wav beside a.flac). Files that are
    gone, folders that cannot be listed and names that are no text are items too: each is skipped
    with its reason when its turn comes.
    """

    def __init__(self, paths: list[str]):
        self.path = " ".join(paths)
        found, roots = [], []
        self._sizes: dict[str, int] = {}
        """of files that may lie in a bucket only"""
        for path in paths:
            files, root = _files_of(path)
            self._sizes |= sizes(path)
            found += files
            roots.append(root)
        self.files = _each_once(found)
        root = roots[0] if len(roots) == 1 else os.path.commonpath(map(os.path.abspath, roots))
        self._ids = _ids([Path(os.path.relpath(f, root)).as_posix() for f in self.files])

    def ids(self) -> Iterator[str]:
        return iter(self._ids)

    def scan(self) -> Listing:
        digest = hashlib.sha256()
        costs = np.zeros(len(self.files))
        for i, (id, file) in enumerate(zip(self._ids, self.files)):
            try:  # a file that goes away is skipped when its turn comes
                size = self._sizes[file] if file in self._sizes else os.stat(file).st_size
            except OSError:
                size = 0
            suffix = os.path.splitext(file)[1].lower()
            costs[i] = size / _BYTES_PER_SECOND.get(suffix, _LOSSY_BYTES_PER_SECOND)
            # the name in the bucket: machines may have their copies in different places
            text = f"{id}\n{named(file)}\n{size}\n"
            digest.update(text.encode(errors="surrogateescape"))
        # an empty file costs a little too
        return Listing(costs + 1e-3, digest.hexdigest()[:16], None)

    def items(self, first: int, last: int) -> Iterator[Item]:
        for id, file in zip(self._ids[first:last], self.files[first:last]):
            unusable = None
            if not _is_text(file):
                unusable = "its name is no UTF-8 text; rename it"
            elif os.path.isdir(file):
                unusable = "a folder that cannot be listed"
            yield Item(id, file, unusable)

    def fetch(self, first: int, last: int) -> None:
        if self._sizes:
            fetch(self.files[first:last])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # undecodable bytes, kept by os.fsdecode as lone surrogates
        return False
    return True


def _ids(names: list[str]) -> list[str]:
    """Names without suffix, with it where that is needed to tell them apart."""
    names = [n if _is_text(n) else printable(n) for n in names]
    ids = [os.path.splitext(n)[0] for n in names]
    while len(shared := {i for i, n in Counter(ids).items() if n > 1}):
        longer = [n if i in shared else i for i, n in zip(ids, names)]
        if longer == ids:  # two names that only differ in bytes that are no text
            raise UserError(f"two files have the name {shared.pop()!r}; rename one")
        ids = longer
    return ids


def _files_of(path: str) -> tuple[list[str], str]:
    """Files that one ``--input`` means, sorted, and the folder that ids begin below."""
    names = {file: os.path.relpath(file, path) for file in sizes(path) if _is_audio(file)}
    if path in names:
        return [path], os.path.dirname(path)
    if names:  # of a bucket, whether they have been fetched or not; nothing hidden
        return sorted(f for f, n in names.items() if not re.search(r"(^|/)\.", n)), path
    if os.path.isdir(path):
        files = [f for f in _below(path) if _is_audio(f) or os.path.isdir(f)]
        if not any(map(_is_audio, files)):
            raise UserError(f"--input {path}: no audio ({' '.join(AUDIO_SUFFIXES)}) in this folder")
        return files, path
    if os.path.isfile(path):
        lower = path.lower()
        if lower.endswith(LIST_SUFFIXES):
            files = _listed_in(path)
        elif lower.endswith(AUDIO_SUFFIXES):
            files = [path]
        else:
            raise UserError(
                f"--input {path}: neither audio ({' '.join(AUDIO_SUFFIXES)}), nor a list of paths "
                f"({' '.join(LIST_SUFFIXES)}), nor a lhotse manifest "
                f"({' '.join(MANIFEST_SUFFIXES)})"
            )
    elif glob.has_magic(path):
        files = [f for f in matching(path) if _is_audio(f)]
        if not files:
            raise UserError(
                f"--input {path}: no file with audio ({' '.join(AUDIO_SUFFIXES)}) matches; quote "
                "the pattern, ** stands for any depth"
            )
    else:
        raise UserError(
            f"--input {path}: no such file or folder; give a folder of audio, a glob, a list of "
            "paths, or a lhotse manifest of recordings or cuts"
        )
    folders = {os.path.dirname(os.path.abspath(f)) for f in files}
    return files, os.path.commonpath(folders)


def _is_audio(path: str) -> bool:
    return path.lower().endswith(AUDIO_SUFFIXES)


def _below(folder: str) -> list[str]:
    """All files under a folder and the folders that cannot be listed, sorted; nothing hidden.

    Links to folders are followed, but not into a folder that they lie in.
    """
    found: list[str] = []
    todo = [(folder, frozenset())]
    while todo:
        folder, above = todo.pop()
        try:
            stat, entries = os.stat(folder), list(os.scandir(folder))
        except OSError:
            found.append(folder)
            continue
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            continue
        for entry in entries:
            if entry.name.startswith("."):  # ``._x.wav`` is not audio
                continue
            if entry.is_dir():
                todo.append((entry.path, above | {here}))
            else:
                found.append(entry.path)
    return sorted(found)


def matching(pattern: str) -> list[str]:
    """Files that a glob matches, sorted; ``**`` is any number of folders.

    Not `glob.glob(recursive=True)`, which goes round in loops of links.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(f for f in glob.glob(pattern) if os.path.isfile(f))
    head = "/".join(parts[: parts.index("**")])
    tail = parts[parts.index("**") :]
    if not head:
        head = "/" if pattern.startswith("/") else "."
    found = []
    for root in glob.glob(head) if glob.has_magic(head) else [head]:
        for file in _below(root) if os.path.isdir(root) else []:
            names = os.path.relpath(file, root).split("/")
            if os.path.isfile(file) and _fits(names, tail):
                found.append(os.path.relpath(file) if head == "." else file)
    return sorted(found)


def _fits(names: list[str], parts: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _listed_in(path: str) -> list[str]:
    """Paths in a text file, one a line, in its order.

    They are relative to the list's folder, or where there is nothing of that name to the current
    one. Blank lines and lines that begin with # are left out.
    """
    folder, files = os.path.dirname(path), []
    with open(path, "rb") as lines:
        for line in lines.read().removeprefix(b"\xef\xbb\xbf").splitlines():
            name = os.fsdecode(line.strip())
            if not name or name.startswith("#"):
                continue
            beside = os.path.join(folder, name)
            files.append(name if not os.path.exists(beside) and os.path.exists(name) else beside)
    if not files:
        raise UserError(f"--input {path}: the list is empty")
    return files


def _each_once(files: list[str]) -> list[str]:
    """The files in their order, each real one once: under its own name, else the first given."""
    real_folder = functools.lru_cache(maxsize=4096)(os.path.realpath)
    chosen: dict[str, tuple[int, bool]] = {}  # by real path: which, and whether it is no link
    for i, file in enumerate(files):
        folder, name = os.path.split(file)
        real = os.path.join(real_folder(folder or "."), name)
        direct = real == os.path.abspath(file)
        if os.path.islink(file):
            real, direct = os.path.realpath(file), False
        if real not in chosen or (direct and not chosen[real][1]):
            chosen[real] = i, direct
    keep = {i for i, _ in chosen.values()}
    return [file for i, file in enumerate(files) if i in keep]
