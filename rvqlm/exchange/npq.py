"""NPQ files: the RVQ codes of one recording, little-endian throughout.

Version 1, which is what is written::

    4s   "NPQ1"
    u16  version = 1
    u16  K, number of codebooks
    f32  token rate, frames per second
    f32  kbps of the audio that was encoded, 0 where it is not known
    u32  T, number of frames
    u32  vocabulary size of each codebook, K of them
    u8   type of the codes: 0 uint8, 1 uint16, 2 uint32
    then T x K codes, frame after frame

Two headers came before it, without version and type; their codes are uint16::

    legacy          "NPQ1"; u32 K; f32 token rate; f32 kbps; u32 T; u32 vocabulary sizes
    legacy-no-kbps  "NPQ1"; u32 K; f32 token rate; u32 vocabulary sizes; u32 T

A file has the header that fits: the header and T x K codes are exactly its bytes, its fields are
plausible, and every code is below its level's vocabulary size. No file fits two: version 1 has a
value other than 0 where the upper half of a legacy K is, and where one legacy header has its kbps
the other has a vocabulary size, whose bits are no plausible number of kbps.

>>> import tempfile
>>> path = tempfile.mkdtemp() + "/a.npq"
>>> write_npq(path, np.array([[1, 2], [3, 4], [5, 6]]), token_rate=86.1328125, vocab_sizes=1024)
>>> header, codes = read_npq(path)
>>> header.layout, header.num_codebooks, header.num_frames, header.dtype.name, codes.tolist()
('v1', 2, 3, 'uint16', [[1, 2], [3, 4], [5, 6]])
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rvqlm.errors import UserError, reason_of

SUFFIX = ".npq"
MAGIC = b"NPQ1"
DTYPES = tuple(np.dtype(t) for t in ("u1", "<u2", "<u4"))
"""Types of codes, by their number in the header."""

LAYOUTS = {
    "v1": ("version:H", "K:H", "rate:f", "kbps:f", "T:I", "vocab:I", "dtype:B"),
    "legacy": ("K:I", "rate:f", "kbps:f", "T:I", "vocab:I"),
    "legacy-no-kbps": ("K:I", "rate:f", "vocab:I", "T:I"),
}
"""Fields of the headers by the headers' names, with the type that `struct` knows them by; there are
K vocabulary sizes."""

MAX_CODEBOOKS, MAX_VOCAB = 1024, 1 << 24
"""Beyond these a header is taken for damaged."""


@dataclass(frozen=True)
class NpqHeader:
    """What the header of a file says."""

    layout: str
    """a name of `LAYOUTS`"""
    num_codebooks: int
    num_frames: int
    token_rate: float
    """frames per second"""
    orig_kbps: float | None
    """of the audio that was encoded; None where the header has no such field"""
    vocab_sizes: tuple[int, ...]
    """(K,)"""
    dtype: np.dtype
    offset: int
    """where the codes begin, in bytes"""

    def to_dict(self) -> dict:
        """What there is to say of it, as JSON-ready values."""
        return {
            "layout": self.layout,
            "num_codebooks": self.num_codebooks,
            "num_frames": self.num_frames,
            "seconds": self.seconds,
            "token_rate": self.token_rate,
            "orig_kbps": self.orig_kbps,
            "vocab_sizes": list(self.vocab_sizes),
            "dtype": self.dtype.name,
            "payload_offset": self.offset,
            "payload_bytes": self.num_frames * self.num_codebooks * self.dtype.itemsize,
        }

    @property
    def seconds(self) -> float:
        return self.num_frames / self.token_rate

    def __str__(self) -> str:
        kbps = f", from {self.orig_kbps:g} kbps" if self.orig_kbps else ""
        return (
            f"{self.layout}  K={self.num_codebooks}  fps={self.token_rate:.3f}  "
            f"seq_len={self.num_frames} ({self.seconds:.2f} s)  vocab={self.vocabularies}  "
            f"dtype={self.dtype.name}  payload at {self.offset}{kbps}"
        )

    @property
    def vocabularies(self) -> str:
        """The vocabulary sizes, shortly."""
        sizes = self.vocab_sizes
        return f"{sizes[0]} x {len(sizes)}" if len(set(sizes)) == 1 else " ".join(map(str, sizes))


def read_npq(path: str | os.PathLike) -> tuple[NpqHeader, np.ndarray]:
    """Header and codes (T, K) of a file; the codes in the type they are stored in, read-only.

    No more memory is taken than the file has bytes. Raises `UserError` for what is no regular file,
    no NPQ file, or damaged.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise OSError(0, "not a regular file")
        with open(path, "rb") as file:
            data = file.read(len(MAGIC))
            if data == MAGIC:  # of any other file only the beginning is read
                file.seek(0)
                data = file.read()
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise UserError(f"{path}: {reason_of(e)}") from None
    return parse_npq(data, path)


def parse_npq(data: bytes, path: str | os.PathLike) -> tuple[NpqHeader, np.ndarray]:
    """Header and codes (T, K), a view, of the bytes of a file; `path` is for messages."""
    if data[:4] != MAGIC:
        raise UserError(
            f"{path}: not an NPQ file: it begins with {data[:4]!r}; read are those that begin with "
            f"{MAGIC.decode()}"
        )
    misfits = {}
    for layout in LAYOUTS:
        try:
            header = _header(data, layout)
            return header, _codes(data, header)
        except _Misfit as e:
            misfits[layout] = e
    reasons = "; ".join(f"{layout}: {e}" for layout, e in misfits.items())
    raise UserError(
        f"{path}: damaged, cut short or of a layout that is not read: none of the known headers "
        f"fits its {len(data):,} bytes ({reasons})"
    )


