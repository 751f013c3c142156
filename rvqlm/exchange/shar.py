"""Tokens as lhotse Shar: gzipped cuts and tar files of arrays, to be read front to back.

Written by lhotse's own writers, as plain .npy members: integers stay what they are (lhotse's lilcom
compression is for floats). A window of a recording is written as the frames that it covers. What
lhotse reads with ``CutSet.from_shar(in_dir=...)`` has tokens in ``cut.load_features()``.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from lhotse.cut import MonoCut
from lhotse.serialization import deserialize_item
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers import ArrayTarWriter, JsonlShardWriter
from lhotse.utils import fastcopy

from rvqlm.cli import counted
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import manifest_lines, read_manifest
from rvqlm.data.store import Key, code_dtype
from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.items import MOST_BYTES, Skipped, TokenItem
from rvqlm.exchange.npy import parse_npy


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
            try:
                arrays.write(item.id, np.ascontiguousarray(item.codes), cut.features)
                cuts.write(cut)
            except UnicodeEncodeError:
                raise UserError(
                    f"cut {item.id!r} has names or texts that are no UTF-8, which lhotse Shar does "
                    "not write; export with --format npy"
                ) from None
            count += 1
    return count


def shar_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The cuts and the arrays of a Shar folder; two empty lists where it is none."""
    cuts = sorted(p for p in folder.glob("cuts.*") if ".jsonl" in p.suffixes)
    return cuts, sorted(p for p in folder.glob("features.*") if ".tar" in p.suffixes)


def read_shar(folder: Path, split: str | None = None) -> Iterator[TokenItem | Skipped]:
    """The items of a Shar folder, one at a time, or why one has no tokens.

    Raises `UserError` naming the folder for files that are damaged or cut short.
    """
    cuts, arrays = shar_files(folder)
    if not cuts or len(cuts) != len(arrays):
        raise UserError(
            f"{folder}: {counted(len(cuts), 'file')} cuts.*.jsonl.gz and {len(arrays)} "
            "features.*.tar; a Shar folder of tokens has as many of one as of the other"
        )
    for listed, tar in zip(cuts, arrays):
        expected = sum(1 for _ in manifest_lines(listed))
        members = _members(tar)
        for number, fields in enumerate(read_manifest(listed), 1):
            try:
                name, data, about = next(members)
            except StopIteration:
                raise UserError(
                    f"{tar}: {number - 1} arrays, {listed.name} lists {expected} cuts; the file "
                    "is cut short: copy it again"
                ) from None
            except Exception as e:  # of tarfile and json
                raise UserError(f"{tar}, item {number}: damaged: {reason_of(e)}") from None
            id = str(fields.get("id"))
            if name != id:
                raise UserError(f"{tar}, item {number}: damaged: {name!r} where {id!r} is listed")
            try:
                yield _item(fields, data, about, split)
            except Exception as e:  # lhotse asserts, and looks up what is not there
                yield Skipped(id, str(tar), f"cut {id!r} has no tokens: {reason_of(e)}")


def _members(path: Path) -> Iterator[tuple[str, bytes, dict]]:
    """Names, contents and descriptions of the arrays in a tar file, as lhotse pairs them."""
    packed = path.suffix != ".tar"
    most = MOST_BYTES if packed else min(MOST_BYTES, path.stat().st_size)
    with tarfile.open(path, mode="r|*") as tar:
        waiting: tuple[str, bytes] | None = None
        for member in tar:
            tar.members = []  # it would remember them all
            if member.size > most:
                raise ValueError(f"{member.name!r} claims {member.size:,} bytes")
            name, suffix = os.path.splitext(member.name)
            data = tar.extractfile(member).read() if member.isfile() else b""
            if waiting is None:
                waiting = name, data
                continue
            about = {} if suffix == ".nometa" else json.loads(data)
            if waiting[0] != name or not isinstance(about, dict):
                raise ValueError(f"{waiting[0]!r} is followed by {member.name!r}")
            yield name, waiting[1], about
            waiting = None
        if waiting is not None:
            raise ValueError(f"no description of {waiting[0]!r}")


def _item(fields: dict, data: bytes, about: dict, split: str | None) -> TokenItem:
    cut = deserialize_item(fields)
    if not isinstance(cut, MonoCut) or "num_features" not in about:
        raise ValueError(f"a {type(cut).__name__} without features")
    return TokenItem(
        cut.id,
        parse_npy(data),
        about.get("recording_id"),
        cut.channel,
        [s.to_dict() for s in cut.supervisions],
        dict(cut.custom or {}),
        split,
    )
