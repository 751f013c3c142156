"""Encoding and decoding of recordings of any length in chunks that change nothing.

What a chunk is depends on the codec (`rvqlm.codecs.base.Codec.encode_blocks`): windows with
context for encoders of finite reach, pieces with carried state for an LSTM or a transformer with a
sliding window, segments where the codec itself cuts the audio. Memory then depends on the chunk,
not on the file; only a codec of which nothing is known gets the file whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rvqlm.codecs.base import Codec
from rvqlm.codecs.streaming import Encoded, windows


def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], chunk_seconds: float = 5.0
) -> Iterator[Encoded]:
    """Encode one recording that arrives in pieces, in memory that does not grow with it.

    Args:
        codec: where the audio is sent to, chunk by chunk.
        blocks: consecutive pieces (C, n) float32 at the codec's rate, of any lengths: how it is
            cut here changes nothing.
        chunk_seconds: new audio per call of the codec, about: the last chunk may be half as long
            again. Calls also see the codec's context on either side, so that short chunks cost
            more. A codec without `bounded_memory` gets the recording whole.

    Yields consecutive frames, `info.num_frames(samples)` in all, and the scales that belong to
    them: those of the whole recording, exactly where the codec's arithmetic does not depend on the
    length of its input, and otherwise up to float rounding (a latent halfway between two codebook
    entries may fall either way).
    """
    yield from codec.encode_blocks(blocks, codec.frames_in(chunk_seconds))


def encode_whole(codec: Codec, audio: Tensor, chunk_seconds: float = 5.0) -> Encoded:
    """Encode one recording (C, S) float32, on any device: all that `encode_stream` yields, in one,
    codes (T, K) with T = `info.num_frames(S)`."""
    # a chunk at a time: what lies between two stages of a network must not grow either
    size = codec.frames_in(chunk_seconds) * codec.info.hop
    blocks = (audio[:, i : i + size] for i in range(0, audio.shape[1], size))
    return _joined(codec, list(encode_stream(codec, blocks, chunk_seconds)))


def encode_many(
    codec: Codec,
    recordings: Sequence[Tensor],
    chunk_seconds: float = 5.0,
    batch_seconds: float = 120.0,
) -> list[Encoded]:
    """Encode several recordings, chunks of equal size together: what keeps a GPU busy.

    Args:
        codec: one of finite context or of segments; the recordings go one by one into others.
        recordings: (C, S) float32 each, S > 0, at the codec's rate.
        chunk_seconds: see `encode_stream`.
        batch_seconds: audio in one call of the codec at most, context included; bounds the memory.

    Returns one `Encoded` per recording, with the frames of `encode_stream`, chunk by chunk: the
    same codes up to float rounding. Last chunks are given more context than they need, so that
    their sizes meet. On a CPU batches are slower than single chunks.
    """
    if codec.info.segment is None and codec.context_frames is None:
        return [encode_whole(codec, audio, chunk_seconds) for audio in recordings]
    pieces = [
        (i, *piece)
        for i, audio in enumerate(recordings)
        for piece in _pieces(codec, audio.shape[1], chunk_seconds)
    ]
    made: dict[tuple, Encoded] = {}
    for size in sorted({size for _, _, size, _, _ in pieces}):
        alike = [piece for piece in pieces if piece[2] == size]
        count = max(1, int(batch_seconds * codec.info.sampling_rate / size))
        for some in (alike[k : k + count] for k in range(0, len(alike), count)):
            batch = torch.zeros(len(some), codec.info.channels, size)
            for row, (i, at, *_) in zip(batch, some, strict=True):
                audio = recordings[i][:, at : at + size]
                row[:, : audio.shape[1]] = audio
            codes, scales = codec.encode_pieces(batch.to(codec.device))
            for row, piece in enumerate(some):
                first, end = piece[3:]
                scale = None if scales is None else scales[row : row + 1].cpu()
                made[piece] = Encoded(codes[row, first:end].cpu(), scale)
    parts: list[list[Encoded]] = [[] for _ in recordings]
    for piece in pieces:
        parts[piece[0]].append(made[piece])
    return [_joined(codec, some) for some in parts]


def _pieces(
    codec: Codec, samples: int, chunk_seconds: float
) -> Iterator[tuple[int, int, int, int]]:
    """The segments or windows of a recording: (offset, size) in samples, and which of their frames
    are kept, (first, end)."""
    hop = codec.info.hop
    if codec.info.segment is not None:
        yield from ((at, n, 0, -(-n // hop)) for at, n in codec.segments(samples))
        return
    context, step = codec.context_frames, codec.frames_in(chunk_seconds)
    grid = max(1, step // 4)
    for first, end, left, right in windows(codec.info.num_frames(samples), context, context, step):
        left = max(0, left - -(right - left) % grid)
        yield left * hop, (right - left) * hop, first - left, end - left


def decode_stream(
    codec: Codec, codes: Tensor, chunk_seconds: float = 5.0, scales: Tensor | None = None
) -> Iterator[Tensor]:
    """Decode one recording piece by piece: codes (T, K) of any integer type -> (C, n) on the host.

    Args:
        codec: what the codes came from.
        codes: those of one recording; K may be smaller than `codec.info.num_codebooks`.
        chunk_seconds: audio per call of the codec, about; see `encode_stream`.
        scales: (n,) that encoding gave, for codecs whose `info.segment` is set; None there stands
            for `codec.default_scale`.

    The pieces follow each other and are `info.num_samples(T)` samples in all.
    """
    if scales is not None and codec.info.segment is None:
        raise ValueError(f"{codec.info.name} has no scales")
    yield from codec.decode_blocks(codes, codec.frames_in(chunk_seconds), scales)


def decode_long(
    codec: Codec, codes: Tensor, chunk_seconds: float = 5.0, scales: Tensor | None = None
) -> Tensor:
    """Decode one recording: codes (T, K) of any integer type -> audio (C, num_samples) on the host;
    see `decode_stream`."""
    audio = torch.empty(codec.info.channels, codec.info.num_samples(len(codes)))
    done = 0
    for part in decode_stream(codec, codes, chunk_seconds, scales):
        audio[:, done : done + part.shape[1]] = part
        done += part.shape[1]
    if done != audio.shape[1]:
        raise RuntimeError(f"{codec.info.name}: {done} samples decoded, not {audio.shape[1]}")
    return audio


def _joined(codec: Codec, parts: list[Encoded]) -> Encoded:
    if not parts:
        codes = torch.empty(0, codec.info.num_codebooks, dtype=torch.int64)
        return Encoded(codes, None if codec.info.segment is None else torch.empty(0))
    scales = [part.scales for part in parts if part.scales is not None]
    return Encoded(torch.cat([p.codes for p in parts]), torch.cat(scales) if scales else None)