class _Misfit(Exception):
    """Why a file does not have a header."""


def _header(data: bytes, layout: str) -> NpqHeader:
    """The header of `data` read in one layout; `_Misfit` unless its sizes add up."""
    found: dict = {"version": 1, "kbps": None, "dtype": 1}
    at = len(MAGIC)
    for field in LAYOUTS[layout]:
        name, form = field.split(":")
        form = f"<{found['K']}{form}" if name == "vocab" else f"<{form}"
        if at + struct.calcsize(form) > len(data):
            raise _Misfit(f"the header is cut short at {name}")
        values = struct.unpack_from(form, data, at)
        found[name] = values if name == "vocab" else values[0]
        at += struct.calcsize(form)
        if name == "version" and found["version"] != 1:
            raise _Misfit(f"version {found['version']}")
        if name == "K" and not 1 <= found["K"] <= MAX_CODEBOOKS:
            raise _Misfit(f"{found['K']} codebooks")
    K, T, rate, kbps, sizes = (found[name] for name in ("K", "T", "rate", "kbps", "vocab"))
    if found["dtype"] >= len(DTYPES):
        raise _Misfit(f"type of codes {found['dtype']}, known are 0 to {len(DTYPES) - 1}")
    dtype = DTYPES[found["dtype"]]
    size = at + T * K * dtype.itemsize
    if size != len(data):
        raise _Misfit(
            f"{T} x {K} codes of {dtype.name} after {at} bytes of header make {size:,} bytes"
        )
    if not (math.isfinite(rate) and 0.1 <= rate <= 48_000):
        raise _Misfit(f"a token rate of {rate:g}")
    if kbps and not (math.isfinite(kbps) and 1e-3 <= kbps <= 1e6):
        raise _Misfit(f"{kbps:g} kbps")
    if min(sizes) < 1 or max(sizes) > min(MAX_VOCAB, 1 << (8 * dtype.itemsize)):
        raise _Misfit(f"vocabularies of {min(sizes)} to {max(sizes)} in {dtype.name}")
    return NpqHeader(layout, K, T, rate, kbps, sizes, dtype, at)


def _codes(data: bytes, header: NpqHeader) -> np.ndarray:
    """(T, K) view of a file's codes; `_Misfit` unless they lie in their vocabularies."""
    T, K = header.num_frames, header.num_codebooks
    codes = np.frombuffer(data, header.dtype, T * K, header.offset).reshape(T, K)
    highest = codes.max(axis=0, initial=0).astype(np.int64)
    over = np.flatnonzero(highest >= np.array(header.vocab_sizes, np.int64))
    if over.size:
        level = int(over[0])
        raise _Misfit(
            f"code {highest[level]} in level {level}, whose vocabulary is "
            f"{header.vocab_sizes[level]}"
        )
    return codes


def write_npq(
    path: str | os.PathLike,
    codes: np.ndarray,
    token_rate: float,
    vocab_sizes: int | Sequence[int],
    orig_kbps: float = 0.0,
    dtype: np.dtype | str | None = None,
) -> None:
    """Write codes (T, K) as a new file of NPQ version 1.

    Args:
        path: where to; its folder must exist.
        codes: integers, T may be 0.
        token_rate: frames per second, kept as float32.
        vocab_sizes: of every level, or one for all.
        orig_kbps: bit rate of the audio that was encoded; 0 where it is not known.
        dtype: uint8, uint16 or uint32; None takes the narrowest that holds the vocabularies.

    Raises ValueError for codes outside their vocabulary and sizes that the header cannot hold.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or not 1 <= codes.shape[1] <= 0xFFFF:
        raise ValueError(f"expected a (T, K) integer array, got {codes.dtype} {codes.shape}")
    T, K = codes.shape
    sizes = (vocab_sizes,) * K if isinstance(vocab_sizes, int) else tuple(map(int, vocab_sizes))
    if len(sizes) != K or min(sizes) < 1 or max(sizes) > 0xFFFFFFFF or T > 0xFFFFFFFF:
        raise ValueError(f"vocabulary sizes {sizes} of {K} levels, {T} frames")
    if dtype is None:
        kind = next(t for t in DTYPES if max(sizes) <= 1 << (8 * t.itemsize))
    else:
        kind = np.dtype(dtype).newbyteorder("<")
    if kind not in DTYPES or max(sizes) > 1 << (8 * kind.itemsize):
        raise ValueError(f"{kind} is no type of NPQ, or too narrow for {max(sizes)} codes")
    if T and (int(codes.min()) < 0 or (codes.max(axis=0) >= np.array(sizes, np.int64)).any()):
        raise ValueError(f"codes {codes.min()}..{codes.max()} outside the vocabularies {sizes}")
    header = struct.pack(f"<HHffI{K}IB", 1, K, token_rate, orig_kbps, T, *sizes, DTYPES.index(kind))
    with open(path, "wb") as file:
        file.write(MAGIC + header)
        file.write(np.ascontiguousarray(codes, kind).reshape(-1).view(np.uint8).data)
