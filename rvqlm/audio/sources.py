"""`open_source`: what a user's ``--input`` means; manifests, and several sources as one."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
from lhotse.serialization import deserialize_item, load_json, load_yaml

from rvqlm.audio.file_source import FileSource, matching
from rvqlm.audio.source import MANIFEST_SUFFIXES, Item, Listing, Source
from rvqlm.errors import UserError
from rvqlm.files import read_lines


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

    JSONL is streamed and never held in memory; the formats that are one document are.
    """

    def __init__(self, path: str):
        self.path = path
        lower = path.lower()
        self._documents: list[dict] | None = None
        if not lower.endswith((".jsonl", ".jsonl.gz")):
            try:
                self._documents = list((load_yaml if ".yaml" in lower else load_json)(path))
            except Exception as e:
                reason = " ".join(str(e).split())  # YAML's are drawn over several lines
                raise UserError(f"--input {path}: not a lhotse manifest: {reason}") from None

    def _lines(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """(number, text) of the items from `first` on, unparsed."""
        if self._documents is not None:
            lines = (json.dumps(document).encode() for document in self._documents)
        else:
            lines = read_lines(self.path, f"--input {self.path}", "give a manifest that exists")
        yield from itertools.islice(enumerate(lines), first, None)

    def _parse(self, number: int, line: bytes) -> dict:
        try:
            fields = json.loads(line)
            fields["id"], fields["duration"]
            return fields
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"--input {self.path}: item {number + 1} is no lhotse recording or cut: {e}"
            ) from None

    def ids(self) -> Iterator[str]:
        for number, line in self._lines():
            yield self._parse(number, line)["id"]

    def scan(self) -> Listing:
        digest, costs, seen = hashlib.sha256(), [], set()
        for number, line in self._lines():
            fields = self._parse(number, line)
            self._require_audio(number, fields)
            if fields["id"] in seen:
                raise UserError(f"--input {self.path}: two items have the id {fields['id']!r}")
            seen.add(fields["id"])
            digest.update(line)
            costs.append(float(fields["duration"]))
        if not costs:
            raise UserError(f"--input {self.path}: the manifest is empty")
        return Listing(np.array(costs) + 1e-3, digest.hexdigest()[:16], sum(costs) / 3600)

    def _require_audio(self, number: int, fields: dict) -> None:
        kind = fields.get("type")
        cut = kind in ("MonoCut", "MultiCut", "Cut") and "recording" in fields
        if cut or "sources" in fields:
            return
        found = "supervisions" if kind is None else f"{kind} items without recordings"
        raise UserError(
            f"--input {self.path}: item {number + 1}: a manifest of {found}; tokenize needs "
            "recordings, or cuts that each lie in one recording"
        )

    def items(self, first: int, last: int) -> Iterator[Item]:
        for number, line in self._lines(first):
            if number >= last:
                return
            fields = self._parse(number, line)
            try:
                item = deserialize_item(fields)
            except Exception as e:
                raise UserError(
                    f"--input {self.path}: item {number + 1} is not what lhotse understands: "
                    f"{type(e).__name__} {e}"
                ) from None
            yield Item(item.id, item)


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
