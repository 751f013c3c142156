"""Where the samples of a cut come from: its file, block by block, or lhotse.

A cut of a plain file, with nothing but gains attached, is read here in blocks; one whose recording
has several sources, comes from a URL or a command, or has other transforms goes through lhotse,
which decodes by `open_audio` as well, and is in memory whole. Whatever makes a recording unusable
is a `BadAudio` with the reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import soxr
from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.audio import backend as lhotse_backend
from lhotse.augmentation import AudioTransform, Volume
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples, fastcopy

from rvqlm.audio.items import FILES_ONLY, Outside
from rvqlm.audio.prepare import checked
from rvqlm.audio.read import open_at, open_audio, park
from rvqlm.audio.reader import (
    BLOCK_SAMPLES,
    MISSING_SECONDS,
    BadAudio,
    Reader,
    first_line,
    require_audio,
)


def recording_cut(recording: Recording) -> Cut:
    """The cut over a whole recording, with the recording's id (lhotse would add a suffix)."""
    ids = list(recording.channel_ids)
    kind, channel = (MonoCut, ids[0]) if len(ids) == 1 else (MultiCut, ids)
    return kind(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=channel,
        recording=recording,
    )


def file_recording(
    id: str, path: str, sampling_rate: int, channels: int, num_samples: int
) -> Recording:
    """The recording that an audio file is."""
    return Recording(
        id=id,
        sources=[AudioSource("file", [*range(channels)], path)],
        sampling_rate=sampling_rate,
        num_samples=num_samples,
        duration=num_samples / sampling_rate,
    )


def read_recording(id: str, path: str) -> tuple[Recording, list[str]]:
    """The recording that a file is, of exactly as many samples as can be read, and what is missing
    of it; raises `BadAudio`."""
    with open_audio(path, quick=True) as reader:
        rate, channels, samples = reader.sampling_rate, reader.num_channels, reader.num_samples
        if samples is None:
            samples = 0
            while num := len(reader.read(BLOCK_SAMPLES)):
                samples += num
        notes = reader.notes
    if samples == 0:
        raise BadAudio(path, "zero-length audio")
    return file_recording(id, path, rate, channels, samples), notes


def source_path(recording: Recording) -> str:
    """For messages: the file of a recording where there is one."""
    return str(recording.sources[0].source) if recording.sources else recording.id


def transforms_of(recording: Recording) -> list[AudioTransform]:
    """The transforms that are attached to a recording, as objects."""
    return [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t)
        for t in recording.transforms or ()
    ]


def shortened(cut: Cut, first: int, num: int) -> Cut:
    """Samples [first, first + num) of a cut, on exactly these samples; the id stays."""
    rate = cut.sampling_rate
    start = compute_num_samples(cut.start, rate) + first
    shorter = cut.truncate(offset=first / rate, duration=num / rate, preserve_id=True)
    # lhotse rounds to eight digits
    return fastcopy(shorter, start=start / rate, duration=num / rate)


def cut_blocks(
    cut: Cut, outside: Outside = FILES_ONLY, notes: list[str] | None = None
) -> Iterator[np.ndarray]:
    """The audio of a cut in blocks (C, n) float32: the samples of ``cut.load_audio()``.

    outside: where it may come from beside files. notes: gets what is missing or damaged.

    Raises `BadAudio`, for samples that are not finite too.
    """
    part, empty = part_of(cut, outside), True
    try:
        part.open()
        for block in checked(part.blocks(0, None), part.path, loudest=math.inf):
            for factor in part.gains:  # as lhotse does it, which rounds after each
                block = block * factor
            empty = False
            yield block.T
    finally:
        if notes is not None:
            notes += part.notes
        part.close()
    if empty:
        raise BadAudio(part.path, "zero-length audio")


