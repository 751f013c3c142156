"""MIDI files made with mido, and their notes as a plain reader over mido's messages finds them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mido
import numpy as np

TICK = 0.001  # seconds: 500 ticks a quarter, 120 quarters a minute


def save(path: Path, tracks: Iterable[Iterable[tuple]], kind: int = 1, division: int = 500) -> None:
    """Write a file; tracks are events (tick, message) in any order, kept within a tick."""
    file = mido.MidiFile(type=kind, ticks_per_beat=division)
    for events in tracks:
        track, before = mido.MidiTrack(), 0
        for tick, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=tick - before))
            before = tick
        file.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)


def note_events(notes, channel: int = 0) -> list[tuple]:
    events = []
    for time, duration, pitch, velocity in notes:
        begin, end = round(time / TICK), round((time + duration) / TICK)
        values = {"channel": channel, "note": pitch}
        events.append((begin, mido.Message("note_on", velocity=velocity, **values)))
        events.append((end, mido.Message("note_off", **values)))
    return events


def write_midi(
    path: Path,
    notes: Iterable[tuple[float, float, int, int]],
    pedal: Iterable[tuple[float, int]] = (),
    drums: Iterable[tuple[float, float, int, int]] = (),
    tempos: Iterable[tuple[float, int]] = (),
) -> None:
    """Notes and drums are (time, duration, pitch, velocity), pedals (time, value of controller 64),
    tempos (time, microseconds of a beat): seconds in whole milliseconds, as they would be at 120
    beats a minute."""
    pedals = [
        (round(time / TICK), mido.Message("control_change", control=64, value=value))
        for time, value in pedal
    ]
    changes = [
        (round(time / TICK), mido.MetaMessage("set_tempo", tempo=tempo)) for time, tempo in tempos
    ]
    save(path, [changes, pedals + note_events(notes), note_events(drums, 9)])


def performance(seed: int, seconds: float, count: int, pedals: int = 10):
    """Random notes, no key struck while it is held, and presses of the pedal."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, round(seconds * 1000), count)) / 1000
    free: dict[int, float] = {}
    notes = []
    for time in times.tolist():
        pitch = int(rng.choice([p for p in range(21, 109) if free.get(p, 0) <= time]))
        duration = round(float(rng.exponential(0.4)), 3) + 0.02
        free[pitch] = time + duration + 0.3
        notes.append((time, duration, pitch, int(rng.integers(1, 128))))
    at = np.sort(rng.integers(0, round(seconds * 1000), 2 * pedals)) / 1000
    values = rng.integers(0, 64, 2 * pedals) + np.tile([64, 0], pedals)
    return notes, list(zip(at.tolist(), values.tolist()))


# ---------------------------------------------------------------------------------- reference


def reference_notes(path: Path) -> list[tuple[float, float, int, int, float]]:
    """(time, duration, pitch, velocity, pedal) of a file's notes, by onset and pitch: event by
    event over mido's messages, in whole numbers."""
    file = mido.MidiFile(path)
    assert file.type < 2 or len(file.tracks) == 1
    events, ends = [], []
    for number, track in enumerate(file.tracks):
        tick = port = 0
        for message in track:
            tick += message.time
            port = message.port if message.type == "midi_port" else port
            events.append((tick, number, port, message))
        ends.append(tick)
    # all ends of tracks come after what happens at their tick
    events += [(tick, number, None, None) for number, tick in enumerate(ends)]
    events.sort(key=lambda event: (event[0], event[3] is None))
    frames = file.ticks_per_beat < 0  # SMPTE: minus the frames a second, and ticks a frame
    if frames:
        fps, a_frame = 256 - (file.ticks_per_beat >> 8 & 255), file.ticks_per_beat & 255
        scale, tempo = {29: (30_000, 1001)}.get(fps, (fps, 1))
        scale *= a_frame
    else:
        scale, tempo = file.ticks_per_beat * 1_000_000, 500_000
    passed, last = 0, 0  # exact
    held, sounding, notes, down = {}, {}, [], {}
    for tick, number, port, message in events:
        passed += (tick - last) * tempo
        now, last = passed / scale, tick

        def release(note, channel, now=now):
            note["end"] = now
            if down.get(channel):
                sounding.setdefault(channel, []).append(note)

        if message is None:
            for (track, channel, _), waiting in held.items():
                while track == number and waiting:
                    release(waiting.pop(0), channel)
            continue
        if message.type == "set_tempo" and message.tempo and not frames:
            tempo = message.tempo
        if message.is_meta or getattr(message, "channel", 9) == 9:
            continue
        channel = port, message.channel
        if message.type in ("note_on", "note_off"):
            waiting = held.setdefault((number, channel, message.note), [])
            if message.type == "note_on" and message.velocity:
                values = {"pitch": message.note, "velocity": message.velocity}
                note = {"time": now, "channel": channel, "up": None, **values}
                waiting.append(note)
                notes.append(note)
            elif waiting:
                release(waiting.pop(0), channel)
        elif message.type == "control_change":
            if message.control in (120, 123):
                for (_, of, _), waiting in held.items():
                    while of == channel and waiting:
                        release(waiting.pop(0), channel)
            elif message.control in (64, 121):
                down[channel] = message.control == 64 and message.value >= 64
                if not down[channel]:
                    for note in sounding.pop(channel, []):
                        note["up"] = now
                down["last"] = now
    end = max([down.get("last", 0.0), *(note["end"] for note in notes)])
    held_on = {id(note) for waiting in sounding.values() for note in waiting}
    found = []
    for note in notes:
        up = end if id(note) in held_on else note["up"]
        pedal = 0.0 if up is None else up - note["end"]
        found.append(
            (note["time"], note["end"] - note["time"], note["pitch"], note["velocity"], pedal)
        )
    return sorted(found, key=lambda n: (round(n[0] * 10_000), n[2]))
