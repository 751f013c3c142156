"""Subtitles of words whose times are known, as SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Sequence

from rvqlm.frontends.aligned import Item

PAUSE = 0.5
"""Seconds of silence after which a new subtitle begins."""
WIDTH = 42
"""Letters of one, unless a word is longer."""


def cues(words: Sequence[Item]) -> list[Item]:
    """Subtitles of words in their order.

    >>> cues([Item("Good", 0.1, 0.4), Item("morning.", 0.4, 1.0), Item("Ah.", 2.0, 2.5)])
    [Item(label='Good morning.', start=0.1, end=1.0), Item(label='Ah.', start=2.0, end=2.5)]
    """
    found: list[Item] = []
    for word in words:
        if found and word.start - found[-1].end < PAUSE:
            longer = f"{found[-1].label} {word.label}"
            if len(longer) <= WIDTH:
                found[-1] = Item(longer, found[-1].start, word.end)
                continue
        found.append(word)
    return found


def srt(found: Sequence[Item]) -> str:
    """The text of a .srt file."""
    return "\n".join(f"{n}\n{_times(cue, ',')}\n{cue.label}\n" for n, cue in enumerate(found, 1))


def vtt(found: Sequence[Item]) -> str:
    """The text of a .vtt file."""
    marks = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    lines = (f"{_times(cue, '.')}\n{cue.label.translate(marks)}\n" for cue in found)
    return "\n".join(["WEBVTT\n", *lines])


def _times(cue: Item, point: str) -> str:
    return f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"


def _clock(seconds: float, point: str) -> str:
    """
    >>> _clock(3661.5, ",")
    '01:01:01,500'
    """
    ms = round(1000 * seconds)
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
