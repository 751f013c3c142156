"""Piano pieces made up and played by a few sums of sines, for stand-ins of corpora.

`play` writes a MIDI file with rubato (a tempo for every beat) and pedal, and the recording of it:
what sounds is read from the file, so that the two agree as those of a corpus do.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from rvqlm.frontends.midi_file import Notes, read_midi, write_midi

BEAT = 500  # ticks
_SCALE = (0, 2, 4, 5, 7, 9, 11)
_CHORDS = (0, 3, 4, 5, 0, 1, 4, 0)  # steps of the scale, a bar each
_LONGEST = 3.0  # seconds that a string sounds


def play(
    midi: Path, audio: Path, piece: int, performance: int, seconds: float, sampling_rate: int
) -> float:
    """Write one performance of a piece; returns its seconds.

    :param piece: another number, other notes; performances of one piece differ in time and touch.
    """
    midi.parent.mkdir(parents=True, exist_ok=True)
    audio.parent.mkdir(parents=True, exist_ok=True)
    midi.write_bytes(write_midi(_score(piece, performance, seconds)))
    sound = render(read_midi(midi).notes, sampling_rate)
    soundfile.write(audio, np.stack([sound, 0.8 * sound], 1), sampling_rate, "PCM_16")
    return len(sound) / sampling_rate


def _score(piece: int, performance: int, seconds: float) -> list[tuple[int, int, bytes]]:
    """Events as `write_midi` takes them: a chord a bar, broken, and a melody above it."""
    notes = np.random.default_rng(piece)
    hand = np.random.default_rng((piece, performance))
    root, pace = 48 + int(notes.integers(12)), 0.45 + 0.2 * notes.random()  # seconds a beat
    events: list[tuple[int, int, bytes]] = []

    def strike(beat: float, beats: float, step: int, loudness: int) -> None:
        pitch = root + 12 * (step // 7) + _SCALE[step % 7]
        begin = max(0, round(BEAT * beat + 12 * hand.standard_normal()))
        velocity = int(np.clip(loudness + 8 * hand.standard_normal(), 20, 120))
        events.append((begin, 2, bytes([0x90, pitch, velocity])))
        events.append((begin + round(BEAT * beats), 1, bytes([0x80, pitch, 64])))

    step = 14
    for bar in range(max(2, round(seconds / pace / 4))):
        chord = _CHORDS[bar % len(_CHORDS)]
        for n, more in enumerate((0, 4, 2, 4)):
            strike(4 * bar + n, 0.9, chord + more, 50)
        beat = 0.0
        while beat < 4:
            long = float(notes.choice([0.5, 1.0]))
            step = int(np.clip(step + notes.integers(-2, 3), 10, 20))
            strike(4 * bar + beat, 0.8 * long, step, 75)
            beat += long
        events.append((BEAT * 4 * bar + 60, 3, bytes([0xB0, 64, 127])))
        events.append((BEAT * (4 * bar + 4) - 20, 0, bytes([0xB0, 64, 0])))
        for n in range(4):
            tempo = round(1e6 * pace * (1 + 0.12 * hand.uniform(-2, 2)))
            change = b"\xff\x51\x03" + tempo.to_bytes(3, "big")
            events.append((BEAT * (4 * bar + n), -1, change))
    return events


def render(notes: Notes, sampling_rate: int) -> np.ndarray:
    """(N,) float64 below full scale: every note until it falls silent."""
    silent = np.minimum(notes.silent(), notes.time + _LONGEST)
    sound = np.zeros(round((silent.max() + 0.3) * sampling_rate))
    fade = np.linspace(1, 0, round(0.05 * sampling_rate))
    for pitch, velocity, begin, end in zip(notes.pitch, notes.velocity, notes.time, silent):
        first, count = round(begin * sampling_rate), round((end - begin) * sampling_rate)
        tone = _tone(int(pitch), sampling_rate)[: count + len(fade)] * (velocity / 127) ** 1.5
        tone[-len(fade) :] *= fade[-len(tone) :]
        sound[first : first + len(tone)] += tone[: len(sound) - first]
    return sound * 0.5 / max(1e-9, np.abs(sound).max())


@lru_cache(maxsize=128)
def _tone(pitch: int, sampling_rate: int) -> np.ndarray:
    """A string that sounds on: partials, the higher the softer and the sooner gone."""
    time = np.arange(round((_LONGEST + 0.1) * sampling_rate)) / sampling_rate
    low = 440 * 2 ** ((pitch - 69) / 12)
    partials = [k for k in range(1, 7) if k * low < sampling_rate / 2]
    attack = np.minimum(time / 0.004, 1)
    parts = (np.sin(2 * np.pi * k * low * time) * np.exp(-0.8 * k * time) / k for k in partials)
    return attack * sum(parts)
