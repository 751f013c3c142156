"""Encoding and decoding of recordings of any length in chunks that change nothing.

A codec whose encoder looks a finite number of frames to each side gives the same codes for a chunk
as for the whole file, provided the chunk starts on a frame, carries that context on both sides and
the context's codes are dropped. Memory then depends on the chunk, not on the file. A codec without
a finite context gets the file whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rvqlm.codecs.base import Codec


class Encoded(NamedTuple):
    """Codes of some consecutive frames of a recording."""

    codes: Tensor
    """(t, K) int64 on the host"""
    scales: Tensor | None = None
    """(n,) float32 on the host: loudness of the segments that begin in these frames, for codecs
    that store one per segment (EnCodec 48 kHz); None for all others"""


def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], chunk_seconds: float = 5.0
) -> Iterator[Encoded]:
    """Encode one recording that arrives in pieces, in memory that does not grow with it.

    Args:
        codec: where the audio is sent to, chunk by chunk.
        blocks: consecutive pieces (C, n) float32 at the codec's rate, of any lengths.
        chunk_seconds: new audio per call of the codec, about; see `encode_long`.

    Yields consecutive frames, ceil(S / hop) in all: the codes of `encode_long` on the whole, up to
    float rounding. A codec without a finite context gets the recording whole.
    """
    hop, context = codec.info.hop, codec.context_frames
    if context is None:
        whole = torch.cat(list(blocks), 1)
        yield Encoded(codec.encode(whole[None].to(codec.device))[0][0].cpu())
        return
    step = _wanted_frames(codec, chunk_seconds)
    first, left = 0, 0  # the next frame to give, and the frame that `held` begins with
    held = torch.empty(codec.info.channels, 0)

    def part(last: int, right: int) -> Encoded:
        audio = held[None, :, : (right - left) * hop].to(codec.device)
        return Encoded(codec.encode(audio)[0][0, first - left : last - left].cpu())

    for block in blocks:
        held = torch.cat((held, block), 1)
        # half a chunk more than is encoded: what remains at the end is never tiny
        while left * hop + held.shape[1] > (first + step + max(context, step // 2)) * hop:
            yield part(first + step, first + step + context)
            first += step
            keep = max(0, first - context)
            held, left = held[:, (keep - left) * hop :], keep
    if held.shape[1]:
        frames = left + codec.num_frames(held.shape[1])
        yield part(frames, frames)


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


def decode_stream(
    codec: Codec, codes: Tensor, chunk_seconds: float = 5.0, scales: Tensor | None = None
) -> Iterator[Tensor]:
    """Decode one recording piece by piece: codes (T, K) of any integer type -> (C, n) on the host.

    The pieces follow each other and are T * hop samples in all. Chunked where
    `codec.decode_context_frames` is finite, whole otherwise; parameters as in `encode_long`;
    `scales` are those that encoding gave.
    """
    hop, T = codec.info.hop, len(codes)
    for first, last, left, right in _chunks(codec, T, chunk_seconds, codec.decode_context_frames):
        part = codec.decode(codes[None, left:right].to(codec.device, torch.int64))[0]
        yield part[:, (first - left) * hop : (last - left) * hop].cpu()


def decode_long(
    codec: Codec, codes: Tensor, chunk_seconds: float = 5.0, scales: Tensor | None = None
) -> Tensor:
    """Decode one recording: codes (T, K) of any integer type -> audio (C, T * hop) on the host;
    see `decode_stream`."""
    audio = torch.empty(codec.info.channels, len(codes) * codec.info.hop)
    done = 0
    for part in decode_stream(codec, codes, chunk_seconds, scales):
        audio[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    return audio


def _chunks(
    codec: Codec, T: int, chunk_seconds: float, context: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """Frames [first, last) to keep and [left, right) to compute, covering [0, T) once."""
    wanted = _wanted_frames(codec, chunk_seconds)
    if T == 0:
        return
    # equal chunks: 6 s are not 5 s and 1 s, the context would cost more than the rest
    count = 1 if context is None else max(1, round(T / wanted))
    for i in range(count):
        first, last = i * T // count, (i + 1) * T // count
        yield first, last, max(0, first - (context or 0)), min(T, last + (context or 0))


def _wanted_frames(codec: Codec, chunk_seconds: float) -> int:
    if chunk_seconds <= 0:
        raise ValueError(f"chunk_seconds must be positive, got {chunk_seconds}")
    return max(1, int(chunk_seconds * codec.info.frame_rate))
