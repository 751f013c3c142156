"""From pieces of audio to codes: one by one as they are read, or some together.

One by one, audio streams through the codec and only its codes are held (an hour of DAC: 6 MB).
Together, short items are collected first and their chunks of equal size go through the codec in
one call, which is what keeps a GPU busy.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rvqlm.audio.load import AudioStream
from rvqlm.audio.reader import BadAudio
from rvqlm.audio.source import Item
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import Encoded, encode_many, encode_stream
from rvqlm.cores import FasterThreads
from rvqlm.errors import UserError
from rvqlm.tokenizing.reading import Piece

HELD_SECONDS = 1200.0
"""A group is complete when it holds so much audio."""

LONG_SECONDS = 600.0
"""Longer items are not held but encoded on the way."""


@dataclass
class Done:
    """What became of one item."""

    item: Item
    codes: np.ndarray | None = None
    """(T, K) of any integer type"""
    scales: list[float] | None = None
    stream: AudioStream | None = None
    reason: str | None = None
    """why it was skipped"""
    seconds: float = 0.0
    """of audio"""
    encode_seconds: float = 0.0
    """of wall time in the codec"""
    wall_seconds: float = 0.0
    """of wall time in all"""
    group: tuple[int, int] | None = None
    """(first, how many) items that were encoded together; None for one by one"""


class Encoder:
    """Encodes pieces with one codec.

    Args:
        codec: on the device to work on.
        chunk_seconds: see `rvqlm.codecs.chunking.encode_stream`.
        batch_size: items that are encoded together.
        threads: is told what the codec takes.
    """

    def __init__(
        self,
        codec: Codec,
        chunk_seconds: float,
        batch_size: int = 1,
        threads: FasterThreads | None = None,
    ):
        self.codec, self.chunk_seconds, self.batch_size = codec, chunk_seconds, batch_size
        self.threads = threads
        # int64 would be four times what is stored
        self._narrow = torch.int16 if codec.info.codebook_size <= 32767 else torch.int64

    def group(self, pieces: Iterator[Piece], size: int | None = None) -> list[Done]:
        """The next items, up to `size` (None: the batch size) and in their order.

        Which items are a group depends on where it begins and on them only. Raises `UserError` for
        audio that is too long for the memory.
        """
        group: list[Done] = []
        waiting: list[tuple[Done, Tensor]] = []
        limit = size or self.batch_size
        for piece in itertools.islice(pieces, limit):
            done, audio = self._receive(piece, streaming=self.batch_size == 1 and size is None)
            group.append(done)
            if audio is not None:
                waiting.append((done, audio))
            if size is None and sum(d.seconds for d, _ in waiting) > HELD_SECONDS:
                break
        if waiting:
            self._encode_together(waiting)
        return group

    def _receive(self, piece: Piece, streaming: bool) -> tuple[Done, Tensor | None]:
        """Encode a piece on the way, or give its audio (C, S) back to be encoded with others."""
        done, blocks = Done(piece.item), piece.blocks()
        rate, held, samples = self.codec.info.sampling_rate, [], 0
        try:
            if not streaming:
                for block in blocks:
                    held.append(block)
                    samples += block.shape[1]
                    if samples > LONG_SECONDS * rate:
                        break
                else:
                    done.stream, done.seconds = piece.stream, samples / rate
                    return done, torch.cat(held, 1)
            self._encode_on_the_way(done, piece, itertools.chain(held, blocks))
        except BadAudio as e:
            return Done(piece.item, reason=e.reason), None
        return done, None

    def _encode_on_the_way(self, done: Done, piece: Piece, blocks: Iterator[Tensor]) -> None:
        began, waited = time.perf_counter(), piece.waited
        with self._enough_memory(done.item):
            parts, last = [], began - waited
            for part in encode_stream(self.codec, blocks, self.chunk_seconds):
                parts.append(part._replace(codes=part.codes.to(self._narrow)))
                now = time.perf_counter() - piece.waited
                self._took(now - last, len(part.codes))
                last = now
        done.encode_seconds = time.perf_counter() - began - (piece.waited - waited)
        done.stream = piece.stream
        done.seconds = piece.stream.num_samples / self.codec.info.sampling_rate
        self._keep(done, parts)

    def _encode_together(self, waiting: list[tuple[Done, Tensor]]) -> None:
        began = time.perf_counter()
        seconds = sum(done.seconds for done, _ in waiting)
        with self._enough_memory(waiting[0][0].item, seconds):
            made = encode_many(self.codec, [audio for _, audio in waiting], self.chunk_seconds)
        spent = time.perf_counter() - began
        self._took(spent, sum(len(encoded.codes) for encoded in made))
        for (done, _), encoded in zip(waiting, made):
            done.encode_seconds = spent * done.seconds / seconds
            self._keep(done, [encoded])

    def _took(self, seconds: float, frames: int) -> None:
        if self.threads is not None and frames:
            self.threads.took(seconds, frames)

    def _keep(self, done: Done, parts: list[Encoded]) -> None:
        done.codes = torch.cat([part.codes for part in parts]).numpy()
        scales = [s for part in parts if part.scales is not None for s in part.scales.tolist()]
        done.scales = scales or None
        frames = self.codec.info.num_frames(done.stream.num_samples)
        if len(done.codes) != frames:
            raise RuntimeError(
                f"{self.codec.info.name} gave {len(done.codes)} frames for {done.item.path}, "
                f"not {frames}"
            )

    @contextlib.contextmanager
    def _enough_memory(self, item: Item, seconds: float | None = None) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as e:  # torch has a class of its own for GPUs only
            known = isinstance(e, (MemoryError, torch.OutOfMemoryError))
            if not known and "allocate memory" not in str(e):
                raise
            what = "it" if seconds is None else f"{seconds:.0f} s of audio from it on"
            remedy = "use fewer --jobs, or a smaller --chunk-seconds or --batch-size"
            if not self.codec.bounded_memory:
                remedy += ", or split the file (this codec takes it whole)"
            raise UserError(
                f"{item.path}: not enough memory to encode {what} with {self.codec.info.name}; "
                f"{remedy}"
            ) from None
