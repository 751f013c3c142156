"""Phonemes from espeak-ng, through the library in the wheel `espeakng-loader`.

A fresh machine has no system espeak; the wheel carries library and voice data. espeak keeps state
between calls (quotation marks, noise, phase) that its interface cannot reset, so every call starts
from a newly loaded library, which takes under a millisecond: the same call gives the same result
whatever came before. The library is global to the process and not thread-safe; calls are
serialised by a lock, and parallel work wants processes.
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
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rvqlm.errors import UserError

# speak_lib.h of espeak-ng 1.52
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
_PHONEMES_IPA = 0x02
_BUFFER_MS = 500

lock = threading.RLock()
_library: Library | None = None


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


@lru_cache(maxsize=1)
def voices() -> dict[str, str]:
    """Voice files, such as "gmw/en-GB-scotland", by language tag, "en-gb-scotland"."""
    return {tag: file for tag, file, _ in _voices()}


@lru_cache(maxsize=1)
def names() -> dict[str, str]:
    """Languages, or their tags, by what they are called: "english" is "en", "english (america)"
    "en-us"."""
    found: dict[str, str] = {}
    for tag, _, name in _voices():
        name = name.strip().lower()
        found[name] = tag.lower()
        found.setdefault(name.partition(" (")[0], tag.lower().partition("-")[0])
    return found


@lru_cache(maxsize=1)
def _voices() -> list[tuple[str, str, str]]:
    with lock:
        found = sorted(fresh_library().voices())
    return [voice for voice in found if _dictionary(*voice[:2]).is_file()]


def _dictionary(tag: str, voice: str) -> Path:
    """Of the words of a voice: three voices of the wheel have none, and speak nothing."""
    said = re.search(r"^dictionary\s+(\S+)", (data_path() / "lang" / voice).read_text(), re.M)
    return data_path() / f"{said[1] if said else tag.partition('-')[0]}_dict"


@lru_cache(maxsize=1024)
def voice_of(language: str) -> str:
    """The voice file of a language tag; `UserError` unless espeak speaks it."""
    tags = voices()
    if voice := {tag.lower(): name for tag, name in tags.items()}.get(language.lower()):
        return voice
    near = [tag for tag in tags if tag[:2] == language[:2].lower()]
    raise UserError(
        f"espeak has no language {language!r}; {'near it' if near else 'there are'}: "
        f"{', '.join(near or tags)}"
    )


def clauses(text: str, language: str = "en-us") -> list[tuple[str, str]]:
    """(what espeak read, its IPA as espeak gives it) for every clause of `text`."""
    with lock:
        voice = voice_of(language)
        library = fresh_library()
        library.set_voice(voice)
        return library.clauses(text)


class Library:
    """One loaded and initialised copy of the library; `close` unloads it."""

    def __init__(self, path: str, options: int = 0):
        """options: of espeak_Initialize, further ones."""
        try:
            self.lib = ctypes.CDLL(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be loaded: {error}") from None
        lib = self.lib
        if not hasattr(lib, "espeak_ng_SetRandSeed"):
            raise UserError(f"{path}: older than espeak-ng 1.52; pip install -U espeakng-loader")
        lib.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        pointer = ctypes.POINTER(ctypes.c_char_p)
        lib.espeak_TextToPhonemes.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStruct))
        options |= _INITIALIZE_DONT_EXIT
        self.sampling_rate = lib.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, _BUFFER_MS, str(data_path()).encode(), options
        )
        if self.sampling_rate <= 0:
            raise UserError(
                f"{data_path()}: espeak-ng cannot read its voice data; "
                "pip install --force-reinstall espeakng-loader"
            )

    def set_voice(self, name: str) -> None:
        if self.lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng cannot load the voice {name!r}")

    def clauses(self, text: str) -> list[tuple[str, str]]:
        data = text.encode()
        pointer = ctypes.c_char_p(data)
        start, read, ahead = _address(pointer), 0, ""
        found = []
        # the call moves the pointer past one clause, to NULL at the end; it reads a character
        # ahead, so the rest may be empty while one clause is still to come
        while _address(pointer) is not None:
            ipa = self.lib.espeak_TextToPhonemes(ctypes.byref(pointer), CHARS_UTF8, _PHONEMES_IPA)
            at = _address(pointer)
            end = len(data) if at is None else at - start
            piece = ahead + data[read:end].decode(errors="ignore")
            # the character ahead is the first of the next clause
            piece, ahead = (piece, "") if at is None else (piece[:-1], piece[-1:])
            found.append((piece, (ipa or b"").decode()))
            read = end
        return found

    def voices(self) -> Iterator[tuple[str, str, str]]:
        """(language tag, voice file, name)."""
        array, i = self.lib.espeak_ListVoices(None), 0
        while array[i]:
            entry = array[i].contents
            # `languages` holds a priority byte before each tag; ctypes stops at the first zero
            yield entry.languages[1:].decode(), entry.identifier.decode(), entry.name.decode()
            i += 1

    def close(self) -> None:
        self.lib.espeak_Terminate()
        _ctypes.dlclose(self.lib._handle)


def _address(pointer: ctypes.c_char_p) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def fresh_library(options: int = 0) -> Library:
    """The library in the state it has after loading; unloads the copy used before. `options` are
    `Library`'s."""
    global _library
    if _library is not None:
        _library.close()
        _library = None
    _library = Library(_own_path(), options)
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
            "phonemes need the wheel espeakng-loader; pip install espeakng-loader"
        ) from None
    return espeakng_loader


def _library_path() -> str:
    return _loader().get_library_path()


def data_path() -> Path:
    """The folder of espeak's voices and dictionaries."""
    return Path(_loader().get_data_path())
