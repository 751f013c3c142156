"""Speech and phonemes from espeak-ng, through the library in the wheel `espeakng-loader`.

A fresh machine has no system espeak; the wheel carries library and voice data, so audio and
phonemes both come from it. espeak keeps state between calls (flutter, noise, phase, quotation
marks) that its interface cannot reset, and a sentence would sound different after another one.
Hence every call starts from a newly loaded library, which takes under a millisecond, with both
sources of noise seeded: the same call gives the same result whatever came before. The library
is global to the process and not thread-safe; calls are serialised by a lock, and parallel work
wants processes.

    >>> audio, rate = synthesize("Good morning.", "en-gb", variant="f1")
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import os
import re
import shutil
import tempfile
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from rvqlm.errors import UserError

# speak_lib.h of espeak-ng 1.52
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_PHONEMES_IPA = 0x02
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_BUFFER_MS = 500
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

_lock = threading.RLock()
_library: _Library | None = None


class _VoiceStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Voice:
    """One voice of the library: a language with its accent."""

    language: str  # tag, e.g. "en-gb-scotland"; what `synthesize` takes
    name: str  # for people, e.g. "English (Scotland)"
    identifier: str  # of the voice file, e.g. "gmw/en-GB-scotland"


def voices(language: str | None = None) -> list[Voice]:
    """All voices in alphabetical order, or those whose tag is `language` or begins with it."""
    with _lock:
        found = list(_voice_table().values())
    if language is not None:
        prefix = language.lower()
        found = [v for v in found if (v.language + "-").startswith(prefix + "-")]
    return found


def variants() -> list[str]:
    """Names of the voice variants (`f1`, `m3`, `Andy`, ...) that change the speaker of a voice."""
    return sorted(p.name for p in (_data_path() / "voices" / "!v").iterdir())


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

    `voice` is a language tag of `voices()`, `variant` one of `variants()`. `rate` is in words per
    minute (80 to 450), `pitch` and `pitch_range` go from 0 to 99; 50 is the voice's own. A range
    of 0 is a monotone. `volume` (1 to 200, in percent) acts before espeak clips: some variants
    need less than 100 to stay clean. Text without anything to say gives next to no samples. Raises
    `UserError` for an unknown voice or variant and for values out of range.
    """
    for name, value, low, high in (
        ("rate", rate, 80, 450),
        ("pitch", pitch, 0, 99),
        ("pitch_range", pitch_range, 0, 99),
        ("volume", volume, 1, 200),
    ):
        if not low <= value <= high:
            raise UserError(f"espeak {name} {value}: choose {low} to {high}")
    with _lock:
        voice_name = _voice_name(voice, variant)
        library = _fresh_library()
        library.set_voice(voice_name)
        return library.speak(text, rate, pitch, pitch_range, volume), library.sampling_rate


def phonemes(text: str, voice: str = "en-us", stress: bool = True) -> str:
    """IPA phonemes of `text`: words apart by spaces, punctuation dropped, as phonemizer gives them.

    `stress` keeps the marks of primary and secondary stress. Marks of a change of language
    ("(en)") are removed.
    """
    ipa = " ".join(ipa for _, ipa in clauses(text, voice))
    ipa = re.sub(r"\([a-z-]+\)", "", ipa)
    if not stress:
        ipa = re.sub("[ˈˌ]", "", ipa)
    return " ".join(ipa.split())


def clauses(text: str, voice: str = "en-us") -> list[tuple[str, str]]:
    """(what espeak read, its IPA as espeak gives it) for every clause of `text`."""
    with _lock:
        voice_name = _voice_name(voice, None)
        library = _fresh_library()  # a quotation before changes stresses now
        library.set_voice(voice_name)
        return library.clauses(text)


