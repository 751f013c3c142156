"""Containers of chunks that each begin with a name and a size: WAV (RIFF, RIFX, RF64), W64, AIFF,
CAF; and AU, which has one size in its header.

Programs that write to a pipe leave 0 or the largest number where the size of the audio belongs, and
libsndfile reads nothing of some of these. Of what was cut short it reads what is there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rvqlm.containers.layout import Bytes, Layout, Segment, skip_tags

SUFFIXES = (".wav", ".aif", ".aiff", ".au", ".w64", ".caf")


class _Kind(NamedTuple):
    """How chunks of a container look."""

    first: int  # where they begin
    name: int  # bytes of a name
    size: str  # format of the size that follows
    counted: int  # bytes of name and size that are counted in the size
    multiple: int  # of bytes that a chunk begins at
    audio: bytes  # name of the chunk with the audio


_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_AUDIO = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_KINDS = {
    b"RIFF": _Kind(12, 4, "<I", 0, 2, b"data"),
    b"RIFX": _Kind(12, 4, ">I", 0, 2, b"data"),
    b"RF64": _Kind(12, 4, "<I", 0, 2, b"data"),
    b"BW64": _Kind(12, 4, "<I", 0, 2, b"data"),
    b"FORM": _Kind(12, 4, ">I", 0, 2, b"SSND"),
    b"caff": _Kind(8, 4, ">q", 0, 1, b"data"),
    b"riff": _Kind(40, 16, "<Q", 24, 8, _W64_AUDIO),
}
MAGICS = (*_KINDS, b".snd")
_LONGEST = 1 << 40
_ENDLESS = 0x7FFF0000
"""Sizes of 32 bits from here on are what programs write that do not know the length yet."""

_MORE = "its header tells of {} bytes of audio where {} are there"


def begins(file: Bytes, pos: int) -> bool:
    """Whether such a container begins at `pos`."""
    head = file.at(pos, 16)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return head[8:12] == b"WAVE"
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[:4] == b"caff":
        return head[4:6] == b"\0\1"
    return head == _W64 or head[:4] == b".snd"


def scan(file: Bytes, start: int, end: int, quick: bool) -> Layout | None:
    """The container at `start`, and those that follow it."""
    segments, notes, pos = [], [], start
    while pos < end and begins(file, pos):
        found = _au(file, pos, end) if file.at(pos, 4) == b".snd" else _one(file, pos, end)
        if found is None:
            return None
        segment, said = found
        segments.append(segment)
        notes += said
        pos = skip_tags(file, segment.end, end)
    return Layout(tuple(segments), tuple(notes))


def _one(file: Bytes, start: int, end: int) -> tuple[Segment, list[str]] | None:
    """The container of chunks at `start` and what there is to note of it."""
    kind, long_size, sizes = _KINDS[file.at(start, 4)], None, []
    head = kind.name + struct.calcsize(kind.size)
    pos = start + kind.first
    while True:
        if pos + head > end:
            return None
        name, size = _chunk(file, pos, kind)
        if name == kind.audio:
            break
        if name == b"ds64":
            long_size, sizes = struct.unpack("<Q", file.at(pos + head + 8, 8))[0], [pos + head + 8]
        pos = _after(pos, size, kind)
    there = end - pos - head
    said, place, pattern = size, pos + kind.name, kind.size
    if sizes and size == 0xFFFFFFFF:
        said, place, pattern = long_size, sizes[0], "<Q"

    def patched(size: int) -> Segment:
        right = struct.pack(pattern, size + kind.counted)
        return Segment(start, end, patches=((place - start, right),) if there else ())

    limit, endless = (0xFFFFFFFE, _ENDLESS) if pattern.endswith("I") else (1 << 62, _LONGEST)
    if said > there and said < endless:
        # libsndfile would drop the last samples of a CAF file
        segment = patched(there) if kind is _KINDS[b"caff"] else Segment(start, end)
        return segment, [f"cut short: {there} of {said} bytes of its audio are there"]
    if said > there or said < 0:
        return patched(min(there, limit)), []
    last = _own_end(file, _after(pos, said, kind), end, kind)
    if last is not None:
        return Segment(start, last), []
    if said == 0:
        return patched(min(there, limit)), []
    return Segment(start, end), [_MORE.format(said, there)]


def _chunk(file: Bytes, pos: int, kind: _Kind) -> tuple[bytes, int]:
    """Name and size (of what follows) of the chunk at `pos`."""
    data = file.at(pos, kind.name + struct.calcsize(kind.size))
    size = struct.unpack(kind.size, data[kind.name :])[0] - kind.counted
    return data[: kind.name], size


def _after(pos: int, size: int, kind: _Kind) -> int:
    head = kind.name + struct.calcsize(kind.size)
    return pos + head + -(-max(0, size) // kind.multiple) * kind.multiple


def _own_end(file: Bytes, pos: int, end: int, kind: _Kind) -> int | None:
    """Go through the chunks behind the audio: where they end and tags, another container or nothing
    follows; None where something else does."""
    head = kind.name + struct.calcsize(kind.size)
    while pos < end and not begins(file, pos) and skip_tags(file, pos, end) == pos:
        rest = file.at(pos, min(4096, end - pos))
        if len(rest) == end - pos and (not any(rest) or len(rest) < 4):  # what fills a block
            break
        if pos + head > end:
            return None
        name, size = _chunk(file, pos, kind)
        named = all(32 <= c < 127 for c in name[:4])
        if not named or size < 0 or _after(pos, size, kind) > end + kind.multiple:
            return None
        pos = _after(pos, size, kind)
    return min(pos, end)


def _au(file: Bytes, start: int, end: int) -> tuple[Segment, list[str]] | None:
    offset, said = struct.unpack(">2I", file.at(start + 4, 8))
    there = end - start - offset
    unknown = ((8, b"\xff\xff\xff\xff"),)
    if there < 0:
        return None
    if said == 0xFFFFFFFF or (said == 0 and there):
        return Segment(start, end, patches=unknown), []
    if said > there:
        return Segment(start, end), [f"cut short: {there} of {said} bytes of its audio are there"]
    after = start + offset + said
    behind = skip_tags(file, after, end)
    if behind == end or begins(file, behind):
        return Segment(start, after), []
    return Segment(start, end, patches=unknown), [_MORE.format(said, there)]  # as others read it
