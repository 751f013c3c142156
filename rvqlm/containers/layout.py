"""What is found out about an audio file before it is decoded, and the tags around its audio."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Segment:
    """One recording in a file: bytes [start, end)."""

    start: int
    end: int
    sound: bool = True
    """Its structure holds, and what libsndfile takes for its length is that."""
    by_ffmpeg: bool = False
    """libsndfile would not get far in it."""
    lengthless: bool = False
    """An MP3 that does not say how long it is."""
    promised: int | None = None
    """samples that the header of a recording that is not sound speaks of"""
    rate: int | None = None
    """to decode at, where that is not fixed"""
    patches: tuple[tuple[int, bytes], ...] = ()
    """what stands in the file at some place (counted from `start`), put right"""


class Layout(NamedTuple):
    """What is in a file."""

    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()
    """what is missing or left out, a sentence each"""


class Bytes:
    """A file of which any bytes can be had; a context manager."""

    def __init__(self, path: str | os.PathLike):
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def at(self, start: int, num: int) -> bytes:
        """Bytes [start, start + num), fewer at the end of the file."""
        return os.pread(self._fd, num, start) if start >= 0 < num else b""

    def find(self, what: bytes, start: int, end: int, block: int = 1 << 20) -> int:
        """The first place in [start, end) where `what` lies, -1 if none."""
        while start < end:
            data = self.at(start, min(block, end - start))
            if (found := data.find(what)) >= 0:
                return start + found
            if len(data) < len(what):
                break
            start += len(data) - len(what) + 1
        return -1

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *args) -> None:
        self.close()


def skip_tags(file: Bytes, pos: int, end: int) -> int:
    """Where what begins at `pos` goes on behind its ID3 and APE tags and the zeros after them."""
    while pos < end:
        head = file.at(pos, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
            size = int.from_bytes(head[6:10], "big")
            size = sum(((size >> 8 * i) & 127) << 7 * i for i in range(4))  # 7 bits a byte
            after = pos + 10 + size + 10 * bool(head[5] & 16)
        elif head[:3] == b"TAG" and pos + 128 <= end:
            after = pos + 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            after = pos + 32 + int.from_bytes(head[12:16], "little")
        else:
            break
        if after > end:  # more than there is: no tag
            break
        pos = after
        while pos < end and not any(zeros := file.at(pos, min(4096, end - pos))):
            pos += len(zeros)
        pos += len(zeros) - len(zeros.lstrip(b"\0")) if pos < end else 0
    return pos


def before_tags(file: Bytes) -> int:
    """Where a file ends before the ID3, APE and Lyrics3 tags behind it."""
    end = file.size
    while end > 0:
        tail = file.at(max(0, end - 128), min(128, end))
        if len(tail) == 128 and tail[:3] == b"TAG":
            length = 128
        elif tail[-32:-24] == b"APETAGEX":
            has_header = tail[-9] & 128
            length = int.from_bytes(tail[-20:-16], "little") + 32 * bool(has_header)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            length = int(tail[-15:-9]) + 15
        else:
            break
        if not 0 < length <= end:
            break
        end -= length
    return end
