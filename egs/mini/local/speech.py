"""Speech by espeak-ng, from the same library as `rvqlm.frontends.espeak`.

Each call starts from a newly loaded library with both sources of its noise seeded: the same call
gives the same samples whatever came before.

    >>> audio, rate = synthesize("Good morning.", "en-gb", variant="f1")
    >>> audio, rate, phones = synthesize_timed("Good morning.")  # and when each phoneme is said
"""

from __future__ import annotations

import ctypes
import re
import zlib
from itertools import count as icount
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from rvqlm.errors import UserError
from rvqlm.frontends import espeak

# speak_lib.h of espeak-ng 1.52
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIST_END, _PHONEME_EVENT = 0, 7
_PHONEME_EVENTS, _EVENTS_IN_IPA = 0x01, 0x02  # when the library is initialised


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


SILENT = 0.02
"""Mean of the samples' sizes in a pause, at most, relative to the largest of all."""


class Phone(NamedTuple):
    """A phoneme in IPA, with the mark of its stress; first sample, and the one after the last."""

    ipa: str
    start: int
    end: int


def variants() -> list[str]:
    """Names of the voice variants (`f1`, `m3`, `Andy`, ...) that change the speaker of a voice."""
    return sorted(p.name for p in (espeak.data_path() / "voices" / "!v").iterdir())


def synthesize(
    text: str,
    voice: str = "en-us",
    rate: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    variant: str | None = None,
    volume: int = 100,
) -> tuple[np.ndarray, int]:
    """Speak `text`; returns mono int16 samples (S,) and their sampling rate (22050 Hz).

    `voice` is a language tag of `espeak.voices()`, `variant` one of `variants()`. `rate` is in
    words per minute (80 to 450), `pitch` and `pitch_range` go from 0 to 99; 50 is the voice's own.
    A range of 0 is a monotone. `volume` (1 to 200, in percent) acts before espeak clips: some
    variants need less than 100 to stay clean. Text without anything to say gives next to no
    samples. Raises `UserError` for an unknown voice or variant and for values out of range.
    """
    return synthesize_timed(text, voice, rate, pitch, pitch_range, variant, volume)[:2]


def synthesize_timed(
    text: str,
    voice: str = "en-us",
    rate: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    variant: str | None = None,
    volume: int = 100,
) -> tuple[np.ndarray, int, list[Phone]]:
    """`synthesize`, with the phonemes in the order in which they are said; pauses are none."""
    for name, value, low, high in (
        ("rate", rate, 80, 450),
        ("pitch", pitch, 0, 99),
        ("pitch_range", pitch_range, 0, 99),
        ("volume", volume, 1, 200),
    ):
        if not low <= value <= high:
            raise UserError(f"espeak {name} {value}: choose {low} to {high}")
    if variant is not None and variant not in variants():  # espeak would ignore it silently
        raise UserError(
            f"espeak variant {variant!r} does not exist; choose from {', '.join(variants())}"
        )
    with espeak.lock:
        name = espeak.voice_of(voice) + (f"+{variant}" if variant else "")
        library = espeak.fresh_library(_PHONEME_EVENTS | _EVENTS_IN_IPA)
        library.set_voice(name)
        settings = {_RATE: rate, _VOLUME: volume, _PITCH: pitch, _RANGE: pitch_range}
        audio, phones = _speak(library.lib, text.encode(), settings)
        return audio, library.sampling_rate, phones


def phonemes(text: str, voice: str = "en-us") -> str:
    """IPA of `text` as espeak gives it: words apart by spaces, no punctuation, no marks of a change
    of language ("(en)")."""
    ipa = " ".join(ipa for _, ipa in espeak.clauses(text, voice))
    return " ".join(re.sub(r"\([a-z-]+\)", "", ipa).split())


def _speak(
    lib: ctypes.CDLL, text: bytes, settings: dict[int, int]
) -> tuple[np.ndarray, list[Phone]]:
    lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    lib.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
        *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
    ]
    chunks: list[bytes] = []
    begun: list[tuple[int, str]] = []  # where a phoneme begins; of pauses, too, without a name

    @_CALLBACK
    def collect(samples, count: int, events) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, count * 2))
        for event in takewhile(lambda e: e.type != _LIST_END, map(events.__getitem__, icount())):
            if event.type == _PHONEME_EVENT:
                begun.append((event.sample, event.string.decode()))
        return 0

    lib.espeak_SetSynthCallback(collect)
    for parameter, value in settings.items():
        lib.espeak_SetParameter(parameter, int(value), 0)
    # two sources of noise: espeak's own, which loading seeds from the clock, and, for some
    # variants, rand() of the whole process; each text gets noise of its own
    lib.espeak_ng_SetRandSeed(zlib.crc32(text))
    ctypes.CDLL(None).srand(zlib.crc32(text))
    status = lib.espeak_Synth(text, len(text) + 1, 0, 1, 0, espeak.CHARS_UTF8, None, None)
    if status != 0:
        raise RuntimeError(f"espeak_Synth failed with status {status}")
    lib.espeak_Synchronize()
    audio = np.frombuffer(b"".join(chunks), dtype=np.int16)
    return audio, _phones(audio, begun)


def _phones(audio: np.ndarray, begun: list[tuple[int, str]]) -> list[Phone]:
    loud, phones = np.abs(audio.astype(np.int32)), []
    ends = [start for start, _ in begun[1:]] + [len(audio)]
    for (start, ipa), end in zip(begun, ends):
        if ipa:
            phones.append(Phone(ipa, start, end))
        elif phones and start < end and loud[start:end].mean() > SILENT * loud.max():
            phones[-1] = phones[-1]._replace(end=end)  # how two vowels are joined, no pause
    return phones
