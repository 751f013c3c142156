"""Audio as the bytes that a client asked for, piece by piece, all through libsndfile."""

from __future__ import annotations

import io
import os

import numpy as np
import soundfile
import soxr

from rvqlm.serving.errors import ApiError

PCM_RATE = 24_000
"""Of raw PCM, which says no rate: 16 bits, little-endian, one channel, as OpenAI's."""

_KINDS = {  # name: container, encoding, type
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "pcm": ("RAW", "PCM_16", "audio/pcm"),
}
_RATES = {  # those that an encoder takes
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
WHOLE = ("wav", "flac")
"""Formats whose header says how long it is: sent whole, unless streaming is asked for."""


def formats() -> tuple[str, ...]:
    """Those that the libsndfile here writes."""
    there = soundfile.available_formats()
    return tuple(
        name
        for name, (container, encoding, _) in _KINDS.items()
        if container in there and encoding in soundfile.available_subtypes(container)
    )


def require(name: str) -> None:
    """:raises ApiError: a format that is not made here."""
    if name not in formats():
        made = ", ".join(formats())
        raise ApiError(
            400, f"response_format {name!r} is not made here; ask for {made}", "response_format"
        )


def media_type(name: str) -> str:
    return _KINDS[name][2]


class Encoder:
    """Blocks (n, C) float32 in, bytes out; what it gave so far, and `end`, are one file.

    :param native: raw PCM at the model's rate and with its channels.
    :param whole: keep all until the end, so that a header tells the length.
    """

    def __init__(
        self, name: str, rate: int, channels: int, whole: bool = False, native: bool = False
    ):
        container, encoding, _ = _KINDS[name]
        self.rate, self.channels = rate, channels
        self._mono = name == "pcm" and not native and channels > 1
        if name == "pcm" and not native:
            self.rate, self.channels = PCM_RATE, 1
        elif name in _RATES and rate not in _RATES[name]:
            self.rate = min((r for r in _RATES[name] if r > rate), default=48_000)
        self._resample = None
        if self.rate != rate:
            self._resample = soxr.ResampleStream(rate, self.rate, self.channels)
        self._out = io.BytesIO() if whole else _Tail(name)
        self._whole = whole
        self._file = soundfile.SoundFile(
            self._out, "w", self.rate, self.channels, encoding, "LITTLE" if name == "pcm" else None,
            container,
        )  # fmt: skip

    def add(self, audio: np.ndarray, last: bool = False) -> bytes:
        if self._mono:
            audio = audio.mean(1, keepdims=True)
        if self._resample is not None:
            audio = self._resample.resample_chunk(np.ascontiguousarray(audio), last=last)
        if len(audio):
            self._file.write(np.clip(audio, -1, 1))
        return b"" if self._whole else self._out.take()

    def end(self) -> bytes:
        """What is left."""
        made = self.add(np.empty((0, self.channels), np.float32), last=True)
        self._file.close()
        return self._out.getvalue() if self._whole else made + self._out.take()


class _Tail(io.RawIOBase):
    """A file that is sent while it is written: what an encoder would go back and correct, stays.
    The header of a WAV says that nobody knows how long it will be, and the frame in front of an MP3
    that counts the others is left out."""

    def __init__(self, name: str):
        super().__init__()
        self._place, self._size, self._name, self._new = 0, 0, name, bytearray()

    def take(self) -> bytes:
        new = bytes(self._new)
        self._new.clear()
        return new

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data) -> int:
        data = bytes(data)
        if not self._size and self._name == "wav":
            head = bytearray(data)
            head[4:8] = head[40:44] = b"\xff" * 4
            self._new += head
        elif self._size or self._name != "mp3":
            self._new += data[max(0, self._size - self._place) :]
        self._place += len(data)
        self._size = max(self._size, self._place)
        return len(data)
