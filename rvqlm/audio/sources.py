"""`open_source`: what a user's ``--input`` means; manifests, and several sources as one."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rvqlm.audio.file_source import FileSource, matching
from rvqlm.audio.items import cost_of, entry_of, item_of
from rvqlm.audio.source import MANIFEST_SUFFIXES, Item, Listing, Source
from rvqlm.errors import UserError
from rvqlm.files import MOST, fits, read_lines, read_yaml


def open_source(paths: str | Sequence[str]) -> Source:
    """The source that a user's ``--input`` means; `UserError` where it means nothing.

    All files, whatever they come from, are one source, in which every file is once; manifests
    follow in the order in which they were given.
    """
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not paths:
        raise UserError("--input: give a folder of audio, a glob, a list or a lhotse manifest")
    paths = [q for p in paths for q in _manifests_matching(p) or [p]]
    manifests = [p for p in paths if _is_manifest(p)]
    files = [p for p in paths if not _is_manifest(p)]
    sources: list[Source] = [FileSource(files)] if files else []
    sources += [ManifestSource(path) for path in manifests]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _manifests_matching(pattern: str) -> list[str]:
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return []
    if not pattern.lower().endswith(MANIFEST_SUFFIXES):
        return []
    return matching(pattern)


def _is_manifest(path: str) -> bool:
    return path.lower().endswith(MANIFEST_SUFFIXES) and os.path.isfile(path)


class ManifestSource(Source):
    """A lhotse manifest of recordings or of cuts with recordings.

    JSONL is streamed and never held in memory; the formats that are one document (up to 64 MB) are.
    An entry that no audio can be read for is an item as well, which is skipped when its turn comes.
    """

    def __init__(self, path: str):
        self.path = path
        self._documents: list | None = None
        if not path.lower().endswith((".jsonl", ".jsonl.gz")):
            self._documents = _documents(path)

    def _entries(self, first: int = 0) -> Iterator[tuple[dict, bytes]]:
        """The entries from `first` on, and what they were read from."""
        if self._documents is not None:
            lines = (json.dumps(document).encode() for document in self._documents)
        else:
            lines = read_lines(self.path, f"--input {self.path}", "give a manifest that exists")
        for number, line in itertools.islice(enumerate(lines, 1), first, None):
            yield entry_of(line, f"--input {self.path}: item {number}"), line

    def ids(self) -> Iterator[str]:
        for fields, _ in self._entries():
            yield str(fields["id"])

    def scan(self) -> Listing:
        digest, costs, hashes, first_reason = hashlib.sha256(), array("d"), array("q"), ""
        for fields, line in self._entries():
            id = str(fields["id"])
            hashes.append(hash(id))
            digest.update(line)
            costs.append(cost_of(fields))
            if first_reason is not None:
                try:
                    item_of(fields)
                    first_reason = None  # there is something to do
                except ValueError as e:
                    first_reason = first_reason or f"{id}: {e}"
        if not costs:
            raise UserError(f"--input {self.path}: the manifest is empty")
        if first_reason is not None:
            raise UserError(
                f"--input {self.path}: none of its entries ({len(costs)}) can be read as audio; "
                f"the first, {first_reason}"
            )
        for id, _ in _repeated(hashes, lambda: zip(self.ids(), itertools.repeat(self.path))):
            raise UserError(f"--input {self.path}: two items have the id {id!r}")
        return Listing(np.array(costs) + 1e-3, digest.hexdigest()[:16], sum(costs) / 3600)

    def items(self, first: int, last: int) -> Iterator[Item]:
        for fields, _ in itertools.islice(self._entries(first), last - first):
            id = str(fields["id"])
            try:
                yield Item(id, item_of(fields))
            except ValueError as e:
                yield Item(id, self.path, str(e))


def _documents(path: str) -> list:
    """The entries of a JSON or YAML manifest; `UserError` where it is none."""
    what = f"--input {path}: not a lhotse manifest"
    if ".yaml" in path.lower():
        return read_yaml(path, what, list)
    lines, size = [], 0
    for line in read_lines(path, f"--input {path}", "give a manifest that exists"):
        lines.append(line)
        size += len(line)
        if size > MOST:
            raise UserError(f"{what}: more than {MOST >> 20} MB; give it as .jsonl.gz")
    try:
        return fits(json.loads(b"".join(lines)), list)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{what}: {e}") from None


def _repeated(
    hashes: array[int], ids: Callable[[], Iterable[tuple[str, str]]]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Ids that come again, with the sources of both, given the hashes of all: a set of millions of
    ids would take ten times the memory."""
    values, times = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    twice, seen = set(values[times > 1].tolist()), {}
    for id, path in ids() if twice else ():
        if hash(id) in twice:
            if id in seen:
                yield id, (seen[id], path)
            seen[id] = path


class JoinedSource(Source):
    """Several sources, one after another."""

    def __init__(self, sources: list[Source]):
        self.sources = sources
        self.path = " ".join(s.path for s in sources)
        self._sizes: list[int] | None = None

    def ids(self) -> Iterator[str]:
        return (id for id, _ in self._ids())

    def _ids(self) -> Iterator[tuple[str, str]]:
        """With the source that each is of."""
        return ((id, source.path) for source in self.sources for id in source.ids())

    def scan(self) -> Listing:
        listings = [s.scan() for s in self.sources]
        self._sizes = [len(listing) for listing in listings]
        hashes = array("q", (hash(id) for id, _ in self._ids()))
        for id, (first, second) in _repeated(hashes, self._ids):
            raise UserError(
                f"--input {second}: the id {id!r} is in {first} too; tokenize the two into "
                "different folders"
            )
        hours = [listing.hours for listing in listings]
        return Listing(
            np.concatenate([listing.costs for listing in listings]),
            "+".join(listing.digest for listing in listings),
            None if None in hours else sum(hours),
        )

    def items(self, first: int, last: int) -> Iterator[Item]:
        for source, low, high in self._ranges(first, last):
            yield from source.items(low, high)

    def fetch(self, first: int, last: int) -> None:
        for source, low, high in self._ranges(first, last):
            source.fetch(low, high)

    def _ranges(self, first: int, last: int) -> Iterator[tuple[Source, int, int]]:
        """What items [first, last) are of each source."""
        if self._sizes is None:
            self.scan()
        begin = 0
        for source, size in zip(self.sources, self._sizes):
            low, high = max(first - begin, 0), min(last - begin, size)
            if low < high:
                yield source, low, high
            begin += size
