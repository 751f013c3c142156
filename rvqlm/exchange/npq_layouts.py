"""The headers that .npq files have been seen or may be met with, and which of them a file has.

NPQ holds the RVQ codes of one recording. Version 1 is little-endian throughout::

    4s   "NPQ1"
    u16  version = 1
    u16  K, number of codebooks
    f32  token rate, frames per second
    f32  kbps of the audio that was encoded
    u32  T, number of frames
    u32  vocabulary size of each codebook, K of them
    u8   type of the codes: 0 uint8, 1 uint16, 2 uint32
    then T x K codes, frame after frame

Older writers left fields out or gave T 16 bits, and some stored the codes level after level. A
layout is called after what it lacks or has otherwise, in this order, ``v1`` alone being the header
above::

    no-version  without the version
    no-kbps     without the kbps
    u16-length  T is u16
    u16-vocab   vocabulary sizes are u16
    one-vocab   one u32 vocabulary size for all codebooks
    no-vocab    without vocabulary sizes
    no-dtype    without the type: codes are uint16

joined by ``+`` (``no-version+no-kbps``), then ``:tk`` for codes frame after frame, (T, K), or
``:kt`` for level after level, (K, T).

A file fits a layout when its size is exactly that of the header and T * K codes, every field is
plausible and every code is below its level's vocabulary size; a file without frames must have the
header of version 1, so that a header cut short is not taken for an older one. A file that fits
version 1 with (T, K) is that: the format's definition says so. All others must fit exactly one
layout; of two that fit (K and T tell nothing of the order, if all levels have one vocabulary) none
is chosen.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from dataclasses import dataclass, replace

import numpy as np

from rvqlm.errors import UserError

MAGIC = b"NPQ1"
DTYPES = tuple(np.dtype(t) for t in ("u1", "<u2", "<u4"))
"""Types of codes, by their number in the header."""

MAX_CODEBOOKS, MAX_VOCAB = 1024, 1 << 24
"""Beyond these a header is taken for another one."""

_CODES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Layout:
    """Which fields a header has, in the order of version 1."""

    version: bool = True
    kbps: bool = True
    length: str = "u32"
    vocab: str = "u32"
    """u32 or u16 for each codebook, "one" u32 for all, or "none" """
    dtype: bool = True

    @property
    def name(self) -> str:
        marks = [
            "" if self.version else "no-version",
            "" if self.kbps else "no-kbps",
            "" if self.length == "u32" else "u16-length",
            {"u32": "", "u16": "u16-vocab", "one": "one-vocab", "none": "no-vocab"}[self.vocab],
            "" if self.dtype else "no-dtype",
        ]
        return "+".join(filter(None, marks)) or "v1"

    def vocab_format(self, codebooks: int) -> str:
        return {"u32": f"{codebooks}I", "u16": f"{codebooks}H", "one": "I", "none": ""}[self.vocab]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(*fields)
        for fields in itertools.product(
            (True, False), (True, False), ("u32", "u16"), ("u32", "u16", "one", "none"),
            (True, False),
        )
    )
}  # fmt: skip
"""Every layout by name, ``v1`` first."""


@dataclass(frozen=True)
class NpqHeader:
    """What the header of a file says."""

    layout: str
    """a name of `LAYOUTS`"""
    order: str
    """"tk": codes lie frame after frame; "kt": level after level"""
    num_codebooks: int
    num_frames: int
    token_rate: float
    """frames per second"""
    orig_kbps: float | None
    """of the audio that was encoded; None where the header has no such field"""
    vocab_sizes: tuple[int, ...] | None
    """(K,); None where the header has none"""
    dtype: np.dtype
    offset: int
    """where the codes begin, in bytes"""

    def to_dict(self) -> dict:
        """What there is to say of it, as JSON-ready values."""
        return {
            "layout": f"{self.layout}:{self.order}",
            "num_codebooks": self.num_codebooks,
            "num_frames": self.num_frames,
            "seconds": self.seconds,
            "token_rate": self.token_rate,
            "orig_kbps": self.orig_kbps,
            "vocab_sizes": list(self.vocab_sizes) if self.vocab_sizes else None,
            "dtype": self.dtype.name,
            "payload_offset": self.offset,
            "payload_bytes": self.payload_bytes,
        }

    @property
    def seconds(self) -> float:
        return self.num_frames / self.token_rate if self.token_rate > 0 else math.nan

    @property
    def payload_bytes(self) -> int:
        return self.num_frames * self.num_codebooks * self.dtype.itemsize


class _Misfit(Exception):
    """Why a file does not have a layout."""


def parse_layout(text: str) -> tuple[Layout, tuple[str, ...]]:
    """Header layout and orders that a user's ``--layout`` allows: ``v1``, ``no-kbps:kt``.

    The fields may come in any order. Raises `UserError` for what is no layout.
    """
    name, colon, order = text.strip().partition(":")
    wanted = frozenset(name.split("+"))
    found = next((lay for n, lay in LAYOUTS.items() if frozenset(n.split("+")) == wanted), None)
    if found is None or (colon and order not in ("tk", "kt")):
        raise UserError(
            f"--layout {text}: not a layout; give v1 or some of no-version, no-kbps, u16-length, "
            "u16-vocab, one-vocab, no-vocab, no-dtype joined by +, then :tk or :kt "
            "(rvqlm npq info --help explains them)"
        )
    return found, (order,) if order else ("tk", "kt")


def detect(path: str | os.PathLike, data: bytes, layout: str | None = None) -> NpqHeader:
    """The one header that the file whose bytes are `data` has.

    Args:
        path: for messages.
        data: all of the file.
        layout: a user's choice, see `parse_layout`. The values of the header's fields are then
            taken as they are; size and codes must fit all the same.

    Raises `UserError` when no layout fits, and when several do.
    """
    if data[:4] != MAGIC:
        raise UserError(f"{path}: not an NPQ file: it does not begin with {MAGIC.decode()}")
    candidates, allowed = [*LAYOUTS.values()], ("tk", "kt")
    if layout is not None:
        chosen, allowed = parse_layout(layout)
        candidates = [chosen]
    fits: list[NpqHeader] = []
    reasons: dict[str, str] = {}
    for candidate in candidates:
        try:
            header = _parse(data, candidate, strict=layout is None)
            orders = _orders(data, header, allowed)
        except _Misfit as e:
            reasons[candidate.name] = str(e)
            continue
        for order in orders:
            fit = replace(header, order=order)
            # one vocabulary of one codebook: two names for the same reading
            if all(replace(fit, layout=other.layout) != other for other in fits):
                fits.append(fit)
        if candidate.name == "v1" and layout is None:
            break  # its definition, not a guess; codes beyond the vocabulary leave only kt
    if (
        len(fits) > 1
        and fits[0].layout == "v1"
        and fits[0].order == "tk"
        and layout in (None, "v1")
    ):
        return fits[0]
    if not fits:
        if layout is not None:
            raise UserError(f"{path}: --layout {layout} does not fit: {reasons[chosen.name]}")
        raise UserError(
            f"{path}: damaged or cut short: no known layout fits its {len(data):,} bytes "
            f"(version 1: {reasons['v1']})"
        )
    if len(fits) > 1:
        names = [f"{f.layout}:{f.order}" for f in fits]
        shapes = [f"(K={f.num_codebooks}, T={f.num_frames}, {f.dtype.name})" for f in fits]
        raise UserError(
            f"{path}: {len(fits)} layouts fit, "
            f"{' and '.join(map(' '.join, zip(names[:4], shapes)))}, and nothing in the file says "
            f"which it is; give --layout {' or '.join(names[:4])}"
        )
    return fits[0]


def _parse(data: bytes, layout: Layout, strict: bool) -> NpqHeader:
    """Header of `data` read in one layout; `_Misfit` unless its sizes add up."""
    at = 4

    def take(format: str) -> tuple:
        nonlocal at
        size = struct.calcsize("<" + format)
        if at + size > len(data):
            raise _Misfit(f"the header needs {at + size} bytes, the file has {len(data)}")
        values = struct.unpack_from("<" + format, data, at)
        at += size
        return values

    if layout.version and (version := take("H")[0]) != 1:
        raise _Misfit(f"version {version}")
    (codebooks,) = take("H")
    (rate,) = take("f")
    kbps = take("f")[0] if layout.kbps else None
    (frames,) = take("I" if layout.length == "u32" else "H")
    if not 1 <= codebooks <= MAX_CODEBOOKS:
        raise _Misfit(f"{codebooks} codebooks")
    vocab = take(layout.vocab_format(codebooks)) if layout.vocab != "none" else None
    if layout.vocab == "one":
        vocab = vocab * codebooks
    number = take("B")[0] if layout.dtype else 1
    if number >= len(DTYPES):
        raise _Misfit(f"type of codes {number}, known are 0 to {len(DTYPES) - 1}")
    dtype = DTYPES[number]
    if at + frames * codebooks * dtype.itemsize != len(data):
        raise _Misfit(
            f"{frames} x {codebooks} codes of {dtype.name} after {at} bytes of header make "
            f"{at + frames * codebooks * dtype.itemsize:,} bytes"
        )
    if vocab is not None and min(vocab) < 1:
        raise _Misfit("a vocabulary of size 0")
    if strict and not frames and layout.name != "v1":
        raise _Misfit("no frames")  # a header cut short looks like that
    if strict:
        _require_plausible(rate, kbps, vocab, dtype)
    return NpqHeader(layout.name, "tk", codebooks, frames, rate, kbps, vocab, dtype, at)


def _require_plausible(rate, kbps, vocab, dtype) -> None:
    if not (math.isfinite(rate) and 0.1 <= rate <= 48_000):
        raise _Misfit(f"a token rate of {rate:g}")
    if kbps is not None and not (math.isfinite(kbps) and 0 <= kbps <= 1e6):
        raise _Misfit(f"{kbps:g} kbps")
    if vocab is not None and max(vocab) > MAX_VOCAB:
        raise _Misfit(f"a vocabulary of size {max(vocab)}")
    if vocab is not None and max(vocab) > 1 << (8 * dtype.itemsize):
        raise _Misfit(f"a vocabulary of size {max(vocab)} in {dtype.name}")


def _orders(data: bytes, header: NpqHeader, allowed: tuple[str, ...]) -> list[str]:
    """Orders in which every code is below its level's vocabulary size; `_Misfit` if none is."""
    K, T = header.num_codebooks, header.num_frames
    if T < 2 or K < 2:  # the same bytes
        allowed = allowed[:1]
    fits, problem = [], ""
    for order in allowed:
        if header.vocab_sizes is None or T == 0:
            fits.append(order)
            continue
        highest = _highest(data, header, order)
        over = np.flatnonzero(highest >= np.array(header.vocab_sizes, np.int64))
        if not over.size:
            fits.append(order)
        else:
            level = int(over[0])
            problem = problem or (
                f"code {int(highest[level])} in level {level}, whose vocabulary is "
                f"{header.vocab_sizes[level]}"
            )
    if not fits:
        raise _Misfit(problem)
    return fits


