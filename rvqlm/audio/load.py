"""Reading audio for a codec: decode, check, choose channels, level, trim, resample. Nothing else.

Everything goes one way, through the blocks of an `AudioStream`, be it a file that is tokenized, a
prompt of generation, or a cut whose stored tokens are checked: whole and streamed samples are the
same. Files are decoded by `audio.read`; cuts whose recording is not a plain file (a URL, a command,
bytes, or with augmentations attached) go through lhotse and are in memory whole. Whatever makes a
recording unusable is a `BadAudio` with the reason: a corpus of thousands of files skips and lists
it, a command that was given this one file reports it.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.augmentation import AudioTransform, Volume
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples, fastcopy

from rvqlm.audio.prepare import (
    PEAK_DBFS,
    AudioConfig,
    Mono,
    Stereo,
    amplify,
    checked,
    fold,
    resample,
    sound_range,
)
from rvqlm.audio.read import Probe, open_at, park, probe
from rvqlm.audio.reader import BLOCK_SAMPLES, MISSING_SECONDS, BadAudio, Reader
from rvqlm.codec_info import CodecInfo

__all__ = [
    "AudioConfig", "AudioStream", "BadAudio", "Mono", "Probe", "Stereo", "load_cut", "load_file",
    "open_cut", "open_file", "probe", "recording_cut",
]  # fmt: skip


def load_file(
    path: str | os.PathLike,
    sampling_rate: int,
    channels: int = 1,
    config: AudioConfig = AudioConfig(),  # noqa: B008 - frozen
    max_samples: int | None = None,
) -> np.ndarray:
    """One audio file as a codec wants it: (channels, S) float32 at `sampling_rate`.

    With `max_samples` reading stops there, and nothing behind is decoded or checked.
    """
    part = _FilePart(os.fspath(path))
    return _whole(AudioStream(part, None, "", sampling_rate, channels, config), max_samples)


def load_cut(
    cut: Cut,
    sampling_rate: int,
    channels: int = 1,
    config: AudioConfig = AudioConfig(),  # noqa: B008
) -> np.ndarray:
    """The audio of a lhotse cut as a codec wants it: (channels, S) float32 at `sampling_rate`.

    Of a cut in ``audio_cuts.jsonl.gz``, with the settings for channels that its tokens were made
    with, these are the samples that were encoded: its range and gain say what trimming and
    loudness normalisation did.
    """
    return _whole(AudioStream(_part_of(cut), cut, cut.id, sampling_rate, channels, config))


def open_file(path: str, recording_id: str, info: CodecInfo, config: AudioConfig) -> AudioStream:
    """A file on its way to the codec `info`; its cut will have the id of its recording."""
    return AudioStream(
        _FilePart(path), None, recording_id, info.sampling_rate, info.channels, config, info.hop
    )


def open_cut(cut: Cut, info: CodecInfo, config: AudioConfig) -> AudioStream:
    """A lhotse cut on its way to the codec `info`."""
    return AudioStream(
        _part_of(cut), cut, cut.id, info.sampling_rate, info.channels, config, info.hop
    )


def recording_cut(recording: Recording) -> Cut:
    """The cut over a whole recording, with the recording's id (lhotse would add a suffix)."""
    kind, channel = MonoCut, 0
    if recording.num_channels == 1:
        channel = recording.channel_ids[0]
    else:
        kind, channel = MultiCut, list(recording.channel_ids)
    return kind(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=channel,
        recording=recording,
    )


