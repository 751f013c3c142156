"""Speech by espeak-ng, from the same library as `rvqlm.frontends.espeak`.

Each call starts from a newly loaded library with both sources of its noise seeded: the same call
gives the same samples whatever came before.

    >>> audio, rate = synthesize("Good morning.", "en-gb", variant="f1")
"""

from __future__ import annotations

import ctypes
import re
import zlib

import numpy as np

from rvqlm.errors import UserError
from rvqlm.frontends import espeak

# speak_lib.h of espeak-ng 1.52
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


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
        library = espeak.fresh_library()
        library.set_voice(name)
        settings = {_RATE: rate, _VOLUME: volume, _PITCH: pitch, _RANGE: pitch_range}
        return _speak(library.lib, text.encode(), settings), library.sampling_rate


def phonemes(text: str, voice: str = "en-us") -> str:
    """IPA of `text` as espeak gives it: words apart by spaces, no punctuation, no marks of a change
    of language ("(en)")."""
    ipa = " ".join(ipa for _, ipa in espeak.clauses(text, voice))
    return " ".join(re.sub(r"\([a-z-]+\)", "", ipa).split())


def _speak(lib: ctypes.CDLL, text: bytes, settings: dict[int, int]) -> np.ndarray:
    lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    lib.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
        *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
    ]
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count: int, events) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, count * 2))
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
    return np.frombuffer(b"".join(chunks), dtype=np.int16)