def _highest(data: bytes, header: NpqHeader, order: str) -> np.ndarray:
    """(K,) int64: largest code of each level."""
    K, T = header.num_codebooks, header.num_frames
    highest = np.zeros(K, np.int64)
    codes = as_codes(data, header, order)  # (T, K)
    step = max(1, _CODES_AT_ONCE // K)
    for first in range(0, T, step):
        np.maximum(highest, codes[first : first + step].max(axis=0), out=highest)
    return highest


def as_codes(data: bytes, header: NpqHeader, order: str) -> np.ndarray:
    """(T, K) view of a file's bytes."""
    K, T = header.num_codebooks, header.num_frames
    flat = np.frombuffer(data, header.dtype, T * K, header.offset)
    return flat.reshape(T, K) if order == "tk" else flat.reshape(K, T).T


def pack_header(header: NpqHeader) -> bytes:
    """The bytes of a header in its layout; the inverse of reading it."""
    layout, K = LAYOUTS[header.layout], header.num_codebooks
    out = MAGIC + (struct.pack("<H", 1) if layout.version else b"")
    out += struct.pack("<Hf", K, header.token_rate)
    if layout.kbps:
        out += struct.pack("<f", header.orig_kbps or 0.0)
    out += struct.pack("<I" if layout.length == "u32" else "<H", header.num_frames)
    if layout.vocab != "none":
        sizes = header.vocab_sizes[:1] if layout.vocab == "one" else header.vocab_sizes
        out += struct.pack("<" + layout.vocab_format(K), *sizes)
    return out + (struct.pack("B", DTYPES.index(header.dtype)) if layout.dtype else b"")
