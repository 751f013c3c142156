"""Flags of `rvqlm tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.read import AUDIO_SUFFIXES
from rvqlm.errors import UserError
from rvqlm.remote.session import LATE
from rvqlm.runtime import num_cores

if TYPE_CHECKING:
    from rvqlm.codecs.base import Codec


@dataclass
class InputConfig:
    """What to tokenize, and where to."""

    input: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="PATH [PATH ...]")] = field(
        metadata={LATE: AUDIO_SUFFIXES}
    )
    """A folder of audio (searched at any depth), a quoted glob such as "data/**/*.mp3", one audio
    file, a text file with a path a line, or a lhotse manifest of recordings or cuts. Several are
    allowed; a file that is there more than once counts once."""
    out_dir: str
    """Token directory to make. The same command continues one that was interrupted."""
    part: str | None = None
    """Do one part of the input, in a folder of its own within --out-dir: 17/1000 is one of 0/1000
    ... 999/1000, cut so that each has about as much audio. auto/1000: the number that Slurm
    (SLURM_ARRAY_TASK_ID) or Kubernetes (JOB_COMPLETION_INDEX) gave this task of an array. When all
    are done, rvqlm combine makes them one."""


@dataclass
class CodecConfig:
    """What to tokenize with."""

    codec: str = "spectral"
    """spectral (embedded), a hub name such as descript/dac_44khz, a folder in transformers'
    format, or a weight file. `rvqlm codecs` lists what there is."""
    num_codebooks: Annotated[int | None, tyro.conf.arg(aliases=("--codebooks",))] = None
    """Levels to keep, coarsest first; in a --config file under this name. Default: all of the
    codec; 8 of an EnCodec at 24 kHz or a Mimi."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or auto. Under torchrun and srun cuda is each rank's own GPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the codec computes in. Anything but float32 changes 7 to 20 % of the codes."""


@dataclass
class WorkConfig:
    """How to do it. None of this changes the tokens."""

    jobs: int = 0
    """Processes that encode, on one thread each. 0: one per core on a CPU, one on a GPU; 1: no
    extra process and all threads."""
    chunk_seconds: float = 0.0
    """Audio per call of the codec, about; long files are encoded chunk by chunk where the codec
    allows it. Memory and speed depend on it. 0: 4 on a CPU, 10 on a GPU."""
    batch_size: int = 0
    """Items that are encoded together, their chunks in batches. 0: 1 on a CPU, where batches are
    slower, 32 on a GPU."""
    per_file: Literal["auto", "yes", "no"] = "auto"
    """A line for every file at the end: frames, bytes, compression, speed. auto: up to 50 files."""
    dry_run: bool = False
    """Load the codec, list the input, say what would be done; write nothing."""

    def __post_init__(self) -> None:
        problems = []
        if self.chunk_seconds < 0:
            problems.append(
                f"--chunk-seconds {self.chunk_seconds:g} must be positive, or 0 (automatic)"
            )
        for name in ("jobs", "batch_size"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                problems.append(f"--{flag} {getattr(self, name)} must be 0 (automatic) or more")
        if problems:
            raise UserError("; ".join(problems))

    def for_codec(self, codec: Codec, world_size: int) -> tuple[int, float, int]:
        """(jobs, chunk_seconds, batch_size) with the automatic ones filled in."""
        cpu = codec.device.type == "cpu"
        return (
            self.jobs or (num_cores() if cpu and world_size == 1 else 1),
            self.chunk_seconds or (4.0 if cpu else 10.0),
            self.batch_size or (1 if cpu else 32),
        )


@dataclass
class TokenizeConfig:
    """Encode audio into tokens."""

    input: InputConfig
    codec: CodecConfig = field(default_factory=CodecConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    work: WorkConfig = field(default_factory=WorkConfig)
