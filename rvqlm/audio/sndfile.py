"""Decoding by libsndfile: WAV, FLAC, Ogg, MP3 and others.

Three habits of libsndfile 1.2 that would give wrong samples are avoided here:

* soundfile seeks after each read, and a seek into the last page of an Ogg file lands elsewhere:
  readers go straight on, and reach a later sample of an Ogg file by decoding up to it;
* of an MP3 without a length in its header it guesses one, and reading stops there, be it in the
  middle of the file: such a file is fed to it through a pipe, where it decodes to the end;
* a WAV that was cut short is read as a shorter one: its header is compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading

import numpy as np
import soundfile

from rvqlm.audio.reader import BadAudio, Reader, first_line

_SOUNDS_ENDLESS = 0x7FFFF000
"""Sizes in WAV headers from here on are what programs write that do not know the length yet."""


class _Straight(soundfile.SoundFile):
    """A sound file that is not moved about after each read."""

    def seekable(self) -> bool:
        return False


class SndfileReader(Reader):
    """Through libsndfile: a path, or the reading end of a pipe, which is closed with it."""

    def __init__(self, path: str, pipe: int | None = None):
        self.path, self._pipe = path, pipe
        try:
            self._file = _Straight(os.fsencode(path) if pipe is None else pipe, closefd=False)
        except (OSError, RuntimeError, ValueError, TypeError) as e:  # its own are RuntimeErrors
            self._close_pipe()
            reason = first_line(e)
            if "not a regular file" in reason:  # its words for an MP3 without a single frame
                reason = "no audio in it"
            raise BadAudio(path, f"unreadable: {reason}") from None
        self.sampling_rate, self.num_channels = self._file.samplerate, self._file.channels
        self.num_samples = self._file.frames if self._file.frames < 2**62 else None
        self.can_seek = self.num_samples is not None and self._file.format != "OGG"
        if self._file.format == "WAV" and (said := _said_bytes(self._file.extra_info)):
            self.close()
            raise BadAudio(path, f"truncated: {said[1]} of {said[0]} bytes are there")

    def _read(self, num: int) -> np.ndarray:
        try:
            return self._file.read(num, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as e:
            raise BadAudio(
                self.path, f"damaged or truncated at sample {self.position}: {first_line(e)}"
            ) from None

    def seek(self, sample: int) -> None:
        if not self.can_seek:
            super().seek(sample)
        elif sample != self.position:
            self.position = self._file.seek(min(sample, self.num_samples))

    def close(self) -> None:
        self._file.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)


def open_sndfile(path: str) -> SndfileReader:
    if not path.lower().endswith(".mp3"):
        return SndfileReader(path)
    # only from a pipe does libsndfile say whether it knows the length
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(path, writing), daemon=True)
    feeder.start()
    try:
        reader = SndfileReader(path, reading)
    except BadAudio:
        feeder.join()
        return SndfileReader(path)  # with the better message
    if reader.num_samples is None:
        return reader
    reader.close()
    feeder.join()
    return SndfileReader(path)


def _feed(path: str, writing: int) -> None:
    with contextlib.suppress(OSError):  # nobody reads on: that is how it ends early
        with os.fdopen(writing, "wb") as pipe, open(path, "rb") as file:
            shutil.copyfileobj(file, pipe)


def _said_bytes(log: str) -> tuple[int, int] | None:
    """(said, there) where libsndfile's log of a WAV tells of less data than its header says."""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found is None:
        return None
    said, there = int(found[1]), int(found[2])
    return (said, there) if there < said < _SOUNDS_ENDLESS else None
