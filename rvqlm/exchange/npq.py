"""Reading and writing .npq files: the RVQ codes of one recording, see `npq_layouts`.

>>> import tempfile
>>> path = tempfile.mkdtemp() + "/a.npq"
>>> write_npq(path, np.array([[1, 2], [3, 4], [5, 6]]), token_rate=86.1328125, vocab_sizes=1024)
>>> header, codes = read_npq(path)
>>> header.layout, header.num_codebooks, header.num_frames, header.dtype.name, codes.tolist()
('v1', 2, 3, 'uint16', [[1, 2], [3, 4], [5, 6]])
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rvqlm.errors import UserError
from rvqlm.exchange.npq_layouts import (
    DTYPES,
    MAGIC,
    NpqHeader,
    as_codes,
    detect,
    pack_header,
)

SUFFIX = ".npq"


def read_npq(path: str | os.PathLike, layout: str | None = None) -> tuple[NpqHeader, np.ndarray]:
    """Header and codes (T, K) of a file; the codes in the type they are stored in, read-only.

    Args:
        path: a regular file.
        layout: a name as in `npq_layouts`, where the file alone does not tell; None finds out.

    No more memory is taken than the file has bytes. Raises `UserError` for whatever is not an NPQ
    file, is damaged, or could be read in two ways.
    """
    data = _read(path)
    header = detect(path, data, layout)
    return header, as_codes(data, header, header.order)


def _read(path: str | os.PathLike) -> bytes:
    """All bytes of a file that begins like NPQ; of any other only the beginning."""
    try:
        with open(path, "rb", opener=_open_regular) as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                return start
            file.seek(0)
            return file.read()
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or e}") from None


def _open_regular(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe; OSError for what is no regular file."""
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(0, "not a regular file")
    return file


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type of NPQ that holds codes below `vocab_size`."""
    return DTYPES[0] if vocab_size <= 256 else DTYPES[1] if vocab_size <= 65536 else DTYPES[2]


def write_npq(
    path: str | os.PathLike,
    codes: np.ndarray,
    token_rate: float,
    vocab_sizes: int | Sequence[int],
    orig_kbps: float = 0.0,
    dtype: np.dtype | str | None = None,
) -> None:
    """Write codes (T, K) as NPQ version 1, under a temporary name that is then renamed.

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
    kind = smallest_dtype(max(sizes)) if dtype is None else np.dtype(dtype).newbyteorder("<")
    if kind not in DTYPES or max(sizes) > 1 << (8 * kind.itemsize):
        raise ValueError(f"{kind} is no type of NPQ, or too narrow for {max(sizes)} codes")
    if T and (int(codes.min()) < 0 or (codes.max(axis=0) >= np.array(sizes, np.int64)).any()):
        raise ValueError(f"codes {codes.min()}..{codes.max()} outside the vocabularies {sizes}")
    header = NpqHeader("v1", "tk", K, T, token_rate, orig_kbps, sizes, kind, 0)
    target = Path(path)
    temporary = target.with_name(f".{os.getpid()}{SUFFIX}.tmp")  # short: names have a limit
    try:
        with open(temporary, "wb") as file:
            file.write(pack_header(header))
            file.write(np.ascontiguousarray(codes, kind).reshape(-1).view(np.uint8).data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
