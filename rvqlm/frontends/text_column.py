"""Symbols of one split on their way to its column, and what is said about them."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rvqlm.data.index import TokenDataset
from rvqlm.files import atomic_open, json_line
from rvqlm.frontends.transcripts import Transcript

_EXAMPLES = 3  # cuts that a message names


@dataclass
class SplitReport:
    """What was made of one split."""

    cuts: int
    symbols: int = 0
    frames: int = 0
    """of codes, of the cuts that have text"""
    without: int = 0
    """cuts without text"""
    left_out: int = 0
    """cuts whose text cannot be used, or says nothing"""
    examples: list[str] = field(default_factory=list)
    """the first of those without text and of those left out: 'cut (reason)'"""
    unknown: int = 0
    """symbols left out, or ``<unk>``"""
    named: list[str] = field(default_factory=list)
    """the most frequent of these, each with its first word and cut"""
    said: dict[str, int] = field(default_factory=dict)
    """what was done to texts, with its number"""
    languages: dict[str, int] = field(default_factory=dict)
    """espeak's tags, with the number of cuts"""
    assumed: int = 0
    """cuts in whose manifest no language is named"""


class Column:
    """Ids of one split, in temporary files: a row of ids a cut, a line for each cut without."""

    def __init__(self, dataset: TokenDataset):
        self.dataset = dataset
        self.report = SplitReport(len(dataset))
        self.sizes = array("I")
        self.said: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.first: dict[str, Transcript] = {}
        """Where each unknown symbol was met first."""
        self._ids = tempfile.TemporaryFile(dir=dataset.directory)  # noqa: SIM115, lives as long
        self._skipped = tempfile.TemporaryFile(dir=dataset.directory)  # noqa: SIM115

    def add(self, item: Transcript, ids: list[int], unknown: Sequence[str] = ()) -> None:
        """The next cut; `unknown`: its symbols that the table lacks."""
        report = self.report
        report.unknown += len(unknown)
        if item.language is not None:
            languages = report.languages
            languages[item.language] = languages.get(item.language, 0) + 1
        if ids:
            report.symbols += len(ids)
            report.frames += int(self.dataset.frames[len(self.sizes)])
        elif not item.text and item.problem is None:
            report.without += 1
            self._skip(item, "no text")
        else:
            report.left_out += 1
            self._skip(item, item.problem or "nothing that is spoken in its text")
        for symbol in unknown:
            self.unknown[symbol] += 1
            self.first.setdefault(symbol, item)
        if ids and unknown:
            named = ", ".join(map(repr, dict.fromkeys(unknown)))
            self._note(item, f"symbols that the table lacks: {named}")
        self.sizes.append(len(ids))
        self._ids.write(array("i", ids).tobytes())

    def _skip(self, item: Transcript, reason: str) -> None:
        if len(self.report.examples) < _EXAMPLES:
            self.report.examples.append(f"{item.cut} ({reason})")
        self._note(item, reason)

    def _note(self, item: Transcript, reason: str) -> None:
        self._skipped.write(json_line({"id": item.cut, "reason": reason}))

    def rows(self, renumber: np.ndarray | None) -> Iterator[np.ndarray]:
        """The ids of each cut; renumber: new ones by the old."""
        self._ids.seek(0)
        for size in self.sizes:
            row = np.frombuffer(self._ids.read(4 * size), np.int32)
            yield row if renumber is None else renumber[row]

    def write_skipped(self) -> None:
        """``text_skipped_SPLIT.jsonl``: id and reason of the cuts without text, left out or without
        some of their symbols; no file where there are none."""
        path = skipped_path(self.dataset.directory, self.dataset.split)
        if self._skipped.tell() == 0:
            path.unlink(missing_ok=True)
            return
        self._skipped.seek(0)
        with atomic_open(path) as file:
            shutil.copyfileobj(self._skipped, file)


def skipped_path(directory: Path, split: str) -> Path:
    return directory / f"text_skipped_{split}.jsonl"
