"""Ogg: pages, each with a number, a checksum and the samples up to its end; and streams that follow
each other in one file (a chain), as internet radio and some recorders write them.

libsndfile reads the first of a chain, ffmpeg up to the first that has other channels or another
rate.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rvqlm.containers import flac
from rvqlm.containers.layout import Bytes, Layout, Segment, skip_tags

SUFFIXES = (".ogg", ".oga", ".opus")
_PAGE = b"OggS"
MAGICS = (_PAGE,)
_LONGEST = 27 + 255 + 255 * 255
_FIRST, _LAST = 2, 4  # flags of a page


class _Page(NamedTuple):
    start: int
    end: int
    flags: int
    serial: int
    number: int
    head: bytes  # of its content
    intact: bool


def begins(file: Bytes, pos: int) -> bool:
    page = _page(file, pos, file.size, check=True)
    return page is not None and page.intact and bool(page.flags & _FIRST)


def scan(file: Bytes, start: int, end: int, quick: bool) -> Layout:
    """The streams from `start` on."""
    if quick and _is_one(file, start, end):
        return Layout((_segment(file, start, end, True),))
    links: list[list[_Page]] = []
    broken: set[int] = set()
    notes, lost, expected = [], 0, start
    for page in _pages(file, start, end):
        if page.start > expected and (gap := page.start - skip_tags(file, expected, end)):
            lost += gap
            broken.add(max(0, len(links) - 1))
        expected = page.end
        if page.flags & _FIRST:
            if links and links[-1][-1].flags & _FIRST:  # several side by side
                return Layout((Segment(start, end, False, True),))
            links.append([page, page])
            continue
        first, before = links[-1]
        if page.serial != first.serial:
            return Layout((Segment(start, end, False, True),), ("has pages of no stream",))
        if page.number != before.number + 1 or not page.intact:
            broken.add(len(links) - 1)
        links[-1][1] = page
    if lost:
        notes.append(f"{lost} bytes between its pages are damaged or no audio")
    elif broken:
        notes.append("pages of it are damaged or missing")
    if (tail := end - expected) or not links[-1][1].flags & _LAST:
        why = "its last page is not complete" if tail else "it has no last page"
        notes.append(f"perhaps cut short: {why}")
    starts = [first.start for first, _ in links]
    ends = [last.end for _, last in links]
    segments = [_segment(file, a, b, i not in broken) for i, (a, b) in enumerate(zip(starts, ends))]
    return Layout(tuple(segments), tuple(notes))


def _segment(file: Bytes, start: int, end: int, sound: bool) -> Segment:
    """FLAC in Ogg is left to ffmpeg: libsndfile opens few of these files."""
    head = _page(file, start, end, check=False).head
    if head[:5] == b"\x7fFLAC":
        return Segment(start, end, False, True, promised=flac.info_of(head[17:51]).samples)
    opus = head[:8] == b"OpusHead"
    sound = sound and (opus or head[:7] == b"\x01vorbis")
    return Segment(start, end, sound, not sound, rate=_opus_rate(head) if opus else None)


def _opus_rate(head: bytes) -> int:
    """What libsndfile decodes an Opus stream at: as little as the audio had before, or more."""
    before = int.from_bytes(head[12:16], "little") or 48000
    return next((rate for rate in (8000, 12000, 16000, 24000) if before <= rate), 48000)


def _is_one(file: Bytes, start: int, end: int) -> bool:
    """Whether the last page of the file is the last of the stream that begins it."""
    first, tail = _page(file, start, end, check=True), max(start, end - _LONGEST)
    data = file.at(tail, end - tail)
    at = data.rfind(_PAGE)
    while at >= 0:
        last = _page(file, tail + at, end, check=True)
        if last is not None and last.intact:
            return (last.end, last.serial) == (end, first.serial) and bool(last.flags & _LAST)
        at = data.rfind(_PAGE, 0, at)
    return False


def _pages(file: Bytes, pos: int, end: int) -> Iterator[_Page]:
    """The pages that are complete, those behind damage and tags included."""
    while pos < end:
        page = _page(file, pos, end, check=True)
        if page is not None and not page.intact:  # it may have been cut short by the next
            inner = file.find(_PAGE, pos + 4, page.end)
            page = page if inner < 0 else None
        if page is None:
            behind = skip_tags(file, pos, end)
            pos = file.find(_PAGE, behind if behind > pos else pos + 1, end)
            if pos < 0:
                return
            continue
        yield page
        pos = page.end


def _page(file: Bytes, pos: int, end: int, check: bool) -> _Page | None:
    head = file.at(pos, 27)
    if len(head) < 27 or head[:5] != _PAGE + b"\0":
        return None
    _, _, flags, _, serial, number, crc, segments = struct.unpack("<4sBBqIIIB", head)
    table = file.at(pos + 27, segments)
    size = 27 + segments + sum(table)
    if len(table) < segments or pos + size > end:
        return None
    data = file.at(pos, size) if check else file.at(pos, min(size, 27 + segments + 64))
    intact = not check or _crc(data[:22] + bytes(4) + data[26:]) == crc
    content = data[27 + segments : 27 + segments + 64]
    return _Page(pos, pos + size, flags, serial, number, content, intact)


_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def _crc(data: bytes) -> int:
    """Ogg's checksum: that of zlib with all bits in the other order, from 0 instead of -1."""
    crc = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")
