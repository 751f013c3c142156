"""What an open audio file is to the rest of the package, and why one may be unusable."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import numpy as np

from rvqlm.errors import UserError

BLOCK_SAMPLES = 1 << 16
"""Samples (per channel) of the blocks that go from here to the codec."""

MISSING_SECONDS = 0.025
"""How much shorter than its header or manifest a file may be: those of compressed files are
inexact."""


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
    """of the whole file, as its header says; None where only decoding would tell"""
    can_seek = False
    """exactly, and without decoding all that comes before"""
    position = 0
    """the sample that comes next"""
    stamp: tuple | None = None

    def read(self, num: int) -> np.ndarray:
        """The next `num` samples, (num, C) float32; fewer at the end of the file, then none.

        Raises `BadAudio` for damaged data, and at the end of a file that is shorter than it says.
        """
        block = self._read(num)
        self.position += len(block)
        if len(block) < num and self.num_samples is not None:
            missing = self.num_samples - self.position
            if missing > MISSING_SECONDS * self.sampling_rate:
                raise BadAudio(
                    self.path, f"truncated: {self.position} of {self.num_samples} samples are there"
                )
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
    code = getattr(error, "code", None)  # some of its errors have a number and no words
    return text.removeprefix("Error :").strip() or f"libsndfile's error {code}"
