"""MPEG audio (MP3 and layers I and II): frames one after another, in a good file with a first one
that tells their number (Xing, Info or VBRI).

Without that number libsndfile guesses from the first frame, and where it is wrong both libsndfile
and ffmpeg leave audio out. So frames are counted: their headers alone, 30 ms for an hour.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from rvqlm.containers.layout import Bytes, Layout, Segment, skip_tags

SUFFIXES = (".mp3", ".mp2", ".mpga")
_KBPS = {  # by version (1, or 2 and 2.5) and layer, for the codes 1 to 14
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAME = 0xFE0C  # bits of the second and third byte that the frames of a stream share
_CONFIRMED = 3  # frames that follow each other are no coincidence


@functools.cache
def _lengths() -> list[int]:
    """Bytes of a frame by the second and third byte of its header; 0 where it is none."""
    lengths = [0] * 65536
    for key in range(0xE000, 0x10000):
        version, layer = (key >> 11) & 3, 4 - ((key >> 9) & 3)
        code, rate, padding = (key >> 4) & 15, (key >> 2) & 3, (key >> 1) & 1
        if version == 1 or layer == 4 or code in (0, 15) or rate == 3:
            continue
        hz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        bits = 1000 * _KBPS[1 if version == 3 else 2, layer][code - 1]
        per_slot = 4 if layer == 1 else 1
        samples = _samples(key)
        lengths[key] = (samples // 8 // per_slot * bits // hz + padding) * per_slot
    return lengths


def _samples(key: int) -> int:
    """Samples of a frame by the second and third byte of its header."""
    layer = 4 - ((key >> 9) & 3)
    return 384 if layer == 1 else 576 if layer == 3 and (key >> 11) & 3 != 3 else 1152


@dataclass
class _Run:
    """Frames that follow each other without a gap."""

    key: int
    """second and third byte of the first"""
    end: int
    lacks: int = 0
    """bytes of the last frame that are behind the end of the file"""
    starts: array = field(default_factory=lambda: array("q"))


class _Count(NamedTuple):
    """What the first frame says where it is none of audio."""

    frames: int
    bytes: int
    unheard: int
    """samples that the encoder added at both ends"""


def begins(file: Bytes, pos: int) -> bool:
    """Whether frames that follow each other begin at `pos`."""
    return _confirmed(file, pos, file.size, at_once=True)


def scan(file: Bytes, start: int, end: int, quick: bool) -> Layout | None:
    """The recordings from `start` on; None where there are no frames."""
    if quick and (count := _count_at(file, start)) is not None and count.bytes:
        first = _length_at(file, start)
        if end - start in (count.bytes, count.bytes + first) and begins(file, start):
            return Layout((Segment(start, end),))
    runs = _runs(file, start, end)
    if not runs:
        return None
    pieces: list[list[_Run]] = []  # of each recording, its runs
    counts: list[_Count | None] = []
    for run in [part for whole in runs for part in _divided(file, whole)]:
        count = _count_at(file, run.starts[0])
        if count is None and pieces and not _complete(pieces[-1], counts[-1]):
            pieces[-1].append(run)
        else:
            pieces.append([run])
            counts.append(count)
    segments, notes = [], []
    for piece, count in zip(pieces, counts):
        lost = sum(b.starts[0] - skip_tags(file, a.end, end) for a, b in pairwise(piece))
        whole = not lost and not piece[-1].lacks and (count is None or _complete(piece, count))
        promised = None
        if count is not None and not whole:
            promised = max(0, count.frames * _samples(piece[0].key) - count.unheard) or None
        segments.append(
            Segment(piece[0].starts[0], piece[-1].end, whole, not whole, count is None, promised)
        )
        if promised is None and (lacks := piece[-1].lacks):
            notes.append(f"perhaps cut short: its last frame lacks {lacks} byte{'s' * (lacks > 1)}")
        if lost:
            place = f"{piece[0].end / (end - start):.0%}"
            notes.append(
                f"damaged: {lost} bytes in it are no frames, the first at {place} of the file"
            )
    return Layout(tuple(segments), tuple(notes))


def _complete(piece: list[_Run], count: _Count | None) -> bool:
    """Whether all frames that are announced are there; the announcing one may be counted or not."""
    there = sum(len(run.starts) for run in piece)
    return count is not None and there - 2 <= count.frames <= there


def _divided(file: Bytes, run: _Run) -> list[_Run]:
    """A run with the files that were glued together apart: each begins with a count, or follows
    as many frames as that announced."""
    cuts = {0}
    for name in (b"Xing", b"Info", b"VBRI"):
        pos = run.starts[0]
        while (pos := file.find(name, pos, run.end)) >= 0:
            number = bisect_left(run.starts, pos) - 1
            if _count_at(file, run.starts[number]) is not None:
                cuts.add(number)
            pos += 4
    for number in [*cuts]:
        count = _count_at(file, run.starts[number])
        following = number + 1 + count.frames if count is not None else 0
        later = min((c for c in cuts if c > number), default=len(run.starts))
        if count is not None and count.frames > 0 and following + 1 < later:
            cuts.add(following)
    edges = [*sorted(cuts), len(run.starts)]
    parts = []
    for a, b in pairwise(edges):
        last = b == len(run.starts)
        end = run.end if last else run.starts[b]
        parts.append(_Run(_key_at(file, run.starts[a]), end, run.lacks * last, run.starts[a:b]))
    return parts


def _runs(file: Bytes, pos: int, end: int) -> list[_Run]:
    """All frames from `pos` on."""
    lengths, runs = _lengths(), []
    while (pos := _first_frame(file, pos, end)) is not None:
        run = _Run(_key_at(file, pos), pos)
        data, base, same, add = b"", pos, run.key & _SAME, run.starts.append
        while pos + 4 <= end:
            i = pos - base
            if i + 4 > len(data):
                data, base, i = file.at(pos, 1 << 20), pos, 0
            key = data[i + 1] << 8 | data[i + 2]
            if data[i] != 0xFF or key & _SAME != same or not lengths[key]:
                break
            add(pos)
            pos += lengths[key]
        run.end, run.lacks = min(pos, end), max(0, pos - end)
        runs.append(run)
        pos = run.end
    return runs


def _first_frame(file: Bytes, pos: int, end: int) -> int | None:
    """The next place where frames begin that follow each other."""
    while pos < end:
        data = file.at(pos, min(1 << 16, end - pos))
        at = -1
        while (at := data.find(b"\xff", at + 1)) >= 0:
            if _confirmed(file, pos + at, end, at_once=False):
                return pos + at
        pos += len(data)
    return None


def _confirmed(file: Bytes, pos: int, end: int, at_once: bool) -> bool:
    """Whether `_CONFIRMED` frames follow each other from `pos` on, or some up to the very end."""
    key, number = _key_at(file, pos), 0
    while pos < end and number < _CONFIRMED:
        length = _length_at(file, pos)
        if not length or (_key_at(file, pos) ^ key) & _SAME:
            return False
        pos, number = pos + length, number + 1
    return number == _CONFIRMED or (number > 0 and (pos == end or (number > 1 and not at_once)))


def _key_at(file: Bytes, pos: int) -> int:
    head = file.at(pos, 3)
    return int.from_bytes(head[1:], "big") if len(head) == 3 and head[0] == 0xFF else 0


def _length_at(file: Bytes, pos: int) -> int:
    return _lengths()[_key_at(file, pos)]


def _count_at(file: Bytes, pos: int) -> _Count | None:
    """The count in the frame at `pos`, if that has one."""
    head = file.at(pos, 200)
    if len(head) < 60 or head[0] != 0xFF or not _lengths()[head[1] << 8 | head[2]]:
        return None
    mono, first_version = head[3] >> 6 == 3, (head[1] >> 3) & 3 == 3
    at = 4 + ((17 if mono else 32) if first_version else (9 if mono else 17))
    if head[at : at + 4] in (b"Xing", b"Info"):
        flags, at, values = head[at + 7], at + 8, [0, 0]
        for bit in (0, 1):  # frames, bytes
            if flags >> bit & 1:
                values[bit], at = int.from_bytes(head[at : at + 4], "big"), at + 4
        at += 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        encoder, gaps = head[at : at + 4], int.from_bytes(head[at + 21 : at + 24], "big")
        unheard = (gaps >> 12) + (gaps & 4095) if encoder in (b"LAME", b"Lavc", b"Lavf") else 0
        return _Count(*values, unheard) if values[0] else None
    if head[36:40] == b"VBRI":
        return _Count(int.from_bytes(head[50:54], "big"), int.from_bytes(head[46:50], "big"), 0)
    return None
