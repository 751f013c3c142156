"""Opening audio files: by libsndfile where it can, else by an ffmpeg program.

A `Reader` goes through a file once, from any sample on, and gives float32 blocks; a file of any
length needs no more memory than a block. Samples do not depend on the size of the blocks. What
cannot be decoded is a `BadAudio` with the reason.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from rvqlm.audio.ffmpeg import FfmpegReader, find_ffmpeg
from rvqlm.audio.reader import BadAudio, Reader, first_line
from rvqlm.audio.sndfile import open_sndfile

SNDFILE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf",
)  # fmt: skip
FFMPEG_SUFFIXES = (
    ".m4a", ".m4b", ".aac", ".mp4", ".wma", ".webm", ".mka", ".mkv", ".ac3", ".amr",
)  # fmt: skip
AUDIO_SUFFIXES = SNDFILE_SUFFIXES + FFMPEG_SUFFIXES


class Probe(NamedTuple):
    """What the header of a file says."""

    sampling_rate: int
    num_channels: int
    num_samples: int | None
    """per channel; None where only decoding would tell"""


def probe(path: str | os.PathLike) -> Probe:
    """Sampling rate, channels and length of an audio file, without decoding it.

    The length is exact for WAV, FLAC, AIFF and Ogg (Vorbis, Opus). Of an MP3 it is what its Xing
    header says, exact unless the file was damaged, and None without such a header. It is None for
    all that goes through ffmpeg (M4A, AAC, WMA, WebM, ...): count what `open_audio` reads.

    Raises `BadAudio` for a file that cannot be used.
    """
    with open_audio(path) as reader:
        if reader.num_samples == 0:
            raise BadAudio(path, "zero-length audio")
        return Probe(reader.sampling_rate, reader.num_channels, reader.num_samples)


def open_audio(path: str | os.PathLike) -> Reader:
    """Open a file of any format that libsndfile or ffmpeg can read; `BadAudio` if none can."""
    path = os.fspath(path)
    _require_file(path)
    if path.lower().endswith(FFMPEG_SUFFIXES):
        return FfmpegReader(path)
    try:
        return open_sndfile(path)
    except BadAudio as e:
        if e.reason.startswith("truncated") or find_ffmpeg() is None:
            raise
        try:  # an M4A that is called .mp3, a rare codec in a .wav
            return FfmpegReader(path)
        except BadAudio:
            raise e from None


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
