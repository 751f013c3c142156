"""What `rvqlm tokenize` can be pointed at: a folder, a glob, a file, or a lhotse manifest.

A `Source` is listed once, in a fixed order and without decoding any audio, so that work can be
divided by cost beforehand; each worker then reads its own range of items.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from lhotse import Recording
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item, load_json, load_yaml

from rvqlm.data.audio import Mono, load_cut, load_new_file, recording_cut
from rvqlm.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf")
UNREADABLE_SUFFIXES = (".m4a", ".aac", ".mp4", ".wma", ".webm")  # audio that libsndfile cannot read
MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")


@dataclass(frozen=True)
class Item:
    """One piece of audio that becomes one token cut."""

    id: str
    audio: str | Recording | Cut
    """path of a file, or the lhotse object of a manifest"""

    @property
    def path(self) -> str:
        """For messages: the file where there is one."""
        if isinstance(self.audio, str):
            return self.audio
        recording = self.audio if isinstance(self.audio, Recording) else self.audio.recording
        return str(recording.sources[0].source) if recording.sources else recording.id

    def load(self, sampling_rate: int, channels: int, mono: Mono) -> tuple[np.ndarray, Cut]:
        """(channels, S) float32 and the audio cut; `BadAudio` where that is impossible."""
        if isinstance(self.audio, str):
            return load_new_file(self.audio, self.id, sampling_rate, channels, mono)
        cut = recording_cut(self.audio) if isinstance(self.audio, Recording) else self.audio
        return load_cut(cut, sampling_rate, channels, mono), cut


@dataclass(frozen=True)
class Listing:
    """All items of a source, as far as dividing the work needs it."""

    costs: np.ndarray
    """(N,) float64, proportional to the expected work: seconds or bytes"""
    digest: str
    """hash of ids, order and contents of the listing: another input has another one"""
    hours: float | None
    """None where only decoding would tell"""

    def __len__(self) -> int:
        return len(self.costs)

    def split(self, parts: int) -> list[tuple[int, int]]:
        """Ranges [first, last) of about equal cost that follow each other and cover all items."""
        total = np.cumsum(self.costs)
        targets = total[-1] * np.arange(1, parts) / parts
        edges = [0, *np.searchsorted(total, targets, side="right").tolist(), len(self)]
        return [(a, max(a, b)) for a, b in pairwise(edges)]


class Source(ABC):
    """An input, named by `path` as the user gave it."""

    path: str

    @abstractmethod
    def scan(self) -> Listing:
        """Go through all items once; `UserError` for what no item could be made of."""

    @abstractmethod
    def items(self, first: int, last: int) -> Iterator[Item]:
        """Items [first, last) in the order of the listing."""


def open_source(path: str) -> Source:
    """The source that a user's ``--input`` means; `UserError` where it means nothing."""
    if os.path.isdir(path):
        return FileSource(path, _audio_below(path), path)
    if os.path.isfile(path):
        lower = path.lower()
        if lower.endswith(MANIFEST_SUFFIXES):
            return ManifestSource(path)
        if lower.endswith(AUDIO_SUFFIXES):
            return FileSource(path, [path], os.path.dirname(path) or ".")
        raise UserError(
            f"--input {path}: neither audio ({' '.join(AUDIO_SUFFIXES)}) nor a lhotse manifest "
            f"({' '.join(MANIFEST_SUFFIXES)})"
        )
    if glob.has_magic(path):
        files = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
        if not files:
            raise UserError(f"--input {path}: no file matches; quote the pattern, ** for any depth")
        if len(files) == 1:
            return open_source(files[0])
        return FileSource(path, files, os.path.commonpath([os.path.dirname(f) for f in files]))
    raise UserError(
        f"--input {path}: no such file or folder; give a folder of audio, a glob, or a lhotse "
        "manifest of recordings or cuts"
    )


def _audio_below(folder: str) -> list[str]:
    """Audio files under a folder, sorted; hidden ones (``._x.wav``) are not audio."""
    found, others = [], Counter()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in AUDIO_SUFFIXES and not name.startswith("."):
                found.append(os.path.join(root, name))
            elif suffix in UNREADABLE_SUFFIXES:
                others[suffix] += 1
    if not found:
        hint = "; ".join(
            f"{n} {s} files are there: convert them to .flac" for s, n in others.items()
        )
        raise UserError(
            f"--input {folder}: no audio ({' '.join(AUDIO_SUFFIXES)}) in this folder"
            + (f"; {hint}" if hint else "")
        )
    return sorted(found)


class FileSource(Source):
    """Audio files; ids are paths below `root` without suffix."""

    def __init__(self, path: str, files: list[str], root: str):
        self.path, self.files = path, files
        names = [Path(os.path.relpath(f, root)).as_posix() for f in files]
        stems = [os.path.splitext(n)[0] for n in names]
        shared = {s for s, n in Counter(stems).items() if n > 1}  # a.wav beside a.flac
        self.ids = [n if s in shared else s for n, s in zip(names, stems)]

    def scan(self) -> Listing:
        digest = hashlib.sha256()
        sizes = np.zeros(len(self.files))
        for i, (id, file) in enumerate(zip(self.ids, self.files)):
            try:  # a file that goes away is skipped when its turn comes
                sizes[i] = os.stat(file).st_size
            except OSError:
                sizes[i] = 0
            digest.update(f"{id}\n{file}\n{int(sizes[i])}\n".encode(errors="surrogateescape"))
        return Listing(sizes + 1.0, digest.hexdigest()[:16], None)  # + 1: empty files cost a little

    def items(self, first: int, last: int) -> Iterator[Item]:
        for i in range(first, last):
            yield Item(self.ids[i], self.files[i])


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
            for i, document in enumerate(self._documents[first:], first):
                yield i, json.dumps(document).encode()
            return
        number = 0
        try:
            opener = gzip.open if self.path.lower().endswith(".gz") else open
            with opener(self.path, "rb") as file:
                for line in file:
                    if line.strip():
                        if number >= first:
                            yield number, line
                        number += 1
        except (OSError, EOFError) as e:
            raise UserError(f"--input {self.path}: cannot read item {number + 1}: {e}") from None

    def _parse(self, number: int, line: bytes) -> dict:
        try:
            fields = json.loads(line)
            fields["id"], fields["duration"]
            return fields
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"--input {self.path}: item {number + 1} is no lhotse recording or cut: {e}"
            ) from None

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
        if "sources" in fields or (
            kind in ("MonoCut", "MultiCut", "Cut") and "recording" in fields
        ):
            return
        found = "supervisions" if kind is None else f"{kind} items"
        if kind in ("MonoCut", "MultiCut", "Cut"):
            found = "cuts without recordings (of features?)"
        elif "num_features" in fields:
            found = "features"
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
