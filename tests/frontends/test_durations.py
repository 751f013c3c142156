"""Durations of symbols from the lengths of recordings: found again where they are known."""

import numpy as np
import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import room_of
from rvqlm.frontends.durations import estimate

DURATIONS, LEAD, TAIL = np.array([0.0, 2.0, 5.0, 3.0, 8.0]), 4, 10


class Speech:
    """Recordings in which symbol s is its duration's frames of code s, in silence of code 0."""

    def __init__(self, number: int):
        rng = np.random.default_rng(0)
        self.info = CodecInfo("toy", "", 16000, 320, 1, 8)
        self.texts = [rng.integers(1, 5, rng.integers(4, 12)) for _ in range(number)]
        self.codes = []
        for text in self.texts:
            lasting = np.maximum(1, DURATIONS[text] + rng.integers(-1, 2, len(text))).astype(int)
            said = np.repeat(text, lasting)
            self.codes.append(np.concatenate([[0] * LEAD, said, [0] * TAIL])[:, None])
        self.frames = np.array([len(c) for c in self.codes])

    def read(self, row):
        return self.codes[row]


class Texts:
    def __init__(self, speech):
        self.rows, self.lengths = speech.texts, np.array([len(t) for t in speech.texts])

    def read(self, row):
        return self.rows[row][:, None]


def test_known_durations_are_found():
    speech = Speech(400)
    durations, (lead, tail) = estimate(speech, Texts(speech), 5)
    np.testing.assert_allclose(durations[1:], DURATIONS[1:], atol=0.5)
    assert abs(lead - LEAD) <= 2 and abs(tail - TAIL) <= 3 and tail > lead


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_room(kind):
    lead, room = room_of(kind(30.0), (4.0, 8.0))
    assert (float(lead), float(room)) == (4.0, 18.0)
    lead, room = room_of(kind(12.0), (4.0, 8.0))  # half is left, the silence shrinks
    assert (float(lead), float(room)) == (2.0, 6.0)
    assert float(room_of(kind(12.0), (0.0, 0.0))[1]) == 12.0
