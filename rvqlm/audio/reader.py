"""What an open audio file is to the rest of the package, and why one may be unusable."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np

from rvqlm.errors import UserError

BLOCK_SAMPLES = 1 << 16
"""Samples (per channel) of the blocks that go from here to the codec."""

MISSING_SECONDS = 0.025
"""How much shorter or longer than its header or manifest a file may be without a word: those of
compressed files are inexact."""

LOWEST_RATE, HIGHEST_RATE, MOST_CHANNELS = 1000, 768_000, 64
"""What is taken for audio. A file of 1 Hz is none, and an hour of it at a codec's rate would fill
any memory."""


class BadAudio(UserError):
    """Why one recording cannot be used; the message names the file as well."""

    def __init__(self, path: str | os.PathLike, reason: str):
        path = printable(path)
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):
        return BadAudio, (self.path, self.reason)  # survives the way between processes


class Reader(ABC):
    """An open audio file, a context manager."""

    path: str
    sampling_rate: int
    num_channels: int
    num_samples: int | None
    """of the whole file, as it will be read; None where only decoding would tell"""
    promised: int | None = None
    """samples that the header of a damaged file speaks of"""
    notes: list[str]
    """what of the file is missing, damaged or left out, as far as that is known by now"""
    can_seek = False
    """exactly, and without decoding all that comes before"""
    position = 0
    """the sample that comes next"""
    stamp: tuple | None = None

    def read(self, num: int) -> np.ndarray:
        """The next `num` samples, (num, C) float32; fewer at the end of the file, then none.

        Raises `BadAudio` where nothing of a file can be decoded; where a part of it can, that is
        all there is, and `notes` says so.
        """
        block = self._read(num)
        self.position += len(block)
        return block

    def seek(self, sample: int) -> None:
        """Make `sample` the next, or stop at the end of the file; forward only, by decoding."""
        while self.position < sample:
            if not len(self.read(min(BLOCK_SAMPLES, sample - self.position))):
                return

    @abstractmethod
    def _read(self, num: int) -> np.ndarray: ...

    @abstractmethod
    def close(self) -> None:
        """Free everything; safe at any moment and more than once."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *args) -> None:
        self.close()


def require_audio(path: str | os.PathLike, rate: float, channels: int) -> None:
    """`BadAudio` for a rate or a number of channels that no recording has."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        limits = f"{LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise BadAudio(path, f"its header says {rate:g} Hz; audio is taken from {limits}")
    if not 1 <= channels <= MOST_CHANNELS:
        raise BadAudio(path, f"{channels} channels; at most {MOST_CHANNELS} are taken")


def printable(path: str | os.PathLike) -> str:
    """A file name for messages and manifests; bytes that are no UTF-8 become ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def first_line(error: Exception) -> str:
    """The reason in an error, without the path."""
    # libsndfile repeats the path: "Error opening 'x.wav': Format not recognised."
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if text.startswith("Error opening") and "': " in text:
        text = text.split("': ", 1)[1]
    elif text.startswith("Error opening <"):  # a window, which has no name
        text = text.partition(">: ")[2]
    code = getattr(error, "code", None)  # some of its errors have a number and no words
    return text.removeprefix("Error :").strip() or f"libsndfile's error {code}"
