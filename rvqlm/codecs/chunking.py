"""Encoding and decoding of recordings of any length in chunks that change nothing.

A codec whose encoder looks a finite number of frames to each side gives the same codes for a chunk
as for the whole file, provided the chunk starts on a frame, carries that context on both sides and
the context's codes are dropped. Memory then depends on the chunk, not on the file. A codec without
a finite context gets the file whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rvqlm.codecs.base import Codec


def encode_long(codec: Codec, audio: Tensor, chunk_seconds: float = 5.0) -> Tensor:
    """Encode one recording.

    Args:
        codec: where the audio is sent to, chunk by chunk.
        audio: (C, S) float32 at the codec's rate, on any device.
        chunk_seconds: new audio per call of the codec, about: chunks are made equal, up to half
            as long again. Each call also sees `codec.context_frames` on either side, so that
            short chunks cost more.

    Returns:
        codes (T, K) int64 on the host, T = ceil(S / hop): those of the whole recording, exactly
        where the codec's arithmetic does not depend on the length of its input, and otherwise up
        to float rounding (a latent halfway between two codebook entries may fall either way).
    """
    hop, T = codec.info.hop, codec.num_frames(audio.shape[1])
    codes = torch.empty(T, codec.info.num_codebooks, dtype=torch.int64)
    for first, last, left, right in _chunks(codec, T, chunk_seconds, codec.context_frames):
        part, _ = codec.encode(audio[None, :, left * hop : right * hop].to(codec.device))
        codes[first:last] = part[0, first - left : last - left]
    return codes


def decode_long(codec: Codec, codes: Tensor, chunk_seconds: float = 5.0) -> Tensor:
    """Decode one recording: codes (T, K) of any integer type -> audio (C, T * hop) on the host.

    Chunked where `codec.decode_context_frames` is finite, whole otherwise; parameters as in
    `encode_long`.
    """
    hop, T = codec.info.hop, len(codes)
    audio = torch.empty(codec.info.channels, T * hop)
    for first, last, left, right in _chunks(codec, T, chunk_seconds, codec.decode_context_frames):
        part = codec.decode(codes[None, left:right].to(codec.device, torch.int64))[0]
        audio[:, first * hop : last * hop] = part[:, (first - left) * hop : (last - left) * hop]
    return audio


def _chunks(
    codec: Codec, T: int, chunk_seconds: float, context: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """Frames [first, last) to keep and [left, right) to compute, covering [0, T) once."""
    if chunk_seconds <= 0:
        raise ValueError(f"chunk_seconds must be positive, got {chunk_seconds}")
    if T == 0:
        return
    wanted = max(1, int(chunk_seconds * codec.info.frame_rate))
    # equal chunks: 6 s are not 5 s and 1 s, the context would cost more than the rest
    count = 1 if context is None else max(1, round(T / wanted))
    for i in range(count):
        first, last = i * T // count, (i + 1) * T // count
        yield first, last, max(0, first - (context or 0)), min(T, last + (context or 0))
