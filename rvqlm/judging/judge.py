"""What a judge is: something that listens to one clip and gives figures, each of which says whether
more or less of it is better.

A judge is made once and hears clips one by one, so no figure depends on what else is judged. One
whose package or weights are not there raises `NotRun` when it is made, with the way to get them;
one that a clip gives nothing to judge (no text, no recording, too short) raises `Nothing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import soxr

View = Literal["recordings", "codec", "samples"]
VIEWS: tuple[View, ...] = ("recordings", "codec", "samples")
"""What can be judged: the recordings themselves, the same decoded from their own codes, which is
the best that a model of these codes can sound, and what a model made."""
ALIGNED_SECONDS = 0.05
"""A sample is a reconstruction of its recording if it is so much longer or shorter at most."""


class NotRun(Exception):
    """A judge cannot be had here; the message says how to get it."""


class Nothing(Exception):
    """A clip has nothing for this judge; the message says what is missing."""


class Score(NamedTuple):
    """A figure of one clip. The mean over clips weights each by `weight`: errors per word by the
    number of words."""

    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Column:
    """One figure of a judge."""

    name: str
    better: Literal["lower", "higher", "as recorded"]
    meaning: str
    percent: bool = False


@dataclass(eq=False)
class Sound:
    """Audio (C, S) float32 in [-1, 1]."""

    audio: np.ndarray
    rate: int
    _resampled: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.rate

    @cached_property
    def mono(self) -> np.ndarray:
        """(S,) float64, the mean of the channels."""
        return self.audio.mean(0, dtype=np.float64)

    def at(self, rate: int) -> np.ndarray:
        """(S,) float32 at another rate, channels averaged."""
        if rate not in self._resampled:
            audio = self.mono if rate == self.rate else soxr.resample(self.mono, self.rate, rate)
            self._resampled[rate] = audio.astype(np.float32)
        return self._resampled[rate]


@dataclass(eq=False)
class Clip:
    """One thing to judge, and what it is compared with."""

    name: str
    view: View
    recording: str
    """What it is a sample of; clips of one recording are not independent."""
    sound: Sound
    reference: Sound | None = None
    """The recording that it says the same as."""
    voice: Sound | None = None
    """A recording of the speaker that it should sound like."""
    text: str | None = None
    language: str | None = None
    midi: tuple[str, float] | None = None
    """File of the notes that it should play, and the second of it where the clip begins."""

    def aligned(self) -> tuple[Sound, Sound]:
        """The recording and this reconstruction of it."""
        if self.reference is None:
            raise Nothing("no recording to compare with")
        if abs(self.reference.seconds - self.sound.seconds) > ALIGNED_SECONDS:
            raise Nothing("not as long as its recording, so no reconstruction of it")
        return self.reference, self.sound

    def said(self) -> str:
        """What it should say."""
        if not self.text:
            raise Nothing("no text")
        return self.text


@dataclass(frozen=True)
class Options:
    """What judges are told when they are made."""

    weights: Mapping[str, str] = field(default_factory=dict)
    """Paths by name of the judge, for those whose weights no package brings, or other weights."""
    language: str = ""
    """Of texts that do not say theirs; empty: not known."""
    codec: object | None = None
    """`rvqlm.codecs.base.Codec`."""
    device: str = "cpu"


class Judge(ABC):
    """Figures of single clips.

    `model` says what judges, with its version: figures of two models never compare.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    model: str

    @abstractmethod
    def __init__(self, options: Options): ...

    @abstractmethod
    def score(self, clip: Clip) -> dict[str, Score]:
        """By name of the column; what cannot be said of this clip is left out.

        :raises Nothing: none can.
        """


class SetJudge(ABC):
    """Vectors of clips, whose distribution is compared with that of the recordings'."""

    name: ClassVar[str]
    model: str

    @abstractmethod
    def __init__(self, options: Options): ...

    @abstractmethod
    def vectors(self, clip: Clip) -> np.ndarray:
        """(N, D) float32 of a clip.

        :raises Nothing: it is too short for one.
        """
