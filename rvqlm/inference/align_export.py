"""Alignments for other programs: lhotse manifests, TextGrids, subtitles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rvqlm.cli import bar
from rvqlm.data.index import manifest_path
from rvqlm.data.text_times import TextTimes
from rvqlm.exchange.alignments import SUFFIX
from rvqlm.exchange.names import path_for_id
from rvqlm.exchange.subtitles import cues, srt, vtt
from rvqlm.exchange.textgrid import write_textgrid
from rvqlm.files import atomic_open, json_line, write_text
from rvqlm.frontends.aligned import UNITS, WORD, Item, Labels, sounds
from rvqlm.frontends.transcripts import transcripts
from rvqlm.inference.aligner import SplitTexts


class Exported(NamedTuple):
    """What was written of a split."""

    cuts: int
    without: int
    """cuts that have no alignment: left out, in a manifest without items"""
    unwritten: int
    """cuts with other words in their symbols than in their text: their words are symbols, and
    they have one subtitle"""


class _Timed(NamedTuple):
    """The items of one cut."""

    units: list[Item]
    """of symbols but for white space and punctuation"""
    words: list[Item]
    text: str
    written: bool
    """The labels of the words are those of the text."""


def _timed(cut: dict, ids: np.ndarray, times: np.ndarray, labels: Labels) -> _Timed:
    units = [Item(labels.label(ids[[n]]), *times[n].tolist()) for n in labels.spoken(ids)]
    groups = labels.words(ids)
    text = next(transcripts([cut], "text", None)).text
    names = [word for word in text.split() if sounds(word)]
    written = len(names) == len(groups)
    if not written:
        names = [labels.label(ids[of]) for of in groups]
    edges = (times[[of[0], of[-1]], [0, 1]].tolist() for of in groups)
    return _Timed(units, [Item(n, *e) for n, e in zip(names, edges)], text, written)


def export(texts: SplitTexts, times: TextTimes, format: str, out_dir: Path) -> Exported:
    """Write the alignments of a split into a folder."""
    unit, found = UNITS[texts.labels.type], {"cuts": 0, "without": 0, "unwritten": 0}

    def each(write: Callable[[dict, _Timed | None], None]) -> None:
        dataset = texts.dataset
        for row, cut in enumerate(bar(dataset.cuts(), dataset.split, len(dataset))):
            of, timed = times.read(row), None
            if of is not None:
                timed = _timed(cut, texts.column.read(row)[:, 0], of, texts.labels)
            found["without" if timed is None else "cuts"] += 1
            found["unwritten"] += timed is not None and not timed.written
            write(cut, timed)

    def file(cut: dict, timed: _Timed | None) -> None:
        if timed is None:
            return
        suffix = SUFFIX if format == "textgrid" else f".{format}"
        path = path_for_id(out_dir, cut["id"], suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "textgrid":
            tiers = {f"{WORD}s": timed.words, f"{unit}s": timed.units}
            write_textgrid(path, tiers, cut["duration"])
            return
        shown = cues(timed.words)
        if not timed.written and timed.text and shown:
            shown = [Item(" ".join(timed.text.split()), shown[0].start, shown[-1].end)]
        write_text(path, srt(shown) if format == "srt" else vtt(shown))

    out_dir.mkdir(parents=True, exist_ok=True)
    if format != "lhotse":
        each(file)
        return Exported(**found)
    with atomic_open(manifest_path(out_dir, texts.dataset.split)) as manifest:
        each(lambda cut, timed: manifest.write(json_line(_with_items(cut, timed, unit))))
    return Exported(**found)


def _with_items(cut: dict, timed: _Timed | None, unit: str) -> dict:
    """The cut with each item in the supervision in which its middle is, or the one before."""
    segments = sorted(cut.get("supervisions") or (), key=lambda s: s["start"])
    if timed is None or not segments:
        return cut
    starts = [s["start"] for s in segments]
    for segment in segments:
        segment["alignment"] = {**(segment.get("alignment") or {}), unit: [], WORD: []}
    for name, items in ((unit, timed.units), (WORD, timed.words)):
        for item in items:
            place = int(np.searchsorted(starts, (item.start + item.end) / 2, "right")) - 1
            stored = [item.label, item.start, round(item.end - item.start, 4), None]
            segments[max(0, place)]["alignment"][name].append(stored)
    return cut
