"""Speech, and what models of it would make: a copy, a half right one, one at random."""

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.judging.judge import Clip, NotRun, Options, Sound

LOCAL = Path(__file__).parents[2] / "egs/mini/local"
TEXTS = (
    "Press one to listen to your messages.",
    "The number you have dialed is not in service.",
    "Please enter your password, and then press the pound key.",
    "There are seven people in this room today.",
)


_MADE: dict = {}


@lru_cache
def codec():
    return load_codec("spectral")


@lru_cache
def speech(text: str, variant: str = "f1") -> Sound:
    """A synthesised voice at 16 kHz."""
    sys.path.insert(0, str(LOCAL))
    try:
        from speech import synthesize
    finally:
        sys.path.remove(str(LOCAL))
    audio, rate = synthesize(text, "en-us", variant=variant)
    sound = Sound(audio[None].astype(np.float32) / 32768, rate)
    return Sound(sound.at(16000)[None], 16000)


@lru_cache
def made(text: str, kind: str) -> Sound:
    """What a model of codes would make of a recording: ``copy``, ``half`` (a third of its frames
    are of another sound), ``random``."""
    recording = speech(text)
    codes = encode_whole(codec(), torch.from_numpy(recording.audio)).codes
    rng = np.random.default_rng(len(text))
    wrong = {"copy": 0.0, "half": 0.35, "random": 1.1}[kind]
    other = torch.from_numpy(rng.integers(0, 1024, codes.shape))
    at = torch.from_numpy(rng.random(len(codes)) < wrong)
    codes = torch.where(at[:, None], other, codes)
    audio = decode_long(codec(), codes).numpy()[:, : recording.audio.shape[1]]
    return Sound(audio, 16000)


def clip(sound: Sound, **more) -> Clip:
    return Clip("clip", "samples", "clip", sound, **more)


def made_judge(kind, **options):
    """A judge (one for all tests), or the test is skipped with the reason why it is not here."""
    import pytest

    key = kind, str(options)
    try:
        return _MADE.setdefault(key, _MADE.get(key) or kind(Options(**options)))
    except NotRun as reason:
        pytest.skip(str(reason))
