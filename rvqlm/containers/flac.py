"""FLAC: a header that tells the length, then frames that each tell where they belong."""

from __future__ import annotations

from typing import NamedTuple

from rvqlm.containers.layout import Bytes, Layout, Segment

SUFFIXES = (".flac",)
_START = b"fLaC"
MAGICS = (_START,)
_INFO = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # the head of the first block: 34 bytes follow


class Info(NamedTuple):
    """The block STREAMINFO."""

    block: int
    """samples of a frame, where all have the same"""
    longest: int
    """bytes of a frame; 0 if unknown"""
    samples: int | None


def info_of(block: bytes) -> Info:
    """STREAMINFO from its 34 bytes."""
    samples = int.from_bytes(block[13:18], "big") & ((1 << 36) - 1)
    return Info(
        int.from_bytes(block[2:4], "big"), int.from_bytes(block[7:10], "big"), samples or None
    )


def begins(file: Bytes, pos: int) -> bool:
    head = file.at(pos, 8)
    return head[:4] == _START and head[4:] in _INFO


def scan(file: Bytes, start: int, end: int, quick: bool) -> Layout:
    """The stream at `start`, and those that follow it."""
    starts = [start]
    while not quick:
        following = _next(file, starts[-1] + 42, end)
        if following is None:
            break
        starts.append(following)
    infos = [info_of(file.at(pos + 8, 34)) for pos in starts]
    segments = []
    for pos, after, info in zip(starts, [*starts[1:], end], infos):
        whole = info.samples is None or _last_sample(file, pos, after, info) == info.samples
        segments.append(Segment(pos, after, whole, promised=None if whole else info.samples))
    if quick and not segments[0].sound:  # perhaps because another one follows
        return scan(file, start, end, quick=False)
    return Layout(tuple(segments))


def _next(file: Bytes, pos: int, end: int) -> int | None:
    while (pos := file.find(_START, pos, end)) >= 0:
        if begins(file, pos):
            return pos
        pos += 1
    return None


def _last_sample(file: Bytes, start: int, end: int, info: Info) -> int | None:
    """Where the last frame before `end` ends, in samples; None if there is no frame near it."""
    near = max(start, end - 2 * (info.longest or 1 << 16) - 64)
    tail = file.at(near, end - near)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if (last := _frame_end(tail[at : at + 16], info.block)) is not None:
            return last
    return None


_SAMPLES = {1: 192, **{i: 576 << (i - 2) for i in range(2, 6)},
            **{i: 256 << (i - 8) for i in range(8, 16)}}  # fmt: skip


def _frame_end(head: bytes, block: int) -> int | None:
    """The sample at which the frame with this head ends; None if it is none."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    code, rate = head[2] >> 4, head[2] & 15
    if code == 0 or rate == 15 or head[3] & 1:
        return None
    # a number as UTF-8 would write it, in up to 7 bytes
    length = max(1, 8 - (head[4] ^ 0xFF).bit_length())
    number, pos = head[4] & (0x7F if length == 1 else (1 << 7 - length) - 1), 4 + length
    for byte in head[5:pos]:
        number = number << 6 | byte & 63
    sizes = {6: 1, 7: 2}.get(code, 0)
    samples = int.from_bytes(head[pos : pos + sizes], "big") + 1 if sizes else _SAMPLES.get(code)
    pos += sizes + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if samples is None or pos >= len(head) or _crc8(head[:pos]) != head[pos]:
        return None
    return (number if head[1] & 1 else number * block) + samples


def _crc8(data: bytes) -> int:
    """x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc
