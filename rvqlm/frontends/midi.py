"""MIDI of expressive solo performances as compound tokens: one step a note, six fields a step.

========= ===== ===========================================================================
field     ids   value
========= ===== ===========================================================================
pitch     128   MIDI pitch
velocity   64   MIDI velocity, two in a bin
duration  128   seconds that the key is held, on the curve below
onset     128   seconds since the note before began (the first: since the beginning)
position 1025   when the note begins, in steps of 20 ms, modulo 1024 (20.48 s)
pedal     128   seconds that the pedal lets it sound on when the key is released; 0: none
========= ===== ===========================================================================

    id = round(20 * ln(1 + seconds / 0.05))    2.5 ms a bin at 0, 10 ms at 0.15 s, 53 ms at 1 s,
                                               5 % from there on; 127: 28.6 s and all above

Time is in seconds: a performance that was played or transcribed (ATEPP, MAESTRO) has no beats, so
encodings by bars (Octuple, arXiv:2106.05630; CPWord, 2101.02402; MIDI-VALLE, 2507.08530) would lay
an arbitrary grid over it, and they have no pedal. The position says to one step, at any length,
where in the recording, and so in its codes, a note is; the onset what the rhythm is like, and which
turn of the positions it is. Times are kept in whole 0.1 ms.

Where a part of a recording is read, a note that sounds from before it comes first: its position is
the one id above the others, its onset tells how long ago it began, its duration and pedal what is
left of them. Version 1 had the notes that begin there alone, and no such id.

All tracks but drums are one instrument (`rvqlm.frontends.midi_file`); soft and sostenuto pedals,
bends and programs are not kept.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields

import numpy as np

from rvqlm.condition_info import MIDI_FIELDS, ConditionInfo
from rvqlm.data.notes import bins, positions, sounding
from rvqlm.errors import UserError
from rvqlm.frontends.midi_file import Notes, read_midi, struck_again, write_midi

VERSIONS = (1, 2)  # of the meaning of the fields, the last one what is made


@dataclass(frozen=True)
class MidiSettings:
    """The bins; see the module."""

    velocity_bins: int = 64
    """Bins of the 128 velocities."""
    position_step: float = 0.02
    """Seconds of a step of the position: the precision of onsets."""
    positions: int = 1024
    """Steps until the position begins again. Their product should reach the end of most
    recordings, or a model has to count the turns."""
    seconds_bins: int = 128
    """Bins of duration, onset and pedal."""
    seconds_unit: float = 0.05
    """Seconds up to which these bins are about equally wide; beyond, they grow with the value."""
    seconds_steps: float = 20.0
    """Bins for each factor e of seconds beyond the unit."""
    max_notes: int = 0
    """Notes of a recording that are kept, the first; 0: all."""

    def check(self) -> None:
        """Raise `UserError` listing everything that is wrong."""
        problems = []
        for name, low, high in (
            *(("velocity_bins", 1, 128), ("position_step", 1e-3, 1), ("positions", 2, 1 << 16)),
            *(("seconds_bins", 2, 1 << 12), ("seconds_unit", 1e-3, 1), ("seconds_steps", 1, 1000)),
            ("max_notes", 0, 1 << 31),
        ):
            value = getattr(self, name)
            kind = int if isinstance(getattr(MidiSettings, name), int) else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                flag = name.replace("_", "-")
                problems.append(f"--{flag} {value!r} is not a number from {low:g} to {high:g}")
        if problems:
            raise UserError("; ".join(problems))


class MidiFrontEnd:
    """MIDI files to tokens and back.

    :param version: of the meaning of the fields; another than the last for models that have it.

    >>> MidiFrontEnd().info(rate=9.0).sizes
    (128, 64, 128, 128, 1025, 128)
    """

    def __init__(self, settings: MidiSettings | None = None, version: int = VERSIONS[-1]):
        self.settings, self.version = settings or MidiSettings(), version
        self.settings.check()

    @property
    def sounding(self) -> bool:
        """Whether parts have the notes that sound from before."""
        return self.version > 1

    @classmethod
    def from_info(cls, info: ConditionInfo) -> MidiFrontEnd:
        """From a token directory's ``midi.json`` or a checkpoint.

        Raises `UserError` unless the description is complete and agrees with itself.
        """
        given = dict(info.settings)
        version, names = given.pop("version", None), given.pop("fields", None)
        known = {f.name for f in fields(MidiSettings)}
        if info.kind != "midi" or version not in VERSIONS or names != list(MIDI_FIELDS):
            raise UserError(
                f"notes of another kind ({info.kind}, version {version}, fields {names}); this "
                f"version knows {list(MIDI_FIELDS)}, version {VERSIONS[-1]}: run rvqlm midi again"
            )
        if given.keys() != known:
            raise UserError(
                f"description of notes with {sorted(given)} where {sorted(known)} are expected; "
                "run rvqlm midi again"
            )
        front_end = cls(MidiSettings(**given), version)
        if (sizes := front_end.info(info.rate).sizes) != info.sizes:
            raise UserError(
                f"description of notes with sizes {info.sizes}, its bins make {sizes}; "
                "run rvqlm midi again"
            )
        return front_end

    def info(self, rate: float) -> ConditionInfo:
        """What a model has to know; `rate` is frames of codes per note."""
        s = self.settings
        seconds = s.seconds_bins
        places = s.positions + self.sounding
        sizes = (128, s.velocity_bins, seconds, seconds, places, seconds)
        settings = {"version": self.version, "fields": list(MIDI_FIELDS), **asdict(s)}
        return ConditionInfo("midi", sizes, rate, settings)

    # --------------------------------------------------------------------------------- tokens

    def encode(self, path: str | os.PathLike) -> np.ndarray:
        """(S, 6) int32 of a MIDI file; `UserError` when it is none or has no notes."""
        return self.tokens(read_midi(path).notes)

    def tokens(self, notes: Notes) -> np.ndarray:
        """(S, 6) int32: one step a note; S is limited by ``max_notes``."""
        s = self.settings
        if s.max_notes:
            notes = Notes(*(column[: s.max_notes] for column in notes))
        time, grid = np.maximum(notes.time, 0.0), asdict(s)
        columns = (
            notes.pitch,
            notes.velocity * s.velocity_bins // 128,
            bins(notes.duration, grid),
            bins(np.diff(time, prepend=0.0), grid),
            positions(time, grid),
            bins(notes.pedal, grid),
        )
        found = np.stack(columns, axis=1).astype(np.int32)
        old = notes.time < 0
        if old.any():
            since, release, pedal = (
                column[old] for column in (notes.time, notes.time + notes.duration, notes.pedal)
            )
            rest = pedal + np.minimum(release, 0)  # of what a released key's pedal gave
            found[old, 2:] = sounding(-since, release, rest, grid)
        return found

    def _seconds(self, ids: np.ndarray) -> np.ndarray:
        s = self.settings
        return s.seconds_unit * np.expm1(ids / s.seconds_steps)

    def notes(self, tokens: np.ndarray) -> Notes:
        """The notes that tokens (S, 6) stand for: the middle of each bin, onsets to one step.

        Raises `UserError` for another shape and for ids outside the bins.
        """
        ids = np.asarray(tokens)
        sizes = np.array(self.info(1.0).sizes)
        if ids.ndim != 2 or ids.shape[1] != len(MIDI_FIELDS) or ids.dtype.kind not in "iu":
            raise UserError(
                f"notes of shape {ids.shape}, {ids.dtype}: expected whole numbers (S, 6)"
            )
        if ids.size and ((ids < 0) | (ids >= sizes)).any():
            step, field = np.argwhere((ids < 0) | (ids >= sizes))[0]
            raise UserError(
                f"note {step}: {MIDI_FIELDS[field]} {ids[step, field]} is not below {sizes[field]}"
            )
        s, ids = self.settings, ids.astype(np.int64)
        pitch, velocity, held, onset, position, pedal = ids.T
        duration = self._seconds(held)
        step, turn = s.position_step, s.position_step * s.positions
        time, before = np.empty(len(ids)), 0.0
        margin = min(0.001, step / 4)  # a file rounds to milliseconds: stay within the step
        for n, (since, place) in enumerate(zip(self._seconds(onset).tolist(), position.tolist())):
            if place == s.positions:  # it sounds from before
                time[n] = -since
                duration[n] += since
                continue
            about = before + since
            # the turn in which the position is nearest to it
            begin = place * step + turn * max(0, round((about - (place + 0.5) * step) / turn))
            before = time[n] = min(max(about, begin + margin), begin + step - margin)
        return Notes(
            time,
            duration,
            pitch,
            np.maximum((velocity * 128 + 64) // s.velocity_bins, 1),
            self._seconds(pedal),
        )

    def decode(self, tokens: np.ndarray) -> bytes:
        """A MIDI file of one piano track that plays the tokens, a millisecond a tick.

        The pedal goes down a moment before the first key is released that it holds.
        """
        notes = _apart(self.notes(tokens))
        events = []  # (millisecond, order within it, bytes): a release before what comes after it
        for time, duration, pitch, velocity, _ in zip(*(column.tolist() for column in notes)):
            begin = max(0, round(time * 1000))
            events.append((begin, 3, bytes([0x90, pitch, velocity])))
            end = max(round((time + duration) * 1000), begin + 1)
            events.append((end, 1, bytes([0x80, pitch, 64])))
        for down, up in _pedal_presses(notes):
            events.append((round(down * 1000), 0, bytes([0xB0, 64, 127])))
            events.append((round(up * 1000), 2, bytes([0xB0, 64, 0])))
        return write_midi(events)


def _apart(notes: Notes) -> Notes:
    """Notes of which each ends before its key is struck again: a file cannot tell them apart."""
    room = np.maximum(struck_again(notes) - notes.time - 0.001, 0.001)
    return notes._replace(duration=np.minimum(notes.duration, room))


def _pedal_presses(notes: Notes) -> list[tuple[float, float]]:
    """(down, up) in seconds: what holds every note that sounds on after its release.

    All notes of a press end with it; the one that sounds on the least tells best when, as bins
    grow with the value.
    """
    held = np.flatnonzero(notes.pedal > 0)
    release = notes.time[held] + notes.duration[held]
    presses: list[tuple[float, float]] = []
    least = 0.0
    for down, more in sorted(zip(release.tolist(), notes.pedal[held].tolist())):
        if not presses or down >= presses[-1][1]:
            presses.append((max(0.0, down - 0.005), down + more))
            least = more
        elif more < least:
            presses[-1] = presses[-1][0], down + more
            least = more
    return presses
