"""`open_source`: what a user's ``--input`` means."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

import numpy as np

from rvqlm.audio.file_source import FileSource, matching
from rvqlm.audio.manifest_source import ManifestSource
from rvqlm.audio.source import MANIFEST_SUFFIXES, Item, Listing, Source
from rvqlm.errors import UserError


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


class JoinedSource(Source):
    """Several sources, one after another."""

    def __init__(self, sources: list[Source]):
        self.sources = sources
        self.path = " ".join(s.path for s in sources)
        self._sizes: list[int] | None = None

    def ids(self) -> Iterator[str]:
        for source in self.sources:
            yield from source.ids()

    def scan(self) -> Listing:
        listings = [s.scan() for s in self.sources]
        self._sizes = [len(listing) for listing in listings]
        seen: dict[str, str] = {}
        for source in self.sources:
            for id in source.ids():
                if id in seen:
                    raise UserError(
                        f"--input {source.path}: the id {id!r} is in {seen[id]} too; tokenize the "
                        "two into different folders"
                    )
                seen[id] = source.path
        hours = [listing.hours for listing in listings]
        return Listing(
            np.concatenate([listing.costs for listing in listings]),
            "+".join(listing.digest for listing in listings),
            None if None in hours else sum(hours),
        )

    def items(self, first: int, last: int) -> Iterator[Item]:
        if self._sizes is None:
            self.scan()
        begin = 0
        for source, size in zip(self.sources, self._sizes):
            low, high = max(first - begin, 0), min(last - begin, size)
            if low < high:
                yield from source.items(low, high)
            begin += size
