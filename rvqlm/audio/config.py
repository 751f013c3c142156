"""Flags of the subcommands of `rvqlm audio`, in the order of their use; a class's docstring is the
help of its command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rvqlm.audio.items import FILES_ONLY, Outside
from rvqlm.audio.prepare import Mono
from rvqlm.errors import UserError


@dataclass(frozen=True)
class ManifestConfig:
    """List the audio files of a folder for the other commands: where each lies, how long it is,
    what is said in it and by whom where that is known. Writes recordings.jsonl.gz,
    supervisions.jsonl.gz and cuts.jsonl.gz, the last of which the other commands read.
    """

    input: str
    """Your audio: a folder (searched at any depth), a quoted glob such as "music/**/*.mp3", or a
    text file with one path a line."""
    out_dir: str
    """Folder for recordings.jsonl.gz, supervisions.jsonl.gz and cuts.jsonl.gz."""
    texts: str | None = None
    """Table of transcripts, a line for each file: path, tab, text, and if known tab, speaker, tab,
    language; or columns with their names in the first line. The path may be short: below the input,
    or the name alone. Default: text files beside the audio."""
    text_suffix: str = ".txt"
    """Ending of the text files beside the audio, without --texts: a.txt goes with a.wav."""
    speaker_from: str = "none"
    """Who speaks: none; folder, the name of the folder that a file lies in; or a regular
    expression for the path below the input, whose first group is the speaker: "([^/]+)/" is the
    first folder. A speaker in the table of --texts comes first."""
    group_by: str = "file"
    """What must not be divided between training and test: file; folder, all files of one; or a
    regular expression for the path below the input, whose first group is what such files share."""
    language: str | None = None
    """Language of the transcripts, such as en or Russian, which rvqlm text reads them in. One in
    the table of --texts comes first."""
    jobs: int = 0
    """Processes; 0 is one per core."""

    def __post_init__(self) -> None:
        for flag, pattern in (("speaker-from", self.speaker_from), ("group-by", self.group_by)):
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f"--{flag} {pattern}: no regular expression: {e}") from None
        if not self.text_suffix.startswith("."):
            raise UserError(f"--text-suffix {self.text_suffix}: give an ending such as .txt")


@dataclass(frozen=True)
class LoudnessConfig:
    """Measure how loud each recording is (ITU-R BS.1770) as the codec will hear it, and write a
    list in which each has a gain that brings it to one level. Whatever reads the list applies the
    gain; the audio files stay as they are.
    """

    input: str
    """Manifest of cuts (.jsonl.gz), as rvqlm audio manifest writes it."""
    out: str
    """Manifest to write (.jsonl.gz): the same cuts, each recording with its gain."""
    target_lufs: float
    """Loudness to bring every recording to, in LUFS (ITU-R BS.1770): -23 is that of European
    broadcasting, -16 to -14 that of music streaming."""
    peak_dbfs: float = -1.0
    """No sample may become larger than this; 0 is full scale. The gain of such a recording is
    reduced, nothing is limited or clipped, and it stays quieter than the target."""
    channels: Literal[1, 2] = 1
    """Channels of the codec that the audio is for (rvqlm codecs says it): others are measured as
    rvqlm tokenize will give them to it, stereo for a codec of one channel as the average."""
    mono: Mono = "average"
    """What --mono of rvqlm tokenize will be."""
    over: Literal["recording", "cuts"] = "recording"
    """What the loudness is measured on: the whole recording, or only those stretches of it that
    the cuts of the manifest cover (after rvqlm audio activity). One gain a recording either way."""
    jobs: int = 0
    """Processes; 0 is one per core."""
    outside: Outside = FILES_ONLY

    def __post_init__(self) -> None:
        problems = []
        if not -70 < self.target_lufs <= 0:
            problems.append(f"--target-lufs {self.target_lufs:g}: give a level between -70 and 0")
        if not -70 < self.peak_dbfs <= 0:
            problems.append(f"--peak-dbfs {self.peak_dbfs:g}: give a level between -70 and 0")
        if self.channels == 2 and self.mono != "average":
            problems.append("--mono does nothing with --channels 2")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(frozen=True)
class ActivityConfig:
    """Keep the stretches in which the level stays above a threshold, each as an item of its own
    of the new list: a track with long rests becomes several pieces. The audio files stay as
    they are.
    """

    input: str
    """Manifest of cuts (.jsonl.gz), as rvqlm audio manifest writes it."""
    out: str
    """Manifest to write (.jsonl.gz): one cut for each active stretch."""
    rms_threshold: float = 0.05
    """Level from which a moment counts as active; 1 is full scale (0.05 is -26 dBFS)."""
    min_window_seconds: float = 30.0
    """Shorter stretches are dropped."""
    rms_frame_seconds: float = 10.0
    """Time over which the level is taken, around each moment: rests that are shorter than this
    do not end a stretch."""
    rms_stride_seconds: float = 0.2
    """Resolution of the beginnings and ends of stretches."""
    max_window_seconds: float | None = None
    """Longer stretches are cut into equal pieces that are not longer than this."""
    reference: str | None = None
    """Another manifest, whose cuts of the same ids decide instead: a backing track is cut where
    the lead track plays. Where the two differ in length, both end with the shorter."""
    partner: str | None = None
    """Manifest of the other tracks, where this one decides for them: give it, and the two go on
    with the same stretches where they differ in length or one of them is missing."""
    jobs: int = 0
    """Processes; 0 is one per core."""
    outside: Outside = FILES_ONLY

    @property
    def other(self) -> tuple[str, str] | None:
        """Flag and manifest of the other track of pairs."""
        given = [("--reference", self.reference), ("--partner", self.partner)]
        return next(((flag, path) for flag, path in given if path), None)

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.rms_threshold < 1:
            problems.append(f"--rms-threshold {self.rms_threshold:g}: give a level between 0 and 1")
        if self.rms_stride_seconds < 0.001:
            problems.append(f"--rms-stride-seconds {self.rms_stride_seconds:g} is below 0.001")
        if self.rms_frame_seconds < self.rms_stride_seconds:
            problems.append("--rms-frame-seconds is shorter than --rms-stride-seconds")
        if self.min_window_seconds < self.rms_stride_seconds:
            problems.append("--min-window-seconds is shorter than --rms-stride-seconds")
        if (self.max_window_seconds or self.min_window_seconds) < self.min_window_seconds:
            problems.append("--max-window-seconds is shorter than --min-window-seconds")
        if self.reference and self.partner:
            problems.append("--reference and --partner exclude each other")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(frozen=True)
class AugmentConfig:
    """Write copies of the audio that are faster or slower, stretched, or shifted in pitch, and
    list them. Each copy names its original, so that rvqlm split keeps them together.
    """

    input: str
    """Manifest of cuts (.jsonl.gz), as rvqlm audio manifest writes it."""
    out: str
    """Manifest to write (.jsonl.gz): the originals, and after each its copies."""
    audio_dir: str
    """Folder for the copies, as FLAC files."""
    speeds: tuple[float, ...] = ()
    """Copies played so many times faster: 0.9 1.1. The pitch changes with it."""
    tempos: tuple[float, ...] = ()
    """Copies so many times faster at the same pitch: 0.9 1.1."""
    semitones: tuple[float, ...] = ()
    """Copies so many semitones higher at the same tempo: -2 2."""
    combine: Literal["single", "product"] = "single"
    """single: one copy for each value. product: one for each combination of a speed, a tempo and a
    pitch, none of them included: 2 tempos and 2 pitches make 8 copies instead of 4."""
    keep_original: bool = True
    """Whether the originals are in the new manifest too."""
    n_fft: int = 4096
    """Samples of the window in which tempo and pitch are changed; shorter ones blur attacks less
    and low tones more."""
    hop_length: int = 512
    """Samples from one such window to the next."""
    jobs: int = 0
    """Processes; 0 is one per core."""
    outside: Outside = FILES_ONLY

    def __post_init__(self) -> None:
        problems = []
        for flag in ("speeds", "tempos", "semitones"):
            values, plain = getattr(self, flag), 0 if flag == "semitones" else 1
            low, high = (-24, 24) if flag == "semitones" else (0.25, 4)
            for value in values:
                if not low <= value <= high or value == plain:
                    but = f" but {plain}, which changes nothing"
                    problems.append(f"--{flag} {value:g}: give values from {low} to {high}{but}")
            if len({f"{v:g}" for v in values}) < len(values):
                problems.append(f"--{flag}: a value is given twice")
        if not (self.speeds or self.tempos or self.semitones):
            problems.append("give --speeds, --tempos or --semitones")
        if self.n_fft < 64 or self.n_fft % 2:
            problems.append(f"--n-fft {self.n_fft}: give an even number from 64 on")
        if not 1 <= self.hop_length <= self.n_fft // 4:
            problems.append(f"--hop-length {self.hop_length}: give 1 to a quarter of --n-fft")
        if problems:
            raise UserError("; ".join(problems))
