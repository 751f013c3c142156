"""Tokens as lhotse Shar: gzipped cuts and tar files of arrays, to be read front to back.

Written by lhotse's own writers, as plain .npy members: integers stay what they are (lhotse's lilcom
compression is for floats). A window of a recording is written as the frames that it covers. What
lhotse reads with ``CutSet.from_shar(in_dir=...)`` has tokens in ``cut.load_features()``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from lhotse.cut import MonoCut
from lhotse.shar.readers import LazySharIterator
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers import ArrayTarWriter, JsonlShardWriter
from lhotse.utils import fastcopy

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import manifest_lines
from rvqlm.data.store import Key, code_dtype
from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.items import TokenItem

_READER_FIELDS = ("shard_origin", "shar_epoch")  # what lhotse's reader adds to custom


def write_shar(folder: Path, items: Iterable[TokenItem], info: CodecInfo, shard_size: int) -> int:
    """Write `items` as ``cuts.NNNNNN.jsonl.gz`` and ``features.NNNNNN.tar``, `shard_size` cuts a
    pair; returns their number. `UserError` for ids that no member of a tar can have."""
    if "%" in str(folder):
        raise UserError(f"{folder}: lhotse Shar cannot be written to a path with % in it")
    folder.mkdir()
    count = 0
    with (
        JsonlShardWriter(f"{folder}/cuts.%06d.jsonl.gz", shard_size) as cuts,
        ArrayTarWriter(f"{folder}/features.%06d.tar", shard_size, compression="numpy") as arrays,
    ):
        for item in items:
            member = Path(item.id + ".npy")
            if str(member.parent / member.stem) != item.id:
                raise UserError(
                    f"cut {item.id!r}: lhotse Shar finds its arrays by names of files, which this "
                    "id is not; export with --format npy"
                )
            key = Key(0, *item.codes.shape, code_dtype(info.codebook_size))
            cut = item.cut("", str(key), info)
            cut = fastcopy(cut, features=to_shar_placeholder(cut.features, cut))
            arrays.write(item.id, np.ascontiguousarray(item.codes), cut.features)
            cuts.write(cut)
            count += 1
    return count


def shar_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The cuts and the arrays of a Shar folder; two empty lists where it is none."""
    cuts = sorted(p for p in folder.glob("cuts.*") if ".jsonl" in p.suffixes)
    return cuts, sorted(p for p in folder.glob("features.*") if ".tar" in p.suffixes)


def read_shar(folder: Path, split: str | None = None) -> Iterator[TokenItem]:
    """The items of a Shar folder, one at a time.

    Raises `UserError` naming the folder and the cut for what is damaged, cut short, or no tokens.
    """
    cuts, arrays = shar_files(folder)
    if not cuts or len(cuts) != len(arrays):
        raise UserError(
            f"{folder}: {len(cuts)} files cuts.*.jsonl.gz and {len(arrays)} features.*.tar; a Shar "
            "folder of tokens has as many of one as of the other"
        )
    for pair in zip(cuts, arrays):
        expected = sum(1 for _ in manifest_lines(pair[0]))
        reader = iter(LazySharIterator({"cuts": [str(pair[0])], "features": [str(pair[1])]}))
        for number in range(expected):
            try:
                cut = next(reader)
            except StopIteration:
                raise UserError(
                    f"{pair[1]}: {number} arrays, {pair[0].name} lists {expected} cuts; the file "
                    "is cut short: copy it again"
                ) from None
            except Exception as e:  # of tarfile, json, and assertions of lhotse
                raise UserError(f"{pair[1]}, item {number + 1}: damaged: {reason_of(e)}") from None
            yield _item(cut, pair[1], split)


def _item(cut, source: Path, split: str | None) -> TokenItem:
    features = getattr(cut, "features", None)
    if not isinstance(cut, MonoCut) or not isinstance(getattr(features, "storage_key", 0), bytes):
        raise UserError(f"{source}: cut {cut.id!r} is a {type(cut).__name__} without tokens")
    try:
        # the whole member: lhotse would count its frames from rounded seconds
        codes = np.load(io.BytesIO(features.storage_key), allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{source}: the array of cut {cut.id!r} is damaged ({e})") from None
    if codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise UserError(
            f"{source}: cut {cut.id!r} has a {codes.dtype} array of shape {codes.shape}: features, "
            "not tokens"
        )
    custom = {k: v for k, v in (cut.custom or {}).items() if k not in _READER_FIELDS}
    return TokenItem(
        cut.id,
        codes,
        features.recording_id,
        cut.channel,
        [s.to_dict() for s in cut.supervisions],
        custom,
        split,
    )
