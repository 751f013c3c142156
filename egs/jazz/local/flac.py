"""Audio of any level as a FLAC file (24 bit): nothing is clipped."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.augmentation import Volume

from rvqlm.audio.parts import file_recording
from rvqlm.audio.reader import BLOCK_SAMPLES
from rvqlm.files import atomic_write


class FlacWriter:
    """Takes blocks (C, n) of one recording, and writes the file once its peak is known.

    What is above full scale is stored at a lower level, a power of two, which the gain of the
    recording makes good for. The samples wait in a temporary file beside it.
    """

    def __init__(self, path: Path, rate: int, channels: int):
        self.path, self.rate, self.channels = path, rate, channels
        self.samples, self.peak = 0, 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.w64")
        self._file = soundfile.SoundFile(
            self._temporary, "w", rate, channels, subtype="FLOAT", format="W64"
        )

    def add(self, block: np.ndarray) -> None:
        self._file.write(block.T)
        self.samples += block.shape[1]
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    def finish(self, id: str, comment: str) -> Recording:
        """Write the file, with a comment in it that `complete` compares; its recording."""
        self._file.close()
        scale = 1.0 if self.peak <= 1 else 2.0 ** -math.ceil(math.log2(self.peak) + 1e-6)

        def write(to: Path) -> None:
            with soundfile.SoundFile(
                to, "w", self.rate, self.channels, subtype="PCM_24", format="FLAC"
            ) as file:
                file.comment = f"{comment} {scale}"
                for block in soundfile.blocks(self._temporary, BLOCK_SAMPLES, dtype="float32"):
                    file.write(block * np.float32(scale))

        atomic_write(self.path, write)
        return recording_of(self.path, id, self.rate, self.channels, self.samples, scale)

    def close(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def recording_of(
    path: Path, id: str, rate: int, channels: int, samples: int, scale: float
) -> Recording:
    recording = file_recording(id, str(path), rate, channels, samples)
    if scale != 1:
        recording.transforms = [Volume(1 / scale)]
    return recording


def complete(path: Path, id: str, comment: str) -> Recording | None:
    """The recording of a file that was written with this comment, if it is there."""
    try:
        with soundfile.SoundFile(path) as file:
            found, scale = file.comment.split()
            if found != comment:
                return None
            return recording_of(path, id, file.samplerate, file.channels, file.frames, float(scale))
    except (OSError, RuntimeError, ValueError):
        return None


def write(path: Path, id: str, comment: str, rate: int, blocks: Iterable[np.ndarray]) -> Recording:
    """A file of blocks (C, n), of which there is at least one."""
    writer = None
    try:
        for block in blocks:
            writer = writer or FlacWriter(path, rate, block.shape[0])
            writer.add(block)
        return writer.finish(id, comment)
    finally:
        if writer is not None:
            writer.close()
