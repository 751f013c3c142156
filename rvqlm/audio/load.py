"""Reading audio for a codec: decode, check, choose channels, level, trim, resample. Nothing else.

Everything goes one way, through the blocks of an `AudioStream`, be it a file that is tokenized, a
prompt of generation, or a cut whose stored tokens are checked: whole and streamed samples are the
same. What makes a recording unusable is a `BadAudio` with the reason: a corpus of thousands of
files skips and lists it, a command that was given this one file reports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from lhotse.augmentation import Volume
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from rvqlm.audio.loudness import Meter, gain_to
from rvqlm.audio.parts import FilePart, Part, file_recording, part_of, recording_cut, shortened
from rvqlm.audio.prepare import (
    PEAK_DBFS,
    AudioConfig,
    Folding,
    amplify,
    checked,
    resample,
    sound_range,
)
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo


def load_file(
    path: str | os.PathLike,
    sampling_rate: int,
    channels: int = 1,
    config: AudioConfig = AudioConfig(),  # noqa: B008 - frozen
    max_samples: int | None = None,
    notes: list[str] | None = None,
) -> np.ndarray:
    """One audio file as a codec wants it: (channels, S) float32 at `sampling_rate`.

    With `max_samples` reading stops there, and nothing behind is decoded or checked. `notes` gets
    what of the file is missing or damaged.
    """
    part = FilePart(os.fspath(path))
    audio = _whole(AudioStream(part, None, "", sampling_rate, channels, config), max_samples)
    if notes is not None:
        notes += part.notes
    return audio


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
    part = part_of(cut, config.outside)
    return _whole(AudioStream(part, cut, cut.id, sampling_rate, channels, config))


def open_file(path: str, recording_id: str, info: CodecInfo, config: AudioConfig) -> AudioStream:
    """A file on its way to the codec `info`; its cut will have the id of its recording."""
    return AudioStream(
        FilePart(path), None, recording_id, info.sampling_rate, info.channels, config, info.hop
    )


def open_cut(cut: Cut, info: CodecInfo, config: AudioConfig) -> AudioStream:
    """A lhotse cut on its way to the codec `info`."""
    part = part_of(cut, config.outside)
    return AudioStream(part, cut, cut.id, info.sampling_rate, info.channels, config, info.hop)


class AudioStream:
    """One piece of audio on its way to a codec; made by `open_file` and `open_cut`.

    Go through `blocks()` once. After the last block `cut` says exactly what was read: with
    trimming it is the part with sound, with loudness normalisation it carries its gain.
    """

    def __init__(
        self,
        part: Part,
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

    @property
    def notes(self) -> list[str]:
        """What of it is missing or damaged, complete after the last block."""
        return self._part.notes

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

            for block in resample(samples(), part.sampling_rate, self._rate):
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
        self._folding = Folding(self._channels, self._config, self.path)
        for block in checked(self._part.blocks(first, end), self.path):
            yield self._folding(block)
        self.require_sound()

    def require_sound(self) -> None:
        """`BadAudio` where the channels of the blocks so far have cancelled each other; `blocks`
        itself says so at its end only."""
        self._folding.require_sound()

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
            shape = part.sampling_rate, part.num_channels, total
            cut = recording_cut(file_recording(self._id, part.path, *shape))
        # half a sample: seconds of a manifest are rounded
        margin = 0.5 / cut.recording.sampling_rate
        custom = dict(cut.custom or {})
        ends = custom.get("ends_recording", cut.end > cut.recording.duration - margin)
        self.ends_recording: bool = ends
        """whether nothing but silence was left behind this cut"""
        trimmed = self._config.trim_silence and (first, kept) != (0, total)
        if trimmed or part.lacks:
            cut = shortened(cut, first, kept)
            if ends != (cut.end > cut.recording.duration - margin):
                custom["ends_recording"] = ends
        if gain != part.gain:
            others = (cut.recording.transforms or [])[len(part.gains) :]
            recording = fastcopy(cut.recording, transforms=[*others, Volume(gain)])
            cut = fastcopy(cut, recording=recording)
        self.cut: Cut = fastcopy(cut, custom=custom or None)


def _whole(stream: AudioStream, max_samples: int | None = None) -> np.ndarray:
    blocks, there = [], 0
    for block in stream.blocks():
        blocks.append(block)
        there += block.shape[1]
        if max_samples is not None and there >= max_samples:
            stream.require_sound()
            break
    return np.ascontiguousarray(np.concatenate(blocks, axis=1)[:, :max_samples])
