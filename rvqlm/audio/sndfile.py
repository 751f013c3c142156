"""Decoding by libsndfile: WAV, FLAC, Ogg, MP3 and others.

Two habits of libsndfile 1.2 that would give wrong samples are avoided here:

* soundfile seeks after each read, and a seek into the last page of an Ogg file lands elsewhere:
  readers go straight on, and reach a later sample of an Ogg file by decoding up to it;
* of an MP3 without a length in its header it guesses one, and reading stops there, be it in the
  middle of the file: such a file is fed to it through a pipe, where it decodes to the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading

import numpy as np
import soundfile

from rvqlm.audio.reader import BadAudio, Reader, first_line
from rvqlm.containers.layout import Segment


class _Straight(soundfile.SoundFile):
    """A sound file that is not moved about after each read."""

    def seekable(self) -> bool:
        return False


class _Window(io.RawIOBase):
    """The bytes of a segment as a file of their own."""

    def __init__(self, path: str, segment: Segment):
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this
        self._start, self._size = segment.start, segment.end - segment.start
        self._patches, self._pos = segment.patches, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._pos = offset + (0, self._pos, self._size)[whence]
        return self._pos

    def tell(self) -> int:
        return self._pos

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._pos)
        data = bytearray(self._file.read(max(0, min(len(buffer), self._size - self._pos))))
        for place, right in self._patches:
            for i, value in enumerate(right, place - self._pos):
                if 0 <= i < len(data):
                    data[i] = value
        buffer[: len(data)] = data
        self._pos += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class SndfileReader(Reader):
    """Through libsndfile: a file, or a segment of it."""

    def __init__(self, path: str, segment: Segment | None = None):
        self.path, self.notes = path, []
        self._window: _Window | None = None
        self._pipe: int | None = None
        self._feeder: threading.Thread | None = None
        try:
            self._file = _Straight(self._source(segment), closefd=False)
        except (OSError, RuntimeError, ValueError, TypeError) as e:  # its own are RuntimeErrors
            self._free()
            reason = first_line(e)
            if "not a regular file" in reason:  # its words for an MP3 without a single frame
                reason = "no audio in it"
            raise BadAudio(path, f"unreadable: {reason}") from None
        self.sampling_rate, self.num_channels = self._file.samplerate, self._file.channels
        self.num_samples = self._file.frames if self._file.frames < 2**62 else None
        self.can_seek = self.num_samples is not None and self._file.format != "OGG"

    def _source(self, segment: Segment | None) -> bytes | int | _Window:
        """What libsndfile opens: its own file where it can, which is fastest."""
        if segment is not None and segment.lengthless:
            self._pipe, writing = os.pipe()
            self._feeder = threading.Thread(
                target=_feed, args=(self.path, segment, writing), daemon=True
            )
            self._feeder.start()
            return self._pipe
        size = os.stat(self.path).st_size
        if segment is None or (segment.start, segment.end, segment.patches) == (0, size, ()):
            return os.fsencode(self.path)
        self._window = _Window(self.path, segment)
        return self._window

    def _read(self, num: int) -> np.ndarray:
        try:
            return self._file.read(num, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as e:
            raise BadAudio(
                self.path, f"damaged at sample {self.position}: {first_line(e)}"
            ) from None

    def seek(self, sample: int) -> None:
        if not self.can_seek:
            super().seek(sample)
        elif sample != self.position:
            try:
                self.position = self._file.seek(min(sample, self.num_samples))
            except (OSError, RuntimeError) as e:
                raise BadAudio(
                    self.path, f"damaged before sample {sample}: {first_line(e)}"
                ) from None

    def close(self) -> None:
        self._file.close()
        self._free()

    def _free(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)
            self._feeder.join()
        if self._window is not None:
            self._window.close()


def _feed(path: str, segment: Segment, writing: int) -> None:
    with contextlib.suppress(OSError):  # nobody reads on: that is how it ends early
        with os.fdopen(writing, "wb") as pipe, open(path, "rb") as file:
            file.seek(segment.start)
            left = segment.end - segment.start
            while left and (data := file.read(min(left, 1 << 16))):
                pipe.write(data)
                left -= len(data)
