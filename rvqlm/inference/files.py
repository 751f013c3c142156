"""Samples as files: a wav and a JSON of the same name that says how it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_sample(path: Path, audio, sampling_rate: int, about: dict) -> Path:
    """Wav first, JSON last, each complete or absent.

    :param audio: (C, S) float tensor; beyond [-1, 1] it is clipped.
    """
    import soundfile

    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        soundfile.write(
            temporary, audio.clamp(-1, 1).T.numpy(), sampling_rate, "PCM_16", format="WAV"
        )
        path.with_suffix(".json").unlink(missing_ok=True)  # of an older wav
        os.replace(temporary, path)
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)
    return path
