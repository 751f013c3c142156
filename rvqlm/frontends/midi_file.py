"""Notes of a Standard MIDI File, in seconds.

Types 0 and 1, and 2 with one track; divisions in beats and in SMPTE frames; RIFF wrappers, headers
of any length and chunks of other kinds are as the standard has them. The bytes are read here, as no
library keeps all that the notes need: the channel, the order of events within a tick, and the time
of every event.

All tracks are one piece, played on the channels of their ports; drums (channel 10) are no notes. A
note ends with the next release of its key in its track, the oldest first, and at the end of the
track if there is none. The pedal (controller 64, down from 64 on) holds the notes of its channel;
"all notes off" releases keys, "reset all controllers" the pedal. Of events at one tick the order in
the file counts, so the last of several tempos does. What is odd but can be read is counted in
`MidiScore.remarks`, what is damaged is refused.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from rvqlm.data.notes import SECOND, on_grid
from rvqlm.errors import UserError

MAX_BYTES = 8 << 20
"""Larger files are refused: some 100,000 notes are 1 MB."""
_FPS = {24: Fraction(24), 25: Fraction(25), 29: Fraction(30_000, 1001), 30: Fraction(30)}
_OFF, _ON, _CONTROL = 8, 9, 11  # upper half of a status byte
_DATA_BYTES = {8: 2, 9: 2, 10: 2, 11: 2, 12: 1, 13: 1, 14: 2}
_SUSTAIN, _DOWN = 64, 64  # controller, and the least value that is "down"
_SILENCE, _RESET, _NOTES_OFF = 120, 121, 123
_CONTROLLERS = (_SUSTAIN, _SILENCE, _RESET, _NOTES_OFF)
_DRUMS = 9


class Notes(NamedTuple):
    """Notes in the order of their onsets, pitches ascending: five (S,) arrays."""

    time: np.ndarray
    """seconds from the beginning, float64, in whole 0.1 ms; below 0 of what sounds from before"""
    duration: np.ndarray
    """seconds that the key is held"""
    pitch: np.ndarray
    velocity: np.ndarray
    pedal: np.ndarray
    """seconds from the release of the key to that of the pedal, 0 without"""

    def silent(self) -> np.ndarray:
        """(S,) seconds at which each falls silent: when pedal and key are up, or, once the key is
        released, when it is struck again."""
        release = self.time + self.duration
        return np.minimum(release + self.pedal, np.maximum(struck_again(self), release))

    def between(self, start: float, end: float, sounding: bool = True) -> Notes:
        """The notes that sound in [start, end), with `start` as the beginning of time.

        :param sounding: False leaves out those that begin before it.
        """
        first, last = np.searchsorted(self.time, [start, end])
        silent = self.silent()
        old = np.flatnonzero(silent[:first] > start) if sounding else np.arange(0)
        part = Notes(*(column[np.append(old, np.arange(first, last))] for column in self))
        part.pedal[: len(old)] = silent[old] - (self.time + self.duration)[old]
        return part._replace(time=np.rint((part.time - start) * SECOND) / SECOND)


def struck_again(notes: Notes) -> np.ndarray:
    """(S,) seconds at which the key of each note is struck the next time; infinite: never."""
    order = np.lexsort((notes.time, notes.pitch))
    pitch, time = notes.pitch[order], notes.time[order]
    found = np.full(len(order), np.inf)
    found[order[:-1]] = np.where(pitch[1:] == pitch[:-1], time[1:], np.inf)
    return found


class MidiScore(NamedTuple):
    """What a file holds."""

    notes: Notes
    remarks: dict[str, int]
    """what is odd in the file, and how often; see `describe`"""

    def describe(self) -> str:
        return ", ".join(f"{what}: {count:,}" for what, count in self.remarks.items())


def read_midi(path: str | os.PathLike) -> MidiScore:
    """The notes of a MIDI file.

    Raises `UserError` when it is missing, too large, not a MIDI file, damaged, of independent
    sequences, or without notes.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; give the path of a MIDI file") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES >> 20} MiB; give a smaller MIDI file")
    if data[:4] != b"MThd" and not (data[:4] == b"RIFF" and data[8:12] == b"RMID"):
        raise UserError(f"{path}: not a MIDI file (it does not begin with MThd); give a .mid file")
    try:
        kind, division, tracks, remarks = _chunks(data)
        if kind == 2 and len(tracks) > 1:
            raise UserError(
                f"{path}: {len(tracks)} independent sequences (type 2), which have no time in "
                "common; save each as a file of type 0 or 1"
            )
        events = _Events(remarks)
        for number, track in enumerate(tracks):
            events.read(track, number)
        notes = _notes(events, _Clock(division, events.tempo_ticks, events.tempos))
    except ValueError as e:
        raise UserError(f"{path}: damaged MIDI file ({e}); write it again") from None
    score = MidiScore(notes, dict(remarks))
    if not len(notes.time):
        odd = f" ({score.describe()})" if remarks else ""
        raise UserError(f"{path}: no notes in this MIDI file{odd}; give one with notes")
    return score