class AudioStream:
    """One piece of audio on its way to a codec; made by `open_file` and `open_cut`.

    Go through `blocks()` once. After the last block `cut` says exactly what was read: with
    trimming it is the part with sound, with loudness normalisation it carries its gain.
    """

    def __init__(
        self,
        part: _Part,
        cut: Cut | None,
        id: str,
        sampling_rate: int,
        channels: int,
        config: AudioConfig,
        hop: int | None = None,
    ):
        self._part, self._cut, self._id, self._config = part, cut, id, config
        self._rate, self._channels = sampling_rate, channels
        self._frame_seconds = (hop or sampling_rate // 50) / sampling_rate
        self.path = part.path
        self.num_samples = 0
        """of the blocks so far, at the codec's rate"""

    def blocks(self) -> Iterator[np.ndarray]:
        """(channels, n) float32 at the codec's rate; raises `BadAudio` anywhere up to the end."""
        part = self._part
        try:
            part.open()
            first, end, total = self._range()
            gain = self._gain(first, end)
            kept = 0

            def samples() -> Iterator[np.ndarray]:
                nonlocal kept
                for block in self._folded(first, end):
                    kept += len(block)
                    yield amplify(block, gain)

            for block in resample(samples(), part.sampling_rate, self._rate, self._channels):
                self.num_samples += len(block)
                yield np.ascontiguousarray(block.T, dtype=np.float32)
            if not kept:
                raise BadAudio(self.path, "zero-length audio")
            if not self.num_samples:
                raise BadAudio(self.path, f"zero-length audio after resampling to {self._rate} Hz")
            self._finish(first, kept, total or kept, gain)
        finally:
            part.close()

    def _folded(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        """Samples [first, end) of the part with the codec's channels, (n, channels)."""
        for block in checked(self._part.blocks(first, end), self.path):
            yield fold(block, self._channels, self._config, self.path)

    def _range(self) -> tuple[int, int | None, int | None]:
        """What to encode, and how much there is as far as that is known now."""
        if not self._config.trim_silence:
            return 0, None, None
        frame = max(1, round(self._part.sampling_rate * self._frame_seconds))
        blocks = (amplify(b, self._part.gain) for b in self._folded(0, None))
        first, end, total = sound_range(blocks, frame, self._config.trim_level)
        if total and not end:
            raise BadAudio(self.path, "nothing but silence, and --trim-silence is on")
        return first, end, total

    def _gain(self, first: int, end: int | None) -> float:
        """Factor of the gain that this audio comes with, and of what loudness asks for."""
        from rvqlm.audio.loudness import Meter, gain_to

        before = self._part.gain
        if self._config.loudness is None:
            return before
        meter = Meter(self._part.sampling_rate)
        for block in self._folded(first, end):
            meter.add(amplify(block, before).T)
        decibels, _ = gain_to(meter.loudness(), meter.peak, self._config.loudness, PEAK_DBFS)
        return before * 10.0 ** (round(decibels, 4) / 20.0)

    def _finish(self, first: int, kept: int, total: int, gain: float) -> None:
        part, cut = self._part, self._cut
        if cut is None:
            cut = recording_cut(part.recording(self._id, total))
        # half a sample: seconds of a manifest are rounded
        margin = 0.5 / cut.recording.sampling_rate
        custom = dict(cut.custom or {})
        ends = custom.get("ends_recording", cut.end > cut.recording.duration - margin)
        self.ends_recording: bool = ends
        """whether nothing but silence was left behind this cut"""
        if self._config.trim_silence and (first, kept) != (0, total):
            cut = _shortened(cut, first, kept)
            if ends != (cut.end > cut.recording.duration - margin):
                custom["ends_recording"] = ends
        if gain != part.gain:
            cut = fastcopy(cut, recording=part.amplified(cut.recording, gain))
        self.cut: Cut = fastcopy(cut, custom=custom or None)


def _whole(stream: AudioStream, max_samples: int | None = None) -> np.ndarray:
    blocks, there = [], 0
    for block in stream.blocks():
        blocks.append(block)
        there += block.shape[1]
        if max_samples is not None and there >= max_samples:
            break
    return np.ascontiguousarray(np.concatenate(blocks, axis=1)[:, :max_samples])


def _shortened(cut: Cut, first: int, num: int) -> Cut:
    """Samples [first, first + num) of a cut, on exactly these samples; the id stays."""
    rate = cut.sampling_rate
    start = compute_num_samples(cut.start, rate) + first
    shorter = cut.truncate(offset=first / rate, duration=num / rate, preserve_id=True)
    # lhotse rounds to eight digits
    return fastcopy(shorter, start=start / rate, duration=num / rate)


# ------------------------------------------------------------------- where the samples come from


class _Part(ABC):
    """A range of some recording, of which any subrange can be read any number of times."""

    path: str
    sampling_rate: int
    gain = 1.0
    """factor that samples of `blocks` are still to be multiplied by"""

    @abstractmethod
    def open(self) -> None:
        """Find out `sampling_rate`."""

    @abstractmethod
    def blocks(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        """Samples [first, end) of the part (None: to its end), (n, C) float32."""

    @abstractmethod
    def close(self) -> None:
        """Free what `open` and `blocks` hold."""

    @abstractmethod
    def amplified(self, recording: Recording, gain: float) -> Recording:
        """The manifest of the same recording with another gain."""


class _FilePart(_Part):
    """Samples [start, start + num) of a file.

    num: None for all; fewer in the file, some milliseconds aside, are an error.
    rate, channels: what a manifest says of the file: its sampling rate, and the positions of the
    wanted channels. gain: factor that a manifest asks for.
    """

    def __init__(
        self,
        path: str,
        start: int = 0,
        num: int | None = None,
        rate: int | None = None,
        channels: list[int] | None = None,
        gain: float = 1.0,
    ):
        self.path, self.start, self.num, self.gain = path, start, num, gain
        self._said_rate, self._channels = rate, channels
        self._reader: Reader | None = None

    def open(self) -> None:
        if self._reader is None:
            self._reader = open_at(self.path, self.start)
        self.sampling_rate, self.num_channels = (
            self._reader.sampling_rate,
            self._reader.num_channels,
        )
        if self._said_rate not in (None, self.sampling_rate):
            raise BadAudio(
                self.path,
                f"{self.sampling_rate} Hz, its manifest says {self._said_rate}; make the manifest "
                "anew",
            )
        if self._channels is not None and max(self._channels) >= self.num_channels:
            raise BadAudio(
                self.path,
                f"the cut is on channel {max(self._channels)}, the file has fewer",
            )

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
        # where nothing at all was read the file is too short for another reason: zero length
        if left and left < wanted and left > MISSING_SECONDS * self.sampling_rate:
            raise BadAudio(
                self.path, f"{left} samples fewer than its manifest says; make the manifest anew"
            )

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and self.num is not None:
            park(reader)  # other cuts may lie behind this one
        elif reader is not None:
            reader.close()

    def amplified(self, recording: Recording, gain: float) -> Recording:
        return fastcopy(recording, transforms=[Volume(gain)])

    def recording(self, id: str, num_samples: int) -> Recording:
        """The manifest of the whole file, now that its length is known."""
        return Recording(
            id=id,
            sources=[AudioSource("file", channels=[*range(self.num_channels)], source=self.path)],
            sampling_rate=self.sampling_rate,
            num_samples=num_samples,
            duration=num_samples / self.sampling_rate,
        )


class _LhotsePart(_Part):
    """A cut that lhotse reads, whole."""

    def __init__(self, cut: Cut, path: str):
        self.cut, self.path = cut, path

    def open(self) -> None:
        self.sampling_rate = self.cut.sampling_rate

    def close(self) -> None:
        pass

    def amplified(self, recording: Recording, gain: float) -> Recording:
        return fastcopy(recording, transforms=[*(recording.transforms or []), Volume(gain)])

    def blocks(self, first: int, end: int | None) -> Iterator[np.ndarray]:
        cut = self.cut if end is None else _shortened(self.cut, first, end - first)
        try:
            audio = cut.load_audio().T
        except Exception as e:  # lhotse has many backends, and errors of all kinds
            first_line = (str(e).strip().splitlines() or [""])[0]
            raise BadAudio(self.path, f"unreadable: {type(e).__name__}: {first_line}") from None
        for i in range(0, len(audio), BLOCK_SAMPLES):
            yield audio[i : i + BLOCK_SAMPLES]


def _part_of(cut: Cut) -> _Part:
    recording = getattr(cut, "recording", None)
    if recording is None:
        raise BadAudio(cut.id, f"{type(cut).__name__} without a recording of its own")
    path = str(recording.sources[0].source) if recording.sources else recording.id
    gain = _gain_of(recording)
    if gain is None or len(recording.sources) != 1 or recording.sources[0].type != "file":
        return _LhotsePart(cut, path)
    rate, there = recording.sampling_rate, recording.sources[0].channels
    wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    return _FilePart(
        path,
        compute_num_samples(cut.start, rate),
        compute_num_samples(cut.duration, rate),
        rate,
        [there.index(c) for c in wanted],
        gain,
    )


def _gain_of(recording: Recording) -> float | None:
    """The factor that a recording's transforms are; None if they are anything else."""
    transforms = [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t)
        for t in recording.transforms or ()
    ]
    if not all(isinstance(t, Volume) for t in transforms):
        return None
    return math.prod(t.factor for t in transforms)
