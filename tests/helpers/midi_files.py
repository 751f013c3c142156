"""MIDI files made with symusic."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import symusic

TICK = 0.001  # seconds: 500 ticks a quarter, 120 quarters a minute


def write_midi(
    path: Path,
    notes: Iterable[tuple[float, float, int, int]],
    pedal: Iterable[tuple[float, int]] = (),
    drums: Iterable[tuple[float, float, int, int]] = (),
) -> None:
    """Notes and drums are (time, duration, pitch, velocity), pedals (time, value of controller 64);
    seconds in whole milliseconds."""
    score = symusic.Score(500)
    score.tempos.append(symusic.Tempo(0, 120.0))
    for events, is_drum in ((notes, False), (drums, True)):
        track = symusic.Track(is_drum=is_drum)
        for time, duration, pitch, velocity in events:
            ticks = round(time / TICK), round(duration / TICK)
            track.notes.append(symusic.Note(*ticks, pitch, velocity))
        if not is_drum:
            for time, value in pedal:
                track.controls.append(symusic.ControlChange(round(time / TICK), 64, value))
        if len(track.notes):
            score.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    score.dump_midi(str(path))


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