# ---------------------------------------------------------------------------------- the bytes


def _chunks(data: bytes) -> tuple[int, int, list[bytes], Counter]:
    """Type, division, bytes of the tracks, remarks; `ValueError` for what is damaged."""
    at = 0
    if data[:4] == b"RIFF":
        at = 12
        while (name := data[at : at + 4]) != b"data":
            if len(name) < 4:
                raise ValueError("a RIFF file without data")
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
        at += 8
    if data[at : at + 4] != b"MThd":
        raise ValueError("the data in the RIFF file do not begin with MThd")
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    header, at = data[at + 8 : at + 8 + size], at + 8 + size
    if len(header) < 6:
        raise ValueError("cut off in its header")
    kind, count, division = (int.from_bytes(header[i : i + 2], "big") for i in (0, 2, 4))
    if kind > 2:
        raise ValueError(f"type {kind}")
    tracks: list[bytes] = []
    while len(data) - at >= 8:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        at += 8 + size
        if name == b"MTrk":
            if at > len(data):
                raise ValueError(f"track {len(tracks) + 1} of {count} is cut off")
            tracks.append(data[at - size : at])
    if len(tracks) < count:
        raise ValueError(f"{len(tracks)} of {count} tracks")
    remarks = Counter()
    if len(tracks) > count:
        remarks["tracks beyond the number in its header"] = len(tracks) - count
    return kind, division, tracks, remarks


