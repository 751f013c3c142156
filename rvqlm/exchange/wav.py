"""Tokens to wav files, piece by piece: memory follows the chunk, not the recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rvqlm.cli import bar
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_stream
from rvqlm.errors import UserError
from rvqlm.exchange.items import Skipped, TokenItem, TokenSource
from rvqlm.exchange.names import path_for_id
from rvqlm.files import replacing

Subtype = Literal["pcm16", "pcm24", "float"]
_SUBTYPES = {"pcm16": ("PCM_16", 2), "pcm24": ("PCM_24", 3), "float": ("FLOAT", 4)}
_WAV_LIMIT = (1 << 32) - (1 << 20)  # sizes in a wav header are 32 bits


@dataclass
class Decoded:
    """What `decode_files` did."""

    made: int = 0
    kept: int = 0
    """files that were there already"""
    seconds: float = 0.0
    """of audio made"""
    failed: list[Skipped] = field(default_factory=list)


def decode_files(
    source: TokenSource,
    codec: Codec,
    out_dir: Path,
    *,
    ids: Sequence[str] = (),
    num: int = 0,
    num_codebooks: int | None = None,
    subtype: Subtype = "pcm16",
    chunk_seconds: float = 5.0,
    overwrite: bool = False,
) -> Decoded:
    """Decode the items of a source into ``ID.wav`` below `out_dir`.

    Args:
        source: of `open_tokens`.
        codec: that the tokens were made with.
        out_dir: folders in an id become folders there.
        ids: only these; `UserError` for one that is not there.
        num: only the first so many; 0: all.
        num_codebooks, subtype, chunk_seconds: see `decode_to_wav`.
        overwrite: decode again what is there.
    """
    done, mine = Decoded(), set()
    total = min(filter(None, (num, len(ids), source.count)), default=None)
    for item in bar(_chosen(source.items, ids, num), "decode", total):
        if isinstance(item, Skipped):
            done.failed.append(item)
            continue
        path = path_for_id(out_dir, item.id, ".wav")
        if str(path).casefold() in mine:
            reason = "would replace the file of another item of the input; ids must differ"
            done.failed.append(Skipped(item.id, str(path), reason))
            continue
        mine.add(str(path).casefold())
        if not item.in_range(codec.info.codebook_size):
            reason = f"codes that codec {codec.info.name} does not have: damaged"
            done.failed.append(Skipped(item.id, str(path), reason))
            continue
        if path.exists() and not overwrite:
            done.kept += 1
            continue
        done.seconds += decode_to_wav(codec, item, path, subtype, num_codebooks, chunk_seconds)
        done.made += 1
    return done


def _chosen(items: Iterable, ids: Sequence[str], num: int) -> Iterator:
    """Those of `ids`, or the first `num`; `UserError` for ids that are not there."""
    missing = set(ids)
    chosen = (item for item in items if not ids or item.id in missing)
    for count, item in enumerate(chosen, 1):
        missing.discard(item.id)
        yield item
        if count == num or (ids and not missing):
            return
    if missing:
        raise UserError(f"--ids {' '.join(sorted(missing))}: not in the input")


def decode_to_wav(
    codec: Codec,
    item: TokenItem,
    path: Path,
    subtype: Subtype = "pcm16",
    num_codebooks: int | None = None,
    chunk_seconds: float = 5.0,
) -> float:
    """Decode one item into a wav file; returns its seconds of audio.

    Args:
        codec: that the tokens were made with; `UserError` if it cannot be.
        item: its `num_samples` ends the audio, its scales set its loudness.
        path: where to; folders are made, an existing file is replaced.
        subtype: 16 or 24 bits, clipped at full scale, or float as the codec gives it.
        num_codebooks: decode only the coarsest levels.
        chunk_seconds: see `decode_stream`.

    Raises `UserError` for codes that the codec does not take, and where the disk is full.
    """
    item.require_made_by(codec.info)
    info, scales = codec.info, item.custom.get("scales")
    codes = item.codes if num_codebooks is None else item.codes[:, :num_codebooks]
    # torch does little with unsigned types; a copy: what a shard gives is read-only
    kind = np.int16 if codes.dtype.itemsize <= 2 and info.codebook_size <= 1 << 15 else np.int64
    codes = torch.from_numpy(np.array(codes, dtype=kind))
    scales = None if scales is None else torch.tensor(scales, dtype=torch.float32)
    pieces = decode_stream(codec, codes, chunk_seconds, scales)
    most = item.num_samples(info)
    try:
        written = write_wav(path, pieces, info.sampling_rate, info.channels, most, subtype)
    except ValueError as e:  # check_codes, and codecs whose levels are no refinements
        raise UserError(f"{item.id}: {e}") from None
    return written / info.sampling_rate


def write_wav(
    path: Path,
    pieces: Iterable[Tensor],
    sampling_rate: int,
    channels: int,
    num_samples: int,
    subtype: Subtype = "pcm16",
) -> int:
    """Write consecutive (C, n) float pieces, `num_samples` at most; returns samples written.

    The file appears under its name when it is complete. Above 4 GiB it is RF64, which is what wav
    becomes there.
    """
    written = 0
    with growing_wav(path, sampling_rate, channels, num_samples, subtype) as write:
        for piece in pieces:
            if (written := write(piece)) == num_samples:
                break
    return written


@contextmanager
def growing_wav(
    path: Path,
    sampling_rate: int,
    channels: int,
    num_samples: int,
    subtype: Subtype = "pcm16",
    partial: bool = False,
) -> Iterator[Callable[[Tensor], int]]:
    """What takes the next (C, n) float piece of a wav, and returns how many samples there are.

    Args:
        num_samples: at most; further ones are left out.
        partial: let it grow under its own name, and be left there as far as it came; else it
            appears under its name when it is complete.
    """
    import soundfile

    kind, size = _SUBTYPES[subtype]
    form = "RF64" if num_samples * channels * size > _WAV_LIMIT else "WAV"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0

    def write(piece: Tensor) -> int:
        nonlocal written
        piece = piece[:, : num_samples - written]
        if subtype != "float":
            piece = piece.clamp(-1, 1)
        with _disk(path):
            file.write(piece.T.contiguous().numpy())
            if partial:
                file.flush()
        written += piece.shape[1]
        return written

    with nullcontext(path) if partial else replacing(path) as place:
        with _disk(path):
            file = soundfile.SoundFile(place, "w", sampling_rate, channels, kind, format=form)
        try:
            yield write
        finally:
            with _disk(path):
                file.close()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    import soundfile

    try:
        yield
    except (AssertionError, soundfile.LibsndfileError) as e:  # a short write has no other sign
        raise UserError(f"{path}: could not be written; is the disk full? {e}".rstrip()) from None
