"""Codes that other projects keep as lhotse features: cuts, or features alone, over (T, K) arrays.

A cut without features may have them as an array of its own (lhotse's `TemporalArray` or `Array`) in
a custom field: the only one there is, or ``codes`` or ``audio_features`` among several. Read are
arrays in files and HDF5 (``numpy_files, numpy_hdf5``) and lhotse's lilcom stores. lilcom is for
floats, but small integers come back as they were; what is further from an integer than its rounding
is features and not codes. Stores that are behind a URL or a command are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.items import MOST_BYTES, Skipped, TokenItem
from rvqlm.exchange.npy import read_npy
from rvqlm.files import read_jsonl

ROUNDING = 1 / 32  # of lilcom's coarsest usual setting

NAMES = ("codes", "audio_features")
"""Custom fields that the codes are in, where there are several arrays."""

_GZIP_RATIO = 1100  # HDF5 packs no better than this
_MOST_LILCOM = 1 << 28  # bytes: 31 hours of 75 frames a second in 8 levels


def is_feature(fields: dict) -> bool:
    """Whether a line of a manifest is about features that are read here."""
    if not fields.get("features") and _arrays(fields):
        return True
    held = fields.get("features") or fields
    return isinstance(held, dict) and held.get("storage_type") in _READERS


def _arrays(fields: dict) -> dict[str, dict]:
    """The (T, K) arrays in the custom fields of a cut, by their names."""
    custom = fields.get("custom")
    found = {}
    for name, value in custom.items() if isinstance(custom, dict) else ():
        array = value.get("array", value) if isinstance(value, dict) else {}
        shape = array.get("shape") if isinstance(array, dict) else None
        if isinstance(shape, list) and len(shape) == 2 and "storage_key" in array:
            found[name] = value
    return found


def _with_array(fields: dict) -> dict:
    """A cut whose codes are an array of its own, as one whose features they are."""
    arrays = {} if fields.get("features") else _arrays(fields)
    if not arrays:
        return fields
    name = next((name for name in NAMES if name in arrays), None)
    if name is None and len(arrays) > 1:
        raise ValueError(f"arrays {', '.join(arrays)}: name the one with the codes {NAMES[0]!r}")
    value = arrays[name or next(iter(arrays))]
    array, shape = value.get("array", value), value.get("array", value)["shape"]
    if value.get("temporal_dim", 0) != 0:
        raise ValueError(
            f"an array whose time is dimension {value['temporal_dim']}, codes are (T, K)"
        )
    features = {
        **{key: array[key] for key in ("storage_type", "storage_path", "storage_key")},
        "frame_shift": value.get("frame_shift") or fields["duration"] / shape[0],
        "start": value.get("start", fields["start"]),
        "recording_id": (fields.get("recording") or {}).get("id"),
    }
    kept = {k: v for k, v in fields["custom"].items() if k not in arrays}
    return fields | {"features": features, "custom": kept}


def read_features(manifest: Path, split: str | None = None) -> Iterator[TokenItem | Skipped]:
    """The codes of each line of a manifest, or why there are none.

    :param split: that these are of.
    """

    @functools.lru_cache(maxsize=4)
    def open_hdf5(path: Path):
        return _hdf5().File(path, "r")

    lines = read_jsonl(manifest, f"manifest {manifest}", "give one that exists")
    for number, fields in enumerate(lines, 1):
        id = str(fields.get("id") or fields.get("recording_id") or f"entry {number}")
        try:
            yield replace(_item(id, fields, manifest.parent, open_hdf5), split=split)
        except Exception as e:  # of h5py, lilcom, and fields that are missing or of other types
            if isinstance(e, _Missing):
                raise
            yield Skipped(id, f"{manifest}, entry {number}", reason_of(e))


class _Missing(UserError):
    """A package, without which no item can be read."""


def _item(id: str, fields: dict, folder: Path, open_hdf5: Callable) -> TokenItem:
    fields = _with_array(fields)
    held = fields.get("features") or fields
    if fields.get("type") == "MixedCut" or held.get("storage_type") not in _READERS:
        stored, kinds = held.get("storage_type"), ", ".join(_READERS)
        raise ValueError(f"a {fields.get('type')} stored as {stored}, not {kinds}")
    path = Path(held["storage_path"])
    path = path if path.exists() else folder / path
    codes = _codes(_READERS[held["storage_type"]](path, held["storage_key"], open_hdf5))
    shift = float(held["frame_shift"])
    custom = dict(fields.get("custom") or {})
    if "features" in fields:  # a cut may be a window of its features
        first = round((fields["start"] - held["start"]) / shift)
        count = round(fields["duration"] / shift)
        if first < 0 or first + count > len(codes) + 1:
            raise ValueError(f"frames {first} to {first + count} of {len(codes)}")
        codes = codes[first : first + count]
        recording = fields.get("recording") or {}
        custom.setdefault("recording_start", fields["start"])  # for notes
        end = fields["start"] + fields["duration"]
        if recording and end < float(recording["duration"]) - shift:
            custom["ends_recording"] = False
    return TokenItem(
        id,
        codes,
        held.get("recording_id"),
        fields.get("channel") or 0,
        list(fields.get("supervisions") or []),
        custom,
        token_rate=1 / shift,
    )


def _codes(array: np.ndarray) -> np.ndarray:
    """Integers as they are, floats where they stand for integers."""
    if array.ndim != 2:
        raise ValueError(f"an array of shape {array.shape}, codes are (T, K)")
    if array.dtype.kind in "iu":
        return array
    codes = np.rint(array)
    if array.dtype.kind != "f" or not np.abs(array - codes).max(initial=0) <= ROUNDING:
        raise ValueError(f"a {array.dtype} array of shape {array.shape}: features, not tokens")
    return codes.astype(np.int64)


# ------------------------------------------------------------------------------------- stores


def _numpy_file(path: Path, key: str, _) -> np.ndarray:
    array = np.load(path / key, mmap_mode="r", allow_pickle=False)
    return read_npy(path / key) if array.dtype.kind in "iu" else array


def _numpy_hdf5(path: Path, key: str, open_hdf5: Callable) -> np.ndarray:
    return _dataset(open_hdf5(path), key)[()]


def _lilcom_file(path: Path, key: str, _) -> np.ndarray:
    return _decompress((path / key).read_bytes())


def _lilcom_hdf5(path: Path, key: str, open_hdf5: Callable) -> np.ndarray:
    return _decompress(_dataset(open_hdf5(path), key)[()].tobytes())


def _lilcom_chunky(path: Path, key: str, _) -> np.ndarray:
    edges = np.cumsum([int(offset) for offset in key.split(",")]).tolist()
    size = path.stat().st_size
    if sorted(edges) != edges or edges[0] < 0 or edges[-1] > size or len(edges) > size:
        raise ValueError(f"chunks at {edges[0]} to {edges[-1]} of {size} bytes")
    chunks = []
    with open(path, "rb") as file:
        for start, end in pairwise(edges):
            file.seek(start)
            chunks.append(_decompress(file.read(end - start)))
    return np.concatenate(chunks)


def _chunked_lilcom_hdf5(path: Path, key: str, open_hdf5: Callable) -> np.ndarray:
    return np.concatenate([_decompress(d.tobytes()) for d in _dataset(open_hdf5(path), key)[()]])


_READERS = {
    "numpy_files": _numpy_file,
    "numpy_hdf5": _numpy_hdf5,
    "lilcom_files": _lilcom_file,
    "lilcom_hdf5": _lilcom_hdf5,
    "lilcom_chunky": _lilcom_chunky,
    "chunked_lilcom_hdf5": _chunked_lilcom_hdf5,
}


def _dataset(file, key: str):
    """A dataset of an HDF5 file that lies in it, and is no larger than its bytes can be."""
    h5py = _hdf5()
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise ValueError(f"{file.filename}: no array {key!r} of its own")
    data = file[key]
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise ValueError(f"{file.filename}: {key!r} is no array of its own")
    size = data.size * max(1, data.dtype.itemsize)
    if size > min(MOST_BYTES, _GZIP_RATIO * max(1, data.id.get_storage_size())):
        raise ValueError(f"{file.filename}: {key!r} claims {size:,} bytes, more than there are")
    return data


def _decompress(data: bytes) -> np.ndarray:
    try:
        import lilcom
    except ImportError:
        raise _Missing("features in lilcom: pip install lilcom reads them") from None
    count = int(np.prod(lilcom.get_shape(data), dtype=object))
    if not 0 <= 4 * count <= _MOST_LILCOM:  # any number of zeros takes 50 bytes
        raise ValueError(f"{count:,} numbers in {len(data):,} bytes of lilcom")
    return lilcom.decompress(data)


def _hdf5():
    try:
        import h5py
    except ImportError:
        raise _Missing("features in HDF5: pip install h5py reads them") from None
    return h5py
