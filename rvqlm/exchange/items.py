"""Tokens on their way from one form to another: one recording at a time.

Readers of every form give `TokenItem`, or `Skipped` for what they cannot read; writers take them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import MonoCut

from rvqlm.codec_info import CodecInfo
from rvqlm.data.store import token_cut
from rvqlm.errors import UserError

MOST_BYTES = 1 << 31
"""Of one array that is read: five days of 75 frames a second in 8 levels of int64."""


@dataclass
class TokenItem:
    """One recording's codes and what is known of it."""

    id: str
    codes: np.ndarray
    """(T, K) integers; may be a read-only view of a shard"""
    recording_id: str | None = None
    channel: int | list[int] = 0
    supervisions: list[dict] = field(default_factory=list)
    """as lhotse keeps them, relative to the start of the codes"""
    custom: dict = field(default_factory=dict)
    """num_samples (true samples of the audio), scales, ends_recording, and anything else"""
    split: str | None = None
    """name of the split it belongs to"""
    token_rate: float | None = None
    """frames per second, where the input states it apart from the codec"""
    vocab_sizes: tuple[int, ...] | None = None
    """(K,) codes that each level may have, where the input states it"""

    def num_samples(self, info: CodecInfo) -> int:
        """True length of the audio, or all that the codes stand for where it is not recorded."""
        return int(self.custom.get("num_samples", info.num_samples(len(self.codes))))

    def cut(self, path: str | os.PathLike, key: str, info: CodecInfo) -> MonoCut:
        """The lhotse cut over these codes once they lie in a shard."""
        try:
            supervisions = [SupervisionSegment.from_dict(dict(s)) for s in self.supervisions]
        except (TypeError, ValueError, LookupError) as e:
            raise UserError(f"{self.id}: its supervisions are not lhotse's: {e}") from None
        recording = self.id if self.recording_id is None else self.recording_id
        return token_cut(
            self.id, path, key, info, recording, self.channel, supervisions, custom=self.custom
        )

    def in_range(self, codebook_size: int) -> bool:
        """Whether all codes are below the size of a codebook, and none negative."""
        codes = self.codes
        return not codes.size or (int(codes.min()) >= 0 and int(codes.max()) < codebook_size)

    def require_made_by(self, info: CodecInfo) -> None:
        """`UserError` where levels, codes or rate are not those of a codec."""
        codes, V, rate = self.codes, info.codebook_size, float(info.frame_rate)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.shape[1] != info.num_codebooks:
            raise UserError(
                f"{self.id}: a {codes.dtype} array of shape {tuple(codes.shape)}; codes of codec "
                f"{info.name} are integers (T, {info.num_codebooks})"
            )
        if not self.in_range(V) or max((0, *(self.vocab_sizes or ()))) > V:
            found = f" from {codes.min()} to {codes.max()}" if codes.size else ""
            sizes = f", vocabularies of up to {max(self.vocab_sizes)}" if self.vocab_sizes else ""
            raise UserError(
                f"{self.id}: codes{found}{sizes}, codec {info.name} has {V}: these are tokens of "
                "another codec, or damaged"
            )
        if self.token_rate is not None and not rates_fit(self.token_rate, rate, len(codes)):
            raise UserError(
                f"{self.id}: {self.token_rate:g} frames per second, codec {info.name} has "
                f"{rate:g}: these are tokens of another codec"
            )


def rates_fit(stated: float, rate: float, frames: int) -> bool:
    """Whether a rate that a file of some frames states can be `rate`: within half a percent, or one
    frame, which is how far T / seconds of a short file may lie from it."""
    if not stated > 0:
        return False
    apart = abs(frames * rate / stated - frames)
    return apart <= 1 or apart <= 0.005 * frames


@dataclass(frozen=True)
class Skipped:
    """Something that could not become an item, and why."""

    id: str
    path: str
    reason: str

    @classmethod
    def of(cls, id: str, path: str | os.PathLike, error: Exception) -> Skipped:
        """For an error whose message may begin with the path."""
        return cls(id, str(path), str(error).removeprefix(f"{path}: "))

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass
class TokenSource:
    """Tokens from somewhere."""

    kind: str
    """"token directory", "token cuts", "shar", "features", "npy", ".npy files" or
    ".npq files" """
    where: str
    """the first of the inputs, for messages"""
    items: Iterator[TokenItem | Skipped]
    info: CodecInfo | None = None
    """None where nothing says it"""
    audio: Path | None = None
    """manifest of the audio cuts, where there is one"""
    count: int | None = None
    """of items, where known beforehand"""
    remark: str = ""
    """for the user, on how the input was understood"""

    def peek(self) -> TokenItem:
        """The first item that has codes; `UserError` if none has."""
        before = []
        for item in self.items:
            before.append(item)
            if isinstance(item, TokenItem):
                self.items = itertools.chain(before, self.items)
                return item
        reason = f"; the first, {before[0]}" if before else ""
        raise UserError(f"no tokens in the input{reason}")
