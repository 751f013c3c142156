"""Sentences and espeak-ng's voices for corpora that stand in for real ones: `Reader`.

What is said and how it is written differ, as in real corpora: "In 1840" is "In eighteen forty".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "mini" / "local"))

import speech
from sentences import SentenceMaker
from speakers import Speaker, all_speakers

LEAD, TAIL = 0.12, 0.25  # seconds of silence
VOLUME = 40  # as synthesize.py of mini: at 100 some voices are clipped
BEGINNINGS = (
    ("", ""),
    ("In 1840 ", "In eighteen forty "),
    ("Mr. Brown said that ", "Mister Brown said that "),
    ("On the 3rd of May, ", "On the third of May, "),
)


class Reader:
    """Somebody who reads sentences, another at each call.

    :param voice: which of the speakers of the embedded corpus; women and men alternate, and 22 in
        a row are different in more than their accent.
    :param seed: of what is read.
    """

    def __init__(self, voice: int, seed: int):
        self.speaker: Speaker = all_speakers()[voice]
        self._sentences = SentenceMaker(seed, min_words=4, max_words=9)
        self._read = 0

    def next(self) -> tuple[str, str]:
        """A sentence as it is written, and as it is said."""
        written, said = BEGINNINGS[self._read % len(BEGINNINGS)]
        self._read += 1
        sentence = next(self._sentences)
        return written + sentence, said + sentence

    def say(self, text: str, path: Path, sampling_rate: int) -> float:
        """Write `text` as a mono wav of 16 bit; returns seconds."""
        who = self.speaker
        audio, rate = speech.synthesize(
            text, who.voice, who.rate, who.pitch, who.pitch_range, who.variant, VOLUME
        )
        audio = np.pad(audio, (round(LEAD * rate), round(TAIL * rate)))
        if rate != sampling_rate:
            audio = soxr.resample(audio, rate, sampling_rate)
        soundfile.write(path, audio, sampling_rate, "PCM_16")
        return len(audio) / sampling_rate