class _Library:
    """One loaded and initialised copy of the library; `close` unloads it."""

    def __init__(self, path: str):
        try:
            self._lib = ctypes.CDLL(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be loaded: {error}") from None
        lib = self._lib
        if not hasattr(lib, "espeak_ng_SetRandSeed"):
            raise UserError(f"{path}: older than espeak-ng 1.52; pip install -U espeakng-loader")
        lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        lib.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        lib.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        pointer = ctypes.POINTER(ctypes.c_char_p)
        lib.espeak_TextToPhonemes.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStruct))
        self.sampling_rate = lib.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, _BUFFER_MS, str(_data_path()).encode(), _INITIALIZE_DONT_EXIT
        )
        if self.sampling_rate <= 0:
            raise UserError(
                f"{_data_path()}: espeak-ng cannot read its voice data; "
                "pip install --force-reinstall espeakng-loader"
            )
        self._chunks: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # must outlive the library
        lib.espeak_SetSynthCallback(self._callback)
        self._voice: str | None = None

    def _collect(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    def set_voice(self, name: str) -> None:
        if name != self._voice:
            if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
                raise UserError(f"espeak-ng cannot load the voice {name!r}")
            self._voice = name

    def speak(self, text: str, rate: int, pitch: int, pitch_range: int, volume: int) -> np.ndarray:
        lib = self._lib
        settings = {_RATE: rate, _VOLUME: volume, _PITCH: pitch, _RANGE: pitch_range}
        for parameter, value in settings.items():
            lib.espeak_SetParameter(parameter, int(value), 0)
        self._chunks.clear()
        # two sources of noise: espeak's own, which loading seeds from the clock, and, for some
        # variants, rand() of the whole process; each text gets noise of its own
        data = text.encode()
        lib.espeak_ng_SetRandSeed(zlib.crc32(data))
        ctypes.CDLL(None).srand(zlib.crc32(data))
        status = lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise RuntimeError(f"espeak_Synth failed with status {status}")
        lib.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def clauses(self, text: str) -> list[tuple[str, str]]:
        data = text.encode()
        pointer = ctypes.c_char_p(data)
        start, read, ahead = _address(pointer), 0, ""
        found = []
        # the call moves the pointer past one clause, to NULL at the end; it reads a character
        # ahead, so the rest may be empty while one clause is still to come
        while _address(pointer) is not None:
            ipa = self._lib.espeak_TextToPhonemes(ctypes.byref(pointer), _CHARS_UTF8, _PHONEMES_IPA)
            at = _address(pointer)
            end = len(data) if at is None else at - start
            piece = ahead + data[read:end].decode(errors="ignore")
            # the character ahead is the first of the next clause
            piece, ahead = (piece, "") if at is None else (piece[:-1], piece[-1:])
            found.append((piece, (ipa or b"").decode()))
            read = end
        return found

    def voices(self) -> list[Voice]:
        array = self._lib.espeak_ListVoices(None)
        found, i = [], 0
        while array[i]:
            entry = array[i].contents
            # `languages` holds a priority byte before each tag; ctypes stops at the first zero
            tag = entry.languages[1:].decode()
            found.append(Voice(tag, entry.name.decode(), entry.identifier.decode()))
            i += 1
        return found

    def close(self) -> None:
        self._lib.espeak_Terminate()
        _ctypes.dlclose(self._lib._handle)


def _address(pointer: ctypes.c_char_p) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def _fresh_library() -> _Library:
    """The library in the state it has after loading; unloads the copy used before."""
    global _library
    if _library is not None:
        _library.close()
        _library = None
    _library = _Library(_own_path())
    return _library


def _own_path() -> str:
    """Path of a library file that nobody else in the process holds open.

    Where another package has loaded the wheel's file, closing ours would not unload it and its
    state would survive, so a private copy takes its place.
    """
    path = _library_path()
    return path if not _is_loaded(path) else _private_copy(path)


def _is_loaded(path: str) -> bool:
    if not hasattr(os, "RTLD_NOLOAD"):
        return True  # cannot tell; the private copy is always right
    try:
        handle = _ctypes.dlopen(path, os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    _ctypes.dlclose(handle)
    return True


@lru_cache(maxsize=1)
def _private_copy(path: str) -> str:
    folder = tempfile.mkdtemp(prefix="rvqlm-espeak-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must not take it from its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return shutil.copy(path, folder)


def _loader():
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "speech synthesis and phonemes need the wheel espeakng-loader; "
            "pip install espeakng-loader"
        ) from None
    return espeakng_loader


@lru_cache(maxsize=1)
def _library_path() -> str:
    return _loader().get_library_path()


@lru_cache(maxsize=1)
def _data_path() -> Path:
    return Path(_loader().get_data_path())


@lru_cache(maxsize=1)
def _voice_table() -> dict[str, Voice]:
    found = sorted(_fresh_library().voices(), key=lambda v: v.language)
    return {v.language.lower(): v for v in found}


@lru_cache(maxsize=1024)
def _voice_name(voice: str, variant: str | None) -> str:
    """Name that the library loads; it ignores an unknown variant silently, so check here."""
    try:
        name = _voice_table()[voice.lower()].identifier
    except KeyError:
        english = ", ".join(v.language for v in voices("en"))
        raise UserError(
            f"espeak voice {voice!r} does not exist; the English ones are {english}"
        ) from None
    if variant is None:
        return name
    if variant not in variants():
        raise UserError(
            f"espeak variant {variant!r} does not exist; choose from {', '.join(variants())}"
        )
    return f"{name}+{variant}"
