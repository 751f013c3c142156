"""Reading audio for a codec: decode, check, choose channels, resample. Nothing else is changed.

Files are read by soundfile and resampled by soxr; cuts whose recording is not a plain file (a URL,
a command, bytes, or with augmentations attached) go through lhotse. Whatever makes a recording
unusable is a `BadAudio` with the reason: a corpus of thousands of files skips and lists it, a
command that was given this one file reports it.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import soundfile
import soxr
from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples

from rvqlm.errors import UserError

Mono = Literal["average", "refuse"]
"""What to do with several channels where a codec takes one."""

LOUDEST = 8.0
"""Peaks above this are not audio with full scale 1.0 but integers stored as floats."""

MISSING_SECONDS = 0.025
"""How much shorter than its manifest a file may be: headers of compressed files are inexact."""


class BadAudio(UserError):
    """Why one recording cannot be used; the message names the file as well."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason


def load_file(
    path: str | os.PathLike, sampling_rate: int, channels: int = 1, mono: Mono = "average"
) -> np.ndarray:
    """One audio file as a codec wants it: (channels, S) float32 at `sampling_rate`."""
    audio, rate = _read(str(path))
    return prepare(audio, rate, sampling_rate, channels, mono, str(path))


def load_new_file(
    path: str, recording_id: str, sampling_rate: int, channels: int = 1, mono: Mono = "average"
) -> tuple[np.ndarray, Cut]:
    """`load_file` together with the audio cut over the whole file, from a single read.

    The cut has the id `recording_id`, like its recording; it is a `MultiCut` if the file has
    several channels.
    """
    audio, rate = _read(path)
    recording = Recording(
        id=recording_id,
        sources=[AudioSource(type="file", channels=list(range(audio.shape[1])), source=path)],
        sampling_rate=rate,
        num_samples=len(audio),
        duration=len(audio) / rate,
    )
    return prepare(audio, rate, sampling_rate, channels, mono, path), recording_cut(recording)


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


def load_cut(cut: Cut, sampling_rate: int, channels: int = 1, mono: Mono = "average") -> np.ndarray:
    """The audio of a lhotse cut as a codec wants it: (channels, S) float32 at `sampling_rate`."""
    recording = getattr(cut, "recording", None)
    if recording is None:
        raise BadAudio(cut.id, f"{type(cut).__name__} without a recording of its own")
    path = str(recording.sources[0].source) if recording.sources else recording.id
    if len(recording.sources) == 1 and recording.sources[0].type == "file" and _plain(recording):
        audio, rate = _read(
            path,
            compute_num_samples(cut.start, recording.sampling_rate),
            compute_num_samples(cut.duration, recording.sampling_rate),
            recording.sampling_rate,
        )
        wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
        have = recording.sources[0].channels
        if max(have.index(c) for c in wanted) >= audio.shape[1]:
            raise BadAudio(path, f"the cut is on channel {max(wanted)}, the file has fewer")
        if len(wanted) != audio.shape[1]:
            audio = audio[:, [have.index(c) for c in wanted]]
    else:
        try:
            audio, rate = cut.load_audio().T, cut.sampling_rate
        except Exception as e:  # lhotse has many backends, and errors of all kinds
            raise BadAudio(path, f"unreadable: {type(e).__name__}: {_first_line(e)}") from None
    return prepare(audio, rate, sampling_rate, channels, mono, path)


def prepare(
    audio: np.ndarray, rate: int, sampling_rate: int, channels: int, mono: Mono, path: str
) -> np.ndarray:
    """Check (S, C) samples, choose channels and resample; returns (channels, S') float32.

    `mono` says what becomes of several channels where one is wanted; any other difference in the
    number of channels is refused. `path` is for the message of a `BadAudio`.
    """
    if len(audio) == 0:
        raise BadAudio(path, "zero-length audio")
    # NaN survives max and abs, so that the peak answers all of this in one pass
    peak = float(np.abs(audio).max())
    if not np.isfinite(peak):
        raise BadAudio(path, "NaN or infinite samples")
    if peak > LOUDEST:
        raise BadAudio(
            path, f"samples reach {peak:g} where full scale is 1 (integers stored as floats?)"
        )
    if audio.shape[1] != channels:
        if channels != 1 or mono == "refuse":
            raise BadAudio(path, f"{audio.shape[1]} channels where {channels} are wanted")
        audio = audio.mean(axis=1, keepdims=True, dtype=np.float32)
    if rate != sampling_rate:
        audio = soxr.resample(audio, rate, sampling_rate, quality="HQ")
        if len(audio) == 0:
            raise BadAudio(path, f"zero-length audio after resampling to {sampling_rate} Hz")
    return np.ascontiguousarray(audio.T, dtype=np.float32)


def _read(
    path: str, start: int = 0, num: int | None = None, rate: int | None = None
) -> tuple[np.ndarray, int]:
    """Samples [start, start + num) of a file as (S, C) float32, and the file's sampling rate.

    Where the file does not hold what a manifest says (`rate`, and at least `num` samples, some
    milliseconds aside) it is refused.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if rate is not None and file.samplerate != rate:
                raise BadAudio(
                    path, f"{file.samplerate} Hz, its manifest says {rate}; make the manifest anew"
                )
            if start:
                file.seek(min(start, file.frames))
            audio = file.read(-1 if num is None else num, dtype="float32", always_2d=True)
            rate = file.samplerate
    except FileNotFoundError:
        raise BadAudio(path, "no such file") from None
    except (OSError, RuntimeError, ValueError) as e:  # soundfile's own errors are RuntimeErrors
        if not os.path.exists(path):
            raise BadAudio(path, "no such file") from None
        if not os.access(path, os.R_OK):
            raise BadAudio(path, "no permission to read it") from None
        if os.path.getsize(path) == 0:
            raise BadAudio(path, "empty file") from None
        raise BadAudio(path, f"unreadable: {_first_line(e)}") from None
    if num is not None and len(audio) and num - len(audio) > MISSING_SECONDS * rate:
        raise BadAudio(
            path,
            f"{num - len(audio)} samples fewer than its manifest says; make the manifest anew",
        )
    return audio, rate


def _plain(recording: Recording) -> bool:
    """No augmentation is attached."""
    return not recording.transforms


def _first_line(error: Exception) -> str:
    # libsndfile repeats the path: "Error opening 'x.wav': Format not recognised."
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.split("': ", 1)[1] if text.startswith("Error opening") and "': " in text else text
