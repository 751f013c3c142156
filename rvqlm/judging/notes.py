"""Notes heard in the audio against the MIDI that it was made from, by Basic Pitch (Bittner et al.,
2022, arXiv:2203.09893): its ONNX graph, without its package, which asks for TensorFlow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rvqlm.errors import UserError
from rvqlm.frontends.midi_file import read_midi
from rvqlm.judging.judge import Clip, Column, Judge, Nothing, Options, Score
from rvqlm.judging.weights import onnx_session, packaged

RATE = 22050
TOLERANCE = 0.05
"""Seconds that an onset may be off, as in MIREX."""
_WINDOW, _HOP, _EDGE, _KEEP = 43_844, 256, 15, 141  # samples, samples a frame, frames
_LOWEST = 21  # MIDI number of the first of 88 pitches
_ONSET, _SOUNDING, _LASTS = 0.5, 0.3, 6  # thresholds, and frames that a note sounds at least


class Heard(NamedTuple):
    """Notes by onset."""

    time: np.ndarray
    """(N,) seconds"""
    pitch: np.ndarray
    """(N,) MIDI numbers"""


class NotesJudge(Judge):
    """Notes that are heard where the MIDI has them: same pitch, onset within 50 ms."""

    name = "basic-pitch"
    columns = (
        Column("f1", "higher", "of notes", percent=True),
        Column("precision", "higher", "share of the notes heard that are in the MIDI", True),
        Column("recall", "higher", "share of the notes of the MIDI that are heard", True),
    )

    def __init__(self, options: Options):
        file = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
        data, self.model = packaged(options, self.name, "basic-pitch", file)
        self._graph = onnx_session(data, self.model)
        self._input = self._graph.get_inputs()[0].name
        self._outputs = [f"StatefulPartitionedCall:{n}" for n in (1, 2)]  # notes, onsets

    def score(self, clip: Clip) -> dict[str, Score]:
        if clip.midi is None:
            raise Nothing("no MIDI that it was made from")
        path, start = clip.midi
        try:
            given = read_midi(path).notes.between(start, start + clip.sound.seconds, False)
        except UserError as e:
            raise Nothing(str(e)) from None
        if not len(given.time):
            raise Nothing("its MIDI has no note there")
        heard = self.hear(clip.sound.at(RATE))
        right = matched(Heard(given.time, given.pitch), heard)
        total = len(given.time)
        found = {
            "f1": Score(2 * right / (total + len(heard.time)), total),
            "recall": Score(right / total, total),
        }
        if len(heard.time):
            found["precision"] = Score(right / len(heard.time), len(heard.time))
        return found

    def hear(self, audio: np.ndarray) -> Heard:
        """Notes of (S,) float32 at `RATE`."""
        count = -(-len(audio) // (_KEEP * _HOP))
        audio = np.pad(audio, (_EDGE * _HOP, count * _KEEP * _HOP + _WINDOW - len(audio)))
        parts = []
        for n in range(count):  # one at a time: figures do not depend on the length
            window = audio[n * _KEEP * _HOP :][:_WINDOW]
            notes, onsets = self._graph.run(self._outputs, {self._input: window[None, :, None]})
            parts.append((notes[0, _EDGE : _EDGE + _KEEP], onsets[0, _EDGE : _EDGE + _KEEP]))
        sounding, onsets = (np.concatenate(side) for side in zip(*parts))  # (T, 88)
        padded = np.pad(onsets, ((1, 1), (0, 0)))
        peaks = (onsets >= padded[:-2]) & (onsets > padded[2:]) & (onsets >= _ONSET)
        later = np.pad(sounding, ((0, _LASTS), (0, 0)))
        lasting = np.lib.stride_tricks.sliding_window_view(later, _LASTS, axis=0)[: len(onsets)]
        time, pitch = np.nonzero(peaks & (lasting.mean(2) >= _SOUNDING))
        return Heard(time * _HOP / RATE, pitch + _LOWEST)


def matched(given: Heard, heard: Heard, tolerance: float = TOLERANCE) -> int:
    """Pairs of a given and a heard note of one pitch whose onsets are within the tolerance, as many
    as there can be with each note in one of them.

    >>> given = Heard(np.array([0.0, 0.06, 1.0]), np.array([60, 60, 62]))
    >>> matched(given, Heard(np.array([0.04, 0.1, 1.0, 1.0]), np.array([60, 60, 62, 63])))
    3
    """
    right = 0
    for pitch in np.unique(given.pitch):
        wanted, found = (np.sort(n.time[n.pitch == pitch]) for n in (given, heard))
        i = j = 0  # the earliest of both that can go together do
        while i < len(wanted) and j < len(found):
            apart = found[j] - wanted[i]
            if abs(apart) <= tolerance + 1e-9:
                right, i, j = right + 1, i + 1, j + 1
            elif apart < 0:
                j += 1
            else:
                i += 1
    return right