class Part(ABC):
    """A range of some recording, of which any subrange can be read any number of times."""

    path: str
    sampling_rate: int
    gains: Sequence[float] = ()
    """factors that samples of `blocks` are still to be multiplied by, one after another"""
    notes: list[str]
    """what is missing or damaged, complete when `blocks` has come to its end"""
    lacks = 0
    """samples at its end that it should have and has not"""

    @property
    def gain(self) -> float:
        return math.prod(self.gains)

    @abstractmethod
    def open(self) -> None:
        """Find out `sampling_rate`."""

    @abstractmethod
    def blocks(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        """Samples [first, end) of the part (None: to its end), (n, C) float32."""

    @abstractmethod
    def close(self) -> None:
        """Free what `open` and `blocks` hold."""


class FilePart(Part):
    """Samples [start, start + num) of a file; num: None for all.

    rate, channels, length: what a manifest says of the file: its sampling rate, the positions of
    the wanted channels, and its samples. gains: factors that a manifest asks for.
    """

    def __init__(
        self,
        path: str,
        start: int = 0,
        num: int | None = None,
        rate: int | None = None,
        channels: list[int] | None = None,
        gains: Sequence[float] = (),
        length: int | None = None,
    ):
        self.path, self.start, self.num, self.gains = path, start, num, gains
        self._said_rate, self._channels, self._said_length = rate, channels, length
        self.notes, self._unlike = [], False
        self._reader: Reader | None = None

    def open(self) -> None:
        if self._reader is None:
            self._reader = open_at(self.path, self.start)
        reader = self._reader
        self.sampling_rate, self.num_channels = reader.sampling_rate, reader.num_channels
        if self._said_rate not in (None, self.sampling_rate):
            raise BadAudio(
                self.path,
                f"{self.sampling_rate} Hz, its manifest says {self._said_rate}; make the manifest "
                "anew",
            )
        if self._channels is not None and max(self._channels) >= self.num_channels:
            why = f"the cut is on channel {max(self._channels)}, the file has fewer"
            raise BadAudio(self.path, why)
        said, found = self._said_length, reader.num_samples
        if None not in (said, found) and abs(said - found) > MISSING_SECONDS * self.sampling_rate:
            self._unlike = True
            self._note(f"has {found} samples, its manifest says {said}; make the manifest anew")
        promised = reader.promised
        if None not in (said, promised) and promised - said > MISSING_SECONDS * self.sampling_rate:
            self._note(f"damaged: its header promises {promised} samples, its manifest has {said}")

    def _note(self, *notes: str) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def blocks(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        if self._reader is None or self._reader.position != self.start + first:
            self.close()
            self._reader = open_at(self.path, self.start + first)
        limits = [limit for limit in (end, self.num) if limit is not None]
        wanted = left = min(limits) - first if limits else None
        while left is None or left > 0:
            try:
                block = self._reader.read(min(BLOCK_SAMPLES, left or BLOCK_SAMPLES))
            except BadAudio:
                self._reader.close()  # nobody else wants it
                self._reader = None
                raise
            if not len(block):
                break
            left = None if left is None else left - len(block)
            if self._channels is not None and self._channels != [*range(self.num_channels)]:
                block = block[:, self._channels]
            yield block
        self._note(*self._reader.notes)
        margin = MISSING_SECONDS * self.sampling_rate
        if left and wanted == left and self.num is not None:
            ends = self._reader.position / self.sampling_rate
            begins = (self.start + first) / self.sampling_rate
            raise BadAudio(self.path, f"begins at {begins:.2f} s, the file ends at {ends:.2f} s")
        if left and left > margin:
            self.lacks = left
        if self.lacks and not self._unlike:
            self._note(f"{left} samples fewer than its manifest says; make the manifest anew")

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and self.num is not None:
            park(reader)  # other cuts may lie behind this one
        elif reader is not None:
            reader.close()


class LhotsePart(Part):
    """A cut that lhotse reads, whole."""

    def __init__(self, cut: Cut, path: str):
        self.cut, self.path, self.notes = cut, path, []

    def open(self) -> None:
        self.sampling_rate = self.cut.sampling_rate
        require_audio(self.path, self.sampling_rate, self.cut.num_channels)

    def close(self) -> None:
        pass

    def blocks(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        cut = self.cut if end is None else shortened(self.cut, first, end - first)
        with _decoding_here() as decoder:
            try:
                audio = cut.load_audio().T
            except MemoryError:
                raise
            except Exception as e:  # lhotse has errors of all kinds
                why = decoder.failed or f"unreadable: {type(e).__name__}: {first_line(e)}"
                raise BadAudio(self.path, why) from None
        self.notes = list(dict.fromkeys(self.notes + decoder.notes))
        for i in range(0, len(audio), BLOCK_SAMPLES):
            yield audio[i : i + BLOCK_SAMPLES]


class _Decoder(lhotse_backend.AudioBackend):
    """What lhotse decodes with meanwhile: `open_audio`."""

    def __init__(self):
        self.notes: list[str] = []
        self.failed: str | None = None
        """why; lhotse makes errors of its own of those that it meets"""

    def read_audio(self, path_or_fd, offset=0.0, duration=None, force_opus_sampling_rate=None):
        if isinstance(path_or_fd, (str, os.PathLike)):
            return self._read(os.fspath(path_or_fd), offset, duration, force_opus_sampling_rate)
        with tempfile.NamedTemporaryFile() as file:  # what a command or a URL gave
            file.write(path_or_fd.read())
            file.flush()
            return self._read(file.name, offset, duration, None)

    def _read(self, path: str, offset: float, duration: float | None, opus_rate: int | None):
        try:
            audio, rate = self._decoded(path, offset, duration)
        except BadAudio as e:
            self.failed = e.reason
            raise RuntimeError(e.reason) from None
        if opus_rate and path.lower().endswith(".opus") and opus_rate != rate:
            audio, rate = soxr.resample(audio, rate, opus_rate, "HQ"), opus_rate
        return audio.T, rate

    def _decoded(self, path: str, offset: float, duration: float | None):
        with open_audio(path) as reader:
            rate = reader.sampling_rate
            reader.seek(compute_num_samples(offset, rate))
            num = 1 << 62 if duration is None else compute_num_samples(duration, rate)
            blocks = []
            while num and len(block := reader.read(min(num, BLOCK_SAMPLES))):
                blocks.append(block)
                num -= len(block)
            self.notes += reader.notes
        if not blocks:
            raise BadAudio(path, "zero-length audio")
        return np.concatenate(blocks), rate


_lhotse_lock = threading.Lock()


@contextlib.contextmanager
def _decoding_here() -> Iterator[_Decoder]:
    """lhotse decodes by `_Decoder` within this block."""
    with _lhotse_lock:
        before = lhotse_backend.get_current_audio_backend()
        decoder = _Decoder()
        lhotse_backend.set_current_audio_backend(decoder)
        try:
            yield decoder
        finally:
            lhotse_backend.set_current_audio_backend(before)


def part_of(cut: Cut, outside: Outside = FILES_ONLY) -> Part:
    """The part of its recording that a cut is; `BadAudio` where that does not exist or comes from
    elsewhere than `outside` allows."""
    recording = getattr(cut, "recording", None)
    if recording is None:
        raise BadAudio(cut.id, f"{type(cut).__name__} without a recording of its own")
    path = source_path(recording)
    if (why := outside.refusal(recording)) is not None:
        raise BadAudio(path, why)
    rate, there = recording.sampling_rate, recording.channel_ids
    wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if not set(wanted) <= set(there):
        raise BadAudio(path, f"the cut is on channel {max(wanted)}, its recording has {there}")
    transforms = transforms_of(recording)
    plain = len(recording.sources) == 1 and recording.sources[0].type == "file"
    if not plain or not all(isinstance(t, Volume) for t in transforms):
        return LhotsePart(cut, path)
    return FilePart(
        path,
        compute_num_samples(cut.start, rate),
        compute_num_samples(cut.duration, rate),
        rate,
        [recording.sources[0].channels.index(c) for c in wanted],
        [t.factor for t in transforms],
        recording.num_samples,
    )
