"""What happens to samples between a file and a codec: checks, channels, level, silence, rate.

Every step works on blocks and gives the same samples however they are cut, so that a stream
equals the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr

from rvqlm.audio.items import FILES_ONLY, Outside
from rvqlm.audio.reader import BadAudio
from rvqlm.errors import UserError

Mono = Literal["average", "left", "right", "refuse"]
Stereo = Literal["duplicate", "refuse"]

LOUDEST = 8.0
"""Peaks above this are not audio with full scale 1.0 but integers stored as floats."""

PEAK_DBFS = -1.0
"""Loudness normalisation takes no sample above this (EBU R 128 has the same limit)."""

TRIM_DBFS = -50.0

CANCELLED_DB = 20.0
"""Channels whose average is so much softer than they are cancel each other; that of unrelated ones
loses 3 dB, and of six channels 8."""

SILENCE = 1e-4
"""RMS (-80 dBFS) below which nothing is there to be cancelled."""

CANCELLED = (
    "its channels are in opposite phase and cancel each other where they are averaged; give "
    "--mono left or --mono right"
)


@dataclass(frozen=True)
class AudioConfig:
    """What is done to the audio before the codec encodes it."""

    mono: Mono = "average"
    """Several channels where the codec takes one: average them, take the left (first) or the right
    (second) one, or refuse and skip the file."""
    stereo: Stereo = "duplicate"
    """One channel where the codec takes two: duplicate it, or refuse the file. More than two are
    refused, as nothing says which of them are left and right."""
    loudness: float | None = None
    """Bring every item to this many LUFS (BS.1770 integrated; -23 is usual for speech and
    broadcast, -14 for music), held back where a sample would go above -1 dBFS. Items with nothing
    to measure, silence and less than 400 ms, stay as they are. Default: no change."""
    trim_silence: bool = False
    """Leave out silence at the beginning and end of every item, in whole frames."""
    trim_dbfs: float | None = None
    """With --trim-silence: samples up to this level are silence. Default: -50."""
    outside: Outside = FILES_ONLY

    def __post_init__(self) -> None:
        problems = []
        if self.loudness is not None and not -70.0 < self.loudness <= 0.0:
            problems.append(f"--loudness {self.loudness:g} must be between -70 and 0 LUFS")
        if self.trim_dbfs is not None and not self.trim_silence:
            problems.append("--trim-dbfs does nothing without --trim-silence")
        if self.trim_dbfs is not None and not -200.0 <= self.trim_dbfs < 0.0:
            problems.append(f"--trim-dbfs {self.trim_dbfs:g} must be below 0 dBFS")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def trim_level(self) -> float:
        """Largest sample of what counts as silence, full scale 1."""
        dbfs = TRIM_DBFS if self.trim_dbfs is None else self.trim_dbfs
        return 10.0 ** (dbfs / 20.0)

    def to_dict(self) -> dict:
        """Everything that the samples depend on, as JSON-ready values."""
        return {
            "mono": self.mono,
            "stereo": self.stereo,
            "loudness": self.loudness,
            "trim_dbfs": (self.trim_dbfs or TRIM_DBFS) if self.trim_silence else None,
        }


def checked(
    blocks: Iterable[np.ndarray], path: str, loudest: float = LOUDEST
) -> Iterator[np.ndarray]:
    """Pass (n, C) blocks on; `BadAudio` for samples that are not finite, or above `loudest`."""
    for block in blocks:
        # NaN survives max and abs, so that the peak answers all of this in one pass
        peak = float(np.abs(block).max(initial=0.0))
        if not math.isfinite(peak):
            raise BadAudio(path, "NaN or infinite samples")
        if peak > loudest:
            raise BadAudio(
                path, f"samples reach {peak:g} where full scale is 1 (integers stored as floats?)"
            )
        yield block


def fold(block: np.ndarray, channels: int, config: AudioConfig, path: str) -> np.ndarray:
    """(n, C) samples as (n, channels); `BadAudio` where `config` refuses that."""
    have = block.shape[1]
    if have == channels:
        return block
    if channels == 1 and config.mono != "refuse":
        if config.mono == "average":
            return block.mean(axis=1, keepdims=True, dtype=np.float32)
        side = 0 if config.mono == "left" else 1
        return block[:, side : side + 1]
    if channels == 2 and have == 1 and config.stereo == "duplicate":
        return np.repeat(block, 2, axis=1)
    raise BadAudio(path, f"{have} channels where {channels} are wanted")


class Folding:
    """`fold` for the blocks of one recording, which notices channels that cancel each other: stereo
    in opposite phase becomes silence where it is averaged.

    >>> folding = Folding(1, AudioConfig(), "a.wav")
    >>> wave = np.sin(np.arange(8000)).astype(np.float32)
    >>> folding(np.stack([wave, -wave], axis=1)).any()
    np.False_
    >>> folding.cancelled
    True
    """

    def __init__(self, channels: int, config: AudioConfig, path: str):
        self.channels, self.config, self.path = channels, config, path
        self._samples, self._before, self._after = 0, 0.0, 0.0  # energies of a channel

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """(n, C) samples as (n, channels); `BadAudio` where the settings refuse that."""
        made = fold(block, self.channels, self.config, self.path)
        if self.channels == 1 < block.shape[1] and self.config.mono == "average":
            self._samples += len(block)
            self._before += float(np.square(block, dtype=np.float64).sum()) / block.shape[1]
            self._after += float(np.square(made, dtype=np.float64).sum())
        return made

    def watch(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks (C, n) as they are, for those who only want to know what folding would do."""
        for block in blocks:
            self(block.T)
            yield block

    @property
    def cancelled(self) -> bool:
        """Whether nearly all of the sound so far was lost to averaging."""
        if self._before <= self._samples * SILENCE**2:
            return False
        return self._after < self._before * 10 ** (-CANCELLED_DB / 10)

    def require_sound(self) -> None:
        """`BadAudio` where the channels have cancelled each other."""
        if self.cancelled:
            raise BadAudio(self.path, CANCELLED)


