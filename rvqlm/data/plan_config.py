"""`PlanConfig`: the flags of the epoch plan (`rvqlm.data.plan`) and what holds in which epoch.

Everything is a function of the epoch, so a run resumes in the middle of a curriculum like anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor

from rvqlm.cli import kebab
from rvqlm.errors import UserError
from rvqlm.flags import Schedule, parse_schedule, value_at


def to_frames(text: str) -> int:
    frames = int(text)
    if frames < 1:
        raise ValueError
    return frames


def to_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def to_weights(text: str) -> tuple[float, ...]:
    """``1,2.5`` -> shares that add up to 1."""
    weights = tuple(map(float, text.split(",")))
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ValueError
    return tuple(w / sum(weights) for w in weights)


@dataclass(frozen=True)
class PlanConfig:
    """How cuts become batches; lengths in frames unless a name says duration (seconds)."""

    max_duration: float = 150.0
    """Seconds of audio in a batch, padding included: no batch exceeds it."""
    max_cuts: int = 0
    """At most so many items in a batch; 0: no limit."""
    filter_min_duration: float = 0.0
    """Leave out cuts shorter than this many seconds."""
    filter_max_duration: float = 0.0
    """Leave out cuts longer than this many seconds; 0: keep all."""
    window_frames: int = 0
    """Cut every recording into windows of so many frames, all of them used in each epoch;
    0: whole cuts."""
    hop_frames: int = 0
    """Frames from the start of one window to the next; 0: as many as the window has, so that
    every frame comes exactly once."""
    crop_frames: int = 0
    """Take one random crop of so many frames out of each longer cut, another in each epoch;
    0: whole cuts."""
    shuffle_window: int = 20000
    """Items that are sorted by length together. Larger: less padding, batches of more uniform
    length; smaller: more random batch composition."""
    quadratic_frames: int = 0
    """Count T + T^2/q frames for an item of T frames, with q this number, where attention makes
    long items dearer; 0: count T."""
    packing: int = 0
    """Compute rows of so many frames, each filled with several cuts that do not see each other,
    instead of a row for each cut and its padding; --max-duration is that of all rows. Conditions
    that stand before a cut come on top. 0: padded."""
    length_multiple: int = 1
    """Pad every batch to a multiple of so many frames, for compiled models that like few shapes."""
    window_schedule: tuple[str, ...] = ()
    """--window-frames by epoch, such as 0:512 10:1024: short windows first, longer ones from epoch
    10 on."""
    crop_schedule: tuple[str, ...] = ()
    """--crop-frames by epoch."""
    max_seconds_schedule: tuple[str, ...] = ()
    """--filter-max-duration by epoch, such as 0:5 4:15."""
    epoch_hours: float = 0.0
    """Hours of an epoch, drawn without repetition until all data were used; 0: all data. With it
    schedules have steps finer than passes over the data."""
    mix_weights: tuple[str, ...] = ()
    """Shares of the hours of an epoch for --manifest-dir and each of --mix-dirs, by epoch, such as
    0:1,1 5:1,3; unset: as they are."""

    def check(self) -> None:
        """Raise `UserError` listing everything that is wrong with the flags."""
        problems = self._schedule_problems()
        if not 0 < self.max_duration < float("inf"):
            problems.append(f"--max-duration {self.max_duration} is not positive")
        names = (
            *("max_cuts", "filter_min_duration", "filter_max_duration", "window_frames"),
            *("hop_frames", "crop_frames", "quadratic_frames", "epoch_hours"),
            "packing",
        )
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                problems.append(
                    f"--{kebab(name)} {getattr(self, name)} is negative or not a number"
                )
        if 0 < self.filter_max_duration < self.filter_min_duration:
            problems.append(
                f"--filter-min-duration {self.filter_min_duration} is above "
                f"--filter-max-duration {self.filter_max_duration}"
            )
        if self.hop_frames and not self.window_frames and not self.window_schedule:
            problems.append("--hop-frames needs --window-frames or --window-schedule")
        if self.hop_frames > self.window_frames > 0:
            problems.append(
                f"--hop-frames {self.hop_frames} above --window-frames {self.window_frames} "
                "would skip audio"
            )
        if self.crop_frames and self.window_frames:
            problems.append("--crop-frames and --window-frames exclude each other")
        if self.shuffle_window < 1:
            problems.append(f"--shuffle-window {self.shuffle_window} is not positive")
        if self.packing and (self.quadratic_frames or self.length_multiple > 1 or self.max_cuts):
            problems.append(
                "--packing fills rows of one length: --quadratic-frames, --length-multiple and "
                "--max-cuts mean nothing with it"
            )
        if self.length_multiple < 1:
            problems.append(f"--length-multiple {self.length_multiple} is not positive")
        if problems:
            raise UserError("; ".join(problems))

    def schedules(self) -> dict[str, Schedule]:
        """The schedules by the name of the field that they set; `UserError` for a bad one."""
        return {
            name: parse_schedule(getattr(self, of), f"--{kebab(of)}", convert)
            for name, of, convert in _SCHEDULES
            if getattr(self, of)
        }

    def _schedule_problems(self) -> list[str]:
        problems = []
        for _, of, convert in _SCHEDULES:
            try:
                parse_schedule(getattr(self, of), f"--{kebab(of)}", convert)
            except UserError as e:
                problems.append(str(e))
        if problems:
            return problems
        schedules = self.schedules()
        for name, of, _ in _SCHEDULES:
            if name in schedules and getattr(self, name, 0):
                problems.append(f"--{kebab(name)} and --{kebab(of)} exclude each other")
        limits = [v for _, v in schedules.get("filter_max_duration", []) if v]
        if limits and min(limits) < self.filter_min_duration:
            problems.append(
                f"--filter-min-duration {self.filter_min_duration} is above "
                f"--max-seconds-schedule's {min(limits):g}"
            )
        windows = [v for _, v in schedules.get("window_frames", [])]
        if windows and self.hop_frames > min(windows):
            problems.append(
                f"--hop-frames {self.hop_frames} above --window-schedule's {min(windows)} would "
                "skip audio"
            )
        crops = self.crop_frames or self.crop_schedule
        if (windows and crops) or (self.window_frames and self.crop_schedule):
            problems.append("windows and crops exclude each other")
        return problems

    def at(self, epoch: int) -> PlanConfig:
        """The flags that hold in an epoch, without schedules of lengths (the shares of
        ``mix_weights`` are read by `plan_epoch`)."""
        now = {
            name: value_at(schedule, epoch)
            for name, schedule in self.schedules().items()
            if name != "mix"
        }
        if not now:
            return self
        cleared = {of: () for name, of, _ in _SCHEDULES if name != "mix"}
        return replace(self, **now, **cleared)

    def change_epochs(self) -> list[int]:
        """Epochs in which a schedule begins another value, 0 included."""
        return sorted({0} | {e for s in self.schedules().values() for e, _ in s})

    def for_validation(self) -> PlanConfig:
        """The flags for held-out data: every frame once, long cuts in tiles where training takes
        crops or overlapping windows of them, with the largest values of schedules."""
        schedules = self.schedules()

        def largest(name: str, fixed):
            return max((v for _, v in schedules.get(name, [])), default=fixed)

        window = largest("window_frames", self.window_frames)
        window = window or largest("crop_frames", self.crop_frames)
        limits = [v for _, v in schedules.get("filter_max_duration", [])]
        longest = self.filter_max_duration if not limits else max(limits) if min(limits) else 0.0
        return replace(
            self,
            window_frames=window,
            hop_frames=0,
            crop_frames=0,
            filter_max_duration=longest,
            epoch_hours=0.0,
            packing=0,
            **{of: () for _, of, _ in _SCHEDULES},
        )

    def budget(self, frame_rate: Fraction) -> int:
        """Frames in `max_duration`, rounded down."""
        return floor(exact(self.max_duration) * frame_rate)


def exact(seconds: float) -> Fraction:
    """The decimal that was typed, not the nearest binary float: 0.1 s at 10 Hz is one frame."""
    return Fraction(repr(float(seconds)))


_SCHEDULES = (
    ("window_frames", "window_schedule", to_frames),
    ("crop_frames", "crop_schedule", to_frames),
    ("filter_max_duration", "max_seconds_schedule", to_seconds),
    ("mix", "mix_weights", to_weights),
)
"""Field that a schedule sets, field that it is given by, and how its values are read."""
