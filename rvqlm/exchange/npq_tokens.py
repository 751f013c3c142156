"""NPQ files to a token directory and back.

NPQ has no ids, text or true length: ids come from the paths, and a recording is taken to be as long
as its frames. What it has and tokens do not is kept in the cuts: ``custom["orig_kbps"]``, and
``custom["vocab_sizes"]`` where levels differ in size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.exchange.codec import codec_beside, write_codec
from rvqlm.exchange.directory import new_folder
from rvqlm.exchange.items import Skipped, TokenItem, TokenSource
from rvqlm.exchange.names import find_files, path_for_id
from rvqlm.exchange.npq import SUFFIX, NpqHeader, read_npq, write_npq


def open_npq(inputs: Sequence[str | os.PathLike]) -> TokenSource:
    """NPQ files, given as folders, quoted globs and names, and the codec of a ``codec.json`` beside
    them.

    Files that cannot be read come as `Skipped`. Reading on raises `UserError` at a file of another
    codec than the first one's.
    """
    files = find_files(inputs, SUFFIX)
    info = codec_beside(files[0][1])
    return TokenSource(".npq files", str(inputs[0]), _items(files), info, count=len(files))


def _items(files: list[tuple[str, str]]) -> Iterator[TokenItem | Skipped]:
    first: tuple[str, NpqHeader] | None = None
    for id, path in files:
        try:
            header, codes = read_npq(path)
        except UserError as e:
            yield Skipped(id, path, str(e).removeprefix(f"{path}: "))
            continue
        first = first or (path, header)
        if header.vocab_sizes != first[1].vocab_sizes:
            raise UserError(
                f"{path} (vocabularies {header.vocabularies}) and {first[0]} (vocabularies "
                f"{first[1].vocabularies}) are of different codecs; import them apart"
            )
        custom = {"orig_kbps": header.orig_kbps} if header.orig_kbps else {}
        yield TokenItem(
            id, codes, custom=custom, token_rate=header.token_rate, vocab_sizes=header.vocab_sizes
        )


def export_npq(
    items: Iterable[TokenItem],
    info: CodecInfo,
    out_dir: str | os.PathLike,
    dtype: str | None = None,
    drop_scales: bool = False,
) -> tuple[int, int]:
    """Write ``ID.npq`` for every item below `out_dir`, and ``codec.json``; returns (files, frames).

    Args:
        items: of a token directory.
        info: their codec.
        out_dir: a new folder.
        dtype: uint8, uint16 or uint32; None takes the narrowest that holds the codebooks.
        drop_scales: write codes whose codec also stores scales, without them.

    Raises `UserError` for tokens with scales, of which NPQ can keep none, and for a dtype that is
    too narrow.
    """
    if dtype is not None and info.codebook_size > 1 << (8 * np.dtype(dtype).itemsize):
        raise UserError(
            f"--dtype {dtype}: codec {info.name} has {info.codebook_size} codes; choose a wider one"
        )
    count = frames = 0
    with new_folder(out_dir) as folder:
        for item in items:
            if item.custom.get("scales") is not None and not drop_scales:
                raise UserError(
                    f"cut {item.id!r}: codec {info.name} stores a loudness scale for every second, "
                    "and NPQ has no place for them; export as shar or npy (rvqlm export), or give "
                    "--drop-scales to lose them"
                )
            path = path_for_id(folder, item.id, SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npq(
                path,
                item.codes,
                float(info.frame_rate),
                item.custom.get("vocab_sizes") or info.codebook_size,
                float(item.custom.get("orig_kbps") or 0.0),
                dtype,
            )
            count, frames = count + 1, frames + len(item.codes)
        write_codec(folder / "codec.json", info, format="npq")
    return count, frames