def amplify(block: np.ndarray, factor: float) -> np.ndarray:
    """What lhotse's ``Volume`` does to float32 samples."""
    return block if factor == 1.0 else block * np.float32(factor)


def resample(
    blocks: Iterable[np.ndarray], rate: float, sampling_rate: float
) -> Iterator[np.ndarray]:
    """(n, C) blocks at another rate: round(S * sampling_rate / rate) samples in all.

    soxr's HQ setting; a stream of blocks gives the very samples of `soxr.resample` on the whole.
    """
    if rate == sampling_rate:
        yield from blocks
        return
    stream = None
    for block in blocks:
        if stream is None:
            channels = block.shape[1]
            stream = soxr.ResampleStream(rate, sampling_rate, channels, "float32", "HQ")
        if len(made := stream.resample_chunk(np.ascontiguousarray(block, np.float32))):
            yield made
    if stream is not None:
        rest = np.empty((0, channels), np.float32)
        if len(made := stream.resample_chunk(rest, last=True)):
            yield made


def sound_range(blocks: Iterable[np.ndarray], frame: int, level: float) -> tuple[int, int, int]:
    """Where sound begins and ends: (first sample, end, samples in all); twice 0 if all is silence.

    blocks: (n, C). frame: samples; both ends are moved outwards to multiples of it. level: silence
    is what is nowhere above it.
    """
    first, last, total = None, 0, 0
    for block in blocks:
        loud = np.flatnonzero(np.abs(block).max(axis=1) > level)
        if len(loud):
            first = total + int(loud[0]) if first is None else first
            last = total + int(loud[-1]) + 1
        total += len(block)
    if first is None:
        return 0, 0, total
    return first // frame * frame, min(total, -(-last // frame) * frame), total
