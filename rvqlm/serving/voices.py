"""Voices: recordings of a folder by name, encoded when the server starts, and again if they change.

``ann.wav`` is the voice "ann"; ``ann.txt`` beside it says what is said in it, which a model with
text and without the condition `prompt` needs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rvqlm.audio.read import AUDIO_SUFFIXES
from rvqlm.errors import UserError
from rvqlm.inference.conditions import encode_file

DEFAULT = "default"
"""The model's own choice."""


@dataclass
class Voice:
    """One recording, as codes."""

    name: str
    path: str
    codes: Tensor
    """(P, K) int64."""
    scales: Tensor | None
    text: str | None
    """What is said in it, as far as that is known."""
    stamp: tuple
    """`_stamp` of its files when they were read."""


def find_voices(folder: str) -> dict[str, Path]:
    """By name each recording of a folder.

    :raises UserError: no such folder, no recording in it, two of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--voices {folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        if path.stem in found or path.stem == DEFAULT:
            raise UserError(f"{path}: the name of a voice must be its own; rename it")
        found[path.stem] = path
    if not found:
        raise UserError(f"--voices {folder}: no recording in it")
    return found


def encode_voices(found: dict[str, Path], codec, seconds: float) -> dict[str, Voice]:
    """The first ``seconds`` of each; what cannot be used is named on stderr and left out."""
    voices = {}
    for name, path in found.items():
        try:
            voices[name] = _read(path, codec, seconds)
        except UserError as e:
            print(f"voice {name} is left out: {e}", file=sys.stderr)
    return voices


def current(voice: Voice, codec, seconds: float) -> Voice:
    """The voice as its files are now.

    :raises UserError: they have changed, and cannot be used any more.
    """
    path = Path(voice.path)
    return voice if _stamp(path) == voice.stamp else _read(path, codec, seconds)


def _read(path: Path, codec, seconds: float) -> Voice:
    stamp, text = _stamp(path), path.with_suffix(".txt")
    try:
        said = text.read_text(encoding="utf-8-sig").strip() if text.exists() else None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{text}: cannot be read ({e})") from None
    frames = max(1, round(seconds * float(codec.info.frame_rate)))
    codes, scales = encode_file(str(path), codec, frames)
    return Voice(path.stem, str(path), codes, scales, said or None, stamp)


def _stamp(path: Path) -> tuple:
    """Changes when the recording or its text does."""
    found = []
    for file in (path, path.with_suffix(".txt")):
        try:
            s = file.stat()
            found.append((s.st_mtime_ns, s.st_size, s.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)
