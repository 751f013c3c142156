"""Tokens to wav files, piece by piece: memory follows the chunk, not the recording."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_stream
from rvqlm.errors import UserError
from rvqlm.exchange.codec import rates_fit
from rvqlm.exchange.directory import TokenItem

Subtype = Literal["pcm16", "pcm24", "float"]
_SUBTYPES = {"pcm16": ("PCM_16", 2), "pcm24": ("PCM_24", 3), "float": ("FLOAT", 4)}
_WAV_LIMIT = (1 << 32) - (1 << 20)  # sizes in a wav header are 32 bits


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
        codec: that the tokens were made with.
        item: its `num_samples` ends the audio, its scales set its loudness.
        path: where to; folders are made, an existing file is replaced.
        subtype: 16 or 24 bits, clipped at full scale, or float as the codec gives it.
        num_codebooks: decode only the coarsest levels.
        chunk_seconds: see `decode_stream`.

    Raises `UserError` for codes that the codec does not take, and where the disk is full.
    """
    info, scales = codec.info, item.custom.get("scales")
    codes = item.codes if num_codebooks is None else item.codes[:, :num_codebooks]
    # torch does little with unsigned types; a copy: the shard is mapped read-only
    kind = np.int16 if codes.dtype.itemsize <= 2 and info.codebook_size <= 1 << 15 else np.int64
    codes = torch.from_numpy(np.array(codes, dtype=kind))
    pieces = decode_stream(
        codec,
        codes,
        chunk_seconds,
        None if scales is None else torch.tensor(scales, dtype=torch.float32),
    )
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
    import soundfile

    kind, size = _SUBTYPES[subtype]
    large = num_samples * channels * size > _WAV_LIMIT
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.wav.tmp")
    written = 0
    try:
        with soundfile.SoundFile(
            temporary, "w", sampling_rate, channels, kind, format="RF64" if large else "WAV"
        ) as file:
            for piece in pieces:
                piece = piece[:, : num_samples - written]
                if subtype != "float":
                    piece = piece.clamp(-1, 1)
                file.write(piece.T.contiguous().numpy())
                written += piece.shape[1]
                if written == num_samples:
                    break
        os.replace(temporary, path)
    except (AssertionError, soundfile.LibsndfileError) as e:  # a short write has no other sign
        raise UserError(f"{path}: could not be written; is the disk full? {e}".rstrip()) from None
    finally:
        temporary.unlink(missing_ok=True)
    return written


def require_tokens_of(info: CodecInfo, item: TokenItem) -> None:
    """`UserError` where an item's levels, codes or rate are not those of a codec."""
    codes, K, V = item.codes, info.num_codebooks, info.codebook_size
    if codes.ndim != 2 or codes.shape[1] != K:
        raise UserError(
            f"{item.id}: codes of shape {codes.shape}, codec {info.name} has {K} levels"
        )
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= V):
        raise UserError(
            f"{item.id}: codes from {codes.min()} to {codes.max()}, codec {info.name} has {V}: "
            "these are tokens of another codec, or damaged"
        )
    rate = float(info.frame_rate)
    if item.token_rate is not None and not rates_fit(item.token_rate, rate, len(codes)):
        raise UserError(
            f"{item.id}: {item.token_rate:g} frames per second, codec {info.name} has {rate:g}: "
            "these are tokens of another codec"
        )
