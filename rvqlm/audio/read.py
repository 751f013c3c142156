"""Opening audio files: by libsndfile where it can, else by an ffmpeg program.

A `Reader` goes through a file once, from any sample on, and gives float32 blocks; a file of any
length needs no more memory than a block. Samples do not depend on the size of the blocks.

One rule for all formats: whatever can be decoded is, and where that is not what the file promised
the reader says so in its `notes`. Where the recordings in a file lie is found first
(`rvqlm.containers`). Each is decoded by libsndfile, and by ffmpeg from where that gives up;
recordings that follow each other are one. What cannot be decoded at all is a `BadAudio`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rvqlm.audio.ffmpeg import INSTALL, FfmpegReader, find_ffmpeg
from rvqlm.audio.prepare import resample
from rvqlm.audio.reader import (
    BLOCK_SAMPLES,
    HIGHEST_RATE,
    LOWEST_RATE,
    MISSING_SECONDS,
    BadAudio,
    Reader,
    first_line,
    require_audio,
)
from rvqlm.audio.sndfile import SndfileReader
from rvqlm.containers.layout import Layout, Segment
from rvqlm.containers.scan import layout_of

SNDFILE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf",
)  # fmt: skip
FFMPEG_SUFFIXES = (
    ".m4a", ".m4b", ".aac", ".mp4", ".wma", ".webm", ".mka", ".mkv", ".ac3", ".amr",
)  # fmt: skip
AUDIO_SUFFIXES = SNDFILE_SUFFIXES + FFMPEG_SUFFIXES

_FFMPEG_MISSING_SECONDS = 0.15
"""Lengths in the containers that ffmpeg reads count what encoders add, and whole pictures."""


class Probe(NamedTuple):
    """What the header of a file says."""

    sampling_rate: int
    num_channels: int
    num_samples: int | None
    """per channel; None where only decoding would tell"""


def probe(path: str | os.PathLike) -> Probe:
    """Sampling rate, channels and length of an audio file, without decoding it.

    The length is None where a file does not tell how much will be read: of an MP3 without a count
    of its frames, of all that goes through ffmpeg (M4A, AAC, WMA, WebM, ...), and of what is
    damaged or cut short, some forms of PCM aside. Then count what `open_audio` reads.

    Raises `BadAudio` for a file that cannot be used.
    """
    with open_audio(path, quick=True) as reader:
        if reader.num_samples == 0:
            raise BadAudio(path, "zero-length audio")
        return Probe(reader.sampling_rate, reader.num_channels, reader.num_samples)


def open_audio(path: str | os.PathLike, quick: bool = False) -> Reader:
    """Open a file of any format that libsndfile or ffmpeg can read; `BadAudio` if none can.

    quick: for those who want to know the length only; see `layout_of`.
    """
    path = os.fspath(path)
    _require_file(path)
    try:
        layout = layout_of(path, quick)
    except OSError as e:
        raise BadAudio(path, first_line(e)) from None
    if layout is None:
        by_ffmpeg = path.lower().endswith(FFMPEG_SUFFIXES)
        layout = Layout((Segment(0, os.path.getsize(path), by_ffmpeg=by_ffmpeg),))
    reader = _Chain(path, layout)
    try:
        require_audio(path, reader.sampling_rate, reader.num_channels)
    except BadAudio:
        reader.close()
        raise
    return reader


class _Recording(Reader):
    """One recording of a file: by libsndfile, and by ffmpeg from where that gives up."""

    def __init__(self, path: str, segment: Segment):
        self.path, self.notes, self._segment = path, [], segment
        self._inner = self._open()
        self.sampling_rate, self.num_channels = self._inner.sampling_rate, self._inner.num_channels
        self.num_samples = self._inner.num_samples if segment.sound else None
        self.can_seek = self._inner.can_seek
        self._ended = False

    def _open(self) -> Reader:
        """By the decoder that is likely to succeed, or else by the other one."""
        ways = [self._by_sndfile, self._by_ffmpeg]
        if self._segment.by_ffmpeg and find_ffmpeg() is not None:
            ways.reverse()
        try:
            return ways[0]()
        except BadAudio:
            if ways[1] == self._by_ffmpeg and find_ffmpeg() is None:
                if self._segment.by_ffmpeg:
                    return self._by_ffmpeg()  # which says what it needs
                raise
            with contextlib.suppress(BadAudio):  # an M4A that is called .mp3, a rare codec in a WAV
                return ways[1]()
            raise

    def _by_sndfile(self) -> Reader:
        return SndfileReader(self.path, self._segment)

    def _by_ffmpeg(self, rate: int | None = None) -> Reader:
        span = (self._segment.start, self._segment.end)
        whole = span == (0, os.path.getsize(self.path))
        return FfmpegReader(self.path, None if whole else span, rate or self._segment.rate)

    def _go_on(self) -> bool:
        """Hand over to ffmpeg, at the sample that comes next; False where that is not possible."""
        if isinstance(self._inner, FfmpegReader) or find_ffmpeg() is None:
            return False
        try:
            inner = self._by_ffmpeg(self.sampling_rate)
        except BadAudio:
            return False
        if inner.num_channels != self.num_channels:
            inner.close()
            return False
        self._inner.close()
        self._inner, self.can_seek = inner, False
        inner.seek(self.position)
        return True

    def _read(self, num: int) -> np.ndarray:
        """Fewer samples do not mean the end here, none do."""
        while not self._ended:
            why = ""
            if isinstance(self._inner, SndfileReader) and self.num_samples is not None:
                num = min(num, self.num_samples - self.position)  # tags may follow
            try:
                block = self._inner.read(num)
            except BadAudio as e:
                block, why = np.empty((0, self.num_channels), np.float32), e.reason
            if len(block):
                return block
            promised, margin = self._promise()
            missing = promised is not None and promised - self.position > margin
            if (why or missing) and self._go_on():
                continue
            self._end(why)
        return np.empty((0, self.num_channels), np.float32)

    def _promise(self) -> tuple[int | None, float]:
        """Samples that the header speaks of, if it does, and how many more or fewer may be there
        without a word."""
        own = self.num_samples if self._segment.sound else self._segment.promised
        if own is not None:
            return own, MISSING_SECONDS * self.sampling_rate
        return self._inner.promised, _FFMPEG_MISSING_SECONDS * self.sampling_rate

    def _end(self, why: str) -> None:
        """There is nothing more: note what is missing."""
        self._ended = True
        if why and not self.position:
            if find_ffmpeg() is None:
                why += f"; ffmpeg may be able to read it: {INSTALL}"
            raise BadAudio(self.path, why)
        self.notes += [why] * bool(why) + self._inner.notes
        promised, margin = self._promise()
        if promised is not None and abs(promised - self.position) > margin:
            what = "could be decoded" if self.position < promised else "are in it"
            self.notes.append(f"{self.position} of {promised} samples {what}")
        flawed = self.notes or self._segment.by_ffmpeg
        if flawed and isinstance(self._inner, SndfileReader) and find_ffmpeg() is None:
            self.notes.append(f"ffmpeg may be able to read more: {INSTALL}")

    def seek(self, sample: int) -> None:
        if not self.can_seek:
            return super().seek(sample)
        try:
            self._inner.seek(sample)
            self.position = self._inner.position
        except BadAudio:
            if not self._go_on():
                raise
            super().seek(sample)

    def close(self) -> None:
        self._inner.close()


class _Chain(Reader):
    """The recordings of a file, one after another, as one: with the rate and channels of the
    first."""

    def __init__(self, path: str, layout: Layout):
        self.path, self._layout = path, layout
        self._notes = list(layout.notes)
        self._inner = first = _Recording(path, layout.segments[0])
        self._following = list(enumerate(layout.segments))[1:]
        self._blocks: Iterator[np.ndarray] | None = None  # of an inner one that is converted
        self._rest = None  # of the last of those
        self.sampling_rate, self.num_channels = first.sampling_rate, first.num_channels
        self.can_seek = first.can_seek and not self._following
        self.num_samples = first.num_samples
        if not self._following:
            self.promised = layout.segments[0].promised
        if self._following and first.num_samples is not None:
            self.num_samples = self._length()

    @property
    def notes(self) -> list[str]:
        return list(dict.fromkeys(self._notes + self._inner.notes))

    def _length(self) -> int | None:
        """Samples of all the recordings, if each tells how many it has."""
        total = 0
        for segment in self._layout.segments:
            if not segment.sound or segment.lengthless:
                return None
            with SndfileReader(self.path, segment) as reader:
                if reader.num_samples is None:
                    return None
                if self._fits(reader):
                    total += round(reader.num_samples * self.sampling_rate / reader.sampling_rate)
        return total

    def _fits(self, reader: Reader) -> bool:
        """Whether a recording can follow the first."""
        return 1 in (self.num_channels, reader.num_channels) or (
            self.num_channels == reader.num_channels
        )

    def _read(self, num: int) -> np.ndarray:
        parts, got = [], 0
        while got < num:
            block = self._next(num - got)
            if not len(block):
                if not self._advance():
                    break
                continue
            parts.append(block)
            got += len(block)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts or [np.empty((0, self.num_channels), np.float32)])

    def _next(self, num: int) -> np.ndarray:
        if self._blocks is None:
            return self._inner.read(num)
        if self._rest is None or not len(self._rest):
            self._rest = next(self._blocks, np.empty((0, self.num_channels), np.float32))
        block, self._rest = self._rest[:num], self._rest[num:]
        return block

    def _advance(self) -> bool:
        """Go on to the next recording; False where there is none."""
        while self._following:
            number, segment = self._following.pop(0)
            name = f"recording {number + 1} of the {len(self._layout.segments)} in it"
            try:
                inner = _Recording(self.path, segment)
            except BadAudio as e:
                self._notes.append(f"{name}: {e.reason}")
                continue
            rate, channels = inner.sampling_rate, inner.num_channels
            if not (self._fits(inner) and LOWEST_RATE <= rate <= HIGHEST_RATE):
                inner.close()
                self._notes.append(f"{name} is left out: {rate} Hz x {channels} channels")
                continue
            self._notes += self._inner.notes
            self._inner.close()
            self._inner, self._blocks = inner, None
            if (rate, channels) != (self.sampling_rate, self.num_channels):
                mine = f"{self.sampling_rate} Hz x {self.num_channels}"
                self._notes.append(f"{name} has {rate} Hz x {channels}, made {mine} as the first")
                self._blocks = self._converted(inner)
            return True
        return False

    def _converted(self, inner: Reader) -> Iterator[np.ndarray]:
        """The blocks of a recording with the rate and channels of the first."""

        def blocks() -> Iterator[np.ndarray]:
            while len(block := inner.read(BLOCK_SAMPLES)):
                if inner.num_channels != self.num_channels:
                    block = np.repeat(block.mean(1, keepdims=True), self.num_channels, 1)
                yield block

        return resample(blocks(), inner.sampling_rate, self.sampling_rate)

    def seek(self, sample: int) -> None:
        if not self.can_seek:
            return super().seek(sample)
        self._inner.seek(sample)
        self.position = self._inner.position

    def close(self) -> None:
        self._inner.close()


def _require_file(path: str) -> None:
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        raise BadAudio(path, "no such file") from None
    except OSError as e:
        raise BadAudio(path, first_line(e)) from None
    if not os.path.isfile(path):
        raise BadAudio(path, "not a file")
    if not os.access(path, os.R_OK):
        raise BadAudio(path, "no permission to read it")
    if size == 0:
        raise BadAudio(path, "empty file")


_parked = threading.local()
"""One reader that stopped inside a file which can only be gone through forward."""


def open_at(path: str | os.PathLike, sample: int) -> Reader:
    """`open_audio` at a sample.

    Cuts of a long file that follow each other continue where the one before stopped, if that was
    handed to `park`: where seeking is not exact each would be decoded from the start otherwise.
    """
    path = os.fspath(path)
    reader, stamp = getattr(_parked, "it", None), _stamp(path)
    same = reader is not None and (reader.path, reader.stamp) == (path, stamp)
    if same and reader.position <= sample:
        _parked.it = None
    else:
        reader = open_audio(path)
        reader.stamp = stamp
    try:
        reader.seek(sample)
    except BaseException:
        reader.close()
        raise
    return reader


def park(reader: Reader) -> None:
    """Give a reader up: to whoever wants what follows, if it cannot seek, else to nobody."""
    if reader.can_seek:
        reader.close()
    else:
        close_parked()
        _parked.it = reader


def close_parked() -> None:
    """Close the reader that this thread has parked."""
    reader, _parked.it = getattr(_parked, "it", None), None
    if reader is not None:
        reader.close()


def _stamp(path: str) -> tuple | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
