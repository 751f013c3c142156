"""What `rvqlm tokenize` can be pointed at: folders, globs, files, lists, lhotse manifests.

A `Source` is listed once, in a fixed order and without decoding any audio, so that work can be
divided by cost beforehand; each worker then reads its own range of items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from lhotse import Recording
from lhotse.cut import Cut

from rvqlm.audio.load import AudioStream, open_cut, open_file
from rvqlm.audio.parts import recording_cut, source_path
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio, printable
from rvqlm.codec_info import CodecInfo

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")


@dataclass(frozen=True)
class Item:
    """One piece of audio that becomes one token cut."""

    id: str
    audio: str | Recording | Cut
    """path of a file, or the lhotse object of a manifest"""
    unusable: str | None = None
    """why it need not even be opened"""

    @property
    def path(self) -> str:
        """For messages: the file where there is one."""
        if isinstance(self.audio, str):
            return printable(self.audio)
        return source_path(getattr(self.audio, "recording", self.audio))

    def open(self, info: CodecInfo, config: AudioConfig) -> AudioStream:
        """Its audio on the way to the codec; `BadAudio` where that is impossible."""
        if self.unusable is not None:
            raise BadAudio(self.path, self.unusable)
        if isinstance(self.audio, str):
            return open_file(self.audio, self.id, info, config)
        cut = recording_cut(self.audio) if isinstance(self.audio, Recording) else self.audio
        return open_cut(cut, info, config)


@dataclass(frozen=True)
class Listing:
    """All items of a source, as far as dividing the work needs it."""

    costs: np.ndarray
    """(N,) float64, the expected work in seconds of audio, guessed from the size of a file"""
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

    def part(self, first: int, last: int) -> Listing:
        """Items [first, last) alone; its digest is that of the whole with the range behind it."""
        costs = self.costs[first:last]
        hours = None if self.hours is None else float(costs.sum()) / 3600
        return Listing(costs, part_digest(self.digest, first, last), hours)


def part_digest(digest: str, first: int, last: int) -> str:
    """What items [first, last) of a listing are known by."""
    return f"{digest}[{first}:{last}]"


class Source(ABC):
    """An input, named by `path` as the user gave it."""

    path: str

    @abstractmethod
    def ids(self) -> Iterator[str]:
        """Of all items, in the order of the listing."""

    @abstractmethod
    def scan(self) -> Listing:
        """Go through all items once; `UserError` for what no item could be made of."""

    @abstractmethod
    def items(self, first: int, last: int) -> Iterator[Item]:
        """Items [first, last) in the order of the listing."""

    def fetch(self, first: int, last: int) -> None:  # noqa: B027
        """Have the files of items [first, last) on this machine, where a bucket has them."""


class SourcePart(Source):
    """Items [first, last) of a source that has been scanned."""

    def __init__(self, source: Source, listing: Listing, first: int, last: int):
        self.path = source.path
        self._source, self._listing = source, listing.part(first, last)
        self._first, self._last = first, last

    def ids(self) -> Iterator[str]:
        return islice(self._source.ids(), self._first, self._last)

    def scan(self) -> Listing:
        return self._listing

    def items(self, first: int, last: int) -> Iterator[Item]:
        return self._source.items(self._first + first, self._first + last)

    def fetch(self, first: int, last: int) -> None:
        self._source.fetch(self._first + first, self._first + last)
