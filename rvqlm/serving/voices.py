"""Voices: recordings of a folder by name, encoded once when the server starts.

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


def find_voices(folder: str) -> dict[str, tuple[Path, str | None]]:
    """By name each recording of a folder and its text.

    :raises UserError: no such folder, no recording in it, two of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--voices {folder}: no such folder")
    found: dict[str, tuple[Path, str | None]] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        if path.stem in found or path.stem == DEFAULT:
            raise UserError(f"{path}: the name of a voice must be its own; rename it")
        text = path.with_suffix(".txt")
        try:
            said = text.read_text(encoding="utf-8-sig").strip() if text.exists() else None
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{text}: cannot be read ({e})") from None
        found[path.stem] = path, said or None
    if not found:
        raise UserError(f"--voices {folder}: no recording in it")
    return found


def encode_voices(
    found: dict[str, tuple[Path, str | None]], codec, seconds: float
) -> dict[str, Voice]:
    """The first ``seconds`` of each; what cannot be used is named on stderr and left out."""
    frames = max(1, round(seconds * float(codec.info.frame_rate)))
    voices = {}
    for name, (path, text) in found.items():
        try:
            codes, scales = encode_file(str(path), codec, frames)
        except UserError as e:
            print(f"voice {name} is left out: {e}", file=sys.stderr)
            continue
        voices[name] = Voice(name, str(path), codes, scales, text)
    return voices