def write_midi(events: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A file of one track: (millisecond, order within it, message) of each event, in any order."""
    track, before = bytearray(b"\0\xff\x51\x03\x07\xa1\x20"), 0  # 500,000 microseconds a beat
    for time, _, message in sorted(events):
        delta, before = time - before, time
        more = [delta >> shift & 127 | 128 for shift in (21, 14, 7) if delta >> shift]
        track += bytes([*more, delta & 127]) + message
    track += b"\0\xff\x2f\0"
    header = b"MThd\0\0\0\6\0\0\0\1\1\xf4"  # type 0, 500 ticks a beat
    return header + b"MTrk" + len(track).to_bytes(4, "big") + track


def _quantity(track: bytes, at: int) -> tuple[int, int]:
    """A number of up to four bytes, and where the next byte is."""
    value = 0
    for place in range(at, at + 4):
        value = value << 7 | track[place] & 127
        if track[place] < 128:
            return value, place + 1
    raise ValueError("a number of more than four bytes")


class _Events:
    """What matters of the tracks, in the order of the file.

    tick: of each event. what: track, channel of all ports, kind, two data bytes, packed.
    """

    def __init__(self, remarks: Counter):
        self.remarks = remarks
        self.tick, self.what = array("q"), array("q")
        self.tempo_ticks, self.tempos = array("q"), array("q")
        self.ends: list[int] = []
        """tick at which each track ends"""

    def read(self, track: bytes, number: int) -> None:
        """Add the events of a track; `ValueError` for one that is damaged."""
        at = tick = status = port = 0
        try:
            while at < len(track):
                delta, at = _quantity(track, at)
                tick += delta
                first = track[at]
                if first >= 0xF0:
                    if first not in (0xF0, 0xF7, 0xFF):
                        raise ValueError(f"status {first:#x} in track {number + 1}")
                    size, body = _quantity(track, at + 1 + (first == 0xFF))
                    kind, at = track[at + 1] if first == 0xFF else -1, body + size
                    if at > len(track):
                        raise IndexError
                    if kind == 0x2F:
                        break
                    if kind == 0x51:
                        self._tempo(tick, track[body : min(at, body + 3)])
                    elif kind == 0x21 and size:
                        port = track[body]
                    continue
                if first >= 0x80:
                    status, at = first, at + 1
                if not status:
                    raise ValueError(f"data without a status in track {number + 1}")
                kind, channel, size = status >> 4, status & 15, _DATA_BYTES[status >> 4]
                a, b = track[at], track[at + size - 1]
                at += size
                if a > 127 or b > 127:
                    raise ValueError(f"data bytes above 127 in track {number + 1}")
                if channel == _DRUMS:
                    self.remarks["drum notes left out"] += kind == _ON and b > 0
                elif kind in (_OFF, _ON) or (kind == _CONTROL and a in _CONTROLLERS):
                    self.tick.append(tick)
                    place = number << 12 | port << 4 | channel
                    self.what.append(place << 18 | kind << 14 | a << 7 | b)
            else:
                self.remarks["tracks without a mark of their end"] += 1
        except IndexError:
            raise ValueError(f"track {number + 1} is cut off") from None
        self.ends.append(tick)

    def _tempo(self, tick: int, body: bytes) -> None:
        if len(body) < 3:
            raise ValueError("a tempo of less than three bytes")
        if not any(body):
            self.remarks["tempos of 0 ignored"] += 1
            return
        self.tempo_ticks.append(tick)
        self.tempos.append(int.from_bytes(body, "big"))


class _Clock:
    """Ticks to seconds: whole numbers up to one division, as far as float64 holds them (2^53)."""

    def __init__(self, division: int, ticks: array, tempos: array):
        self.begin, self.width, self.before = np.zeros((3, 1))
        if division >> 15:  # SMPTE: frames a second, ticks a frame
            fps, ticks_a_frame = 256 - (division >> 8), division & 255
            if fps not in _FPS or not ticks_a_frame:
                raise ValueError(f"division of {fps} frames a second, {ticks_a_frame} ticks each")
            self.width[0], self.scale = _FPS[fps].denominator, _FPS[fps].numerator * ticks_a_frame
            return
        if not division:
            raise ValueError("a division of 0 ticks")
        self.scale = division * 1_000_000
        order = np.argsort(ticks, kind="stable")
        self.begin = np.concatenate([[0], np.asarray(ticks, np.int64)[order]]).astype(np.float64)
        self.width = np.concatenate([[500_000], np.asarray(tempos, np.int64)[order]])
        self.before = np.cumsum(np.diff(self.begin, prepend=0) * np.roll(self.width, 1))

    def seconds(self, ticks: np.ndarray) -> np.ndarray:
        """float64, of any shape."""
        # of several tempos at one tick the last: those before it have no length
        at = np.searchsorted(self.begin, ticks, side="right") - 1
        return (self.before[at] + (ticks - self.begin[at]) * self.width[at]) / self.scale


# ---------------------------------------------------------------------------------- the notes


def _notes(events: _Events, clock: _Clock) -> Notes:
    order = np.argsort(events.tick, kind="stable")
    ticks, what = (np.asarray(c, np.int64)[order] for c in (events.tick, events.what))
    begin, end, pedals = _pair(what.tolist())
    of = what[begin]
    last = np.array(events.ends or [0], np.int64)[of >> 30]
    never = (end < 0) | (ticks[end] > last)  # "all notes off" can come from a longer track
    events.remarks["notes without a release, ended with their track"] = int(never.sum())
    events.remarks += Counter()  # drops zeros
    release_tick = np.where(never, last, ticks[end])
    # events before the release: those of its tick too where it is the end of the track
    release = np.where(never, np.searchsorted(ticks, last, side="right"), end)
    time, until = clock.seconds(ticks[begin]), clock.seconds(release_tick)
    duration, time, pitch = until - time, on_grid(time), of >> 7 & 127
    pedal_ends = [ticks[places[-1]] for places, _ in pedals.values()]
    finish = max([*clock.seconds(np.array(pedal_ends)), until.max(initial=0.0)])
    pedal = np.zeros(len(begin))
    channels = of >> 18 & 0xFFF
    for channel, (places, down) in pedals.items():
        mine = np.flatnonzero(channels == channel)
        at = np.searchsorted(places, release[mine]) - 1  # the pedal's event before the release
        mine, at = mine[at >= 0], at[at >= 0]
        lifted = np.where(down, len(down), np.arange(len(down)))
        lifted = np.minimum.accumulate(lifted[::-1])[::-1]  # its next event that is "up"
        up = np.append(clock.seconds(ticks[places]), finish)[lifted[at]]
        pedal[mine] = np.where(np.array(down)[at], up - until[mine], 0.0)
    order = np.lexsort((pitch, time))
    return Notes(*(column[order] for column in (time, duration, pitch, of & 127, pedal)))


def _pair(what: list[int]) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[list, list]]]:
    """Places of the events at which each note begins and ends (-1: never); by channel, places of
    its pedal's events, and whether it is down from there on."""
    begin, end, after = array("q"), array("q"), array("q")
    held: dict[int, dict[int, list[int]]] = {}  # channel -> track and key -> first and last note
    pedals: dict[int, tuple[list[int], list[bool]]] = {}
    for place, event in enumerate(what):
        channel, kind, number = event >> 18 & 0xFFF, event >> 14 & 15, event >> 7 & 127
        if kind == _CONTROL:
            if number in (_SUSTAIN, _RESET):
                places, down = pedals.setdefault(channel, ([], []))
                places.append(place)
                down.append(number == _SUSTAIN and event & 127 >= _DOWN)
                continue
            for note, last in held.pop(channel, {}).values():
                while note <= last:
                    end[note] = place
                    note = after[note]
            continue
        keys, key = held.setdefault(channel, {}), event >> 30 << 7 | number
        if kind == _ON and event & 127:
            note = len(begin)
            begin.append(place)
            end.append(-1)
            after.append(1 << 62)
            if key in keys:
                after[keys[key][1]] = note
                keys[key][1] = note
            else:
                keys[key] = [note, note]
        elif key in keys:
            note, last = keys[key]
            end[note] = place
            if note == last:
                del keys[key]
            else:
                keys[key][0] = after[note]
    return np.asarray(begin, np.int64), np.asarray(end, np.int64), pedals
