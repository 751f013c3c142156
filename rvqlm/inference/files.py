"""Samples as files: a wav and a JSON of the same name that says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.files import atomic_write


def write_sample(path: Path, audio, sampling_rate: int, about: dict) -> Path:
    """Wav first, JSON last, each complete or absent.

    :param audio: (C, S) float tensor; beyond [-1, 1] it is clipped.
    """
    import soundfile

    pcm = audio.clamp(-1, 1).T.numpy()
    path.with_suffix(".json").unlink(missing_ok=True)  # of an older wav
    atomic_write(path, lambda p: soundfile.write(p, pcm, sampling_rate, "PCM_16", format="WAV"))
    text = json.dumps(about, indent=1) + "\n"
    atomic_write(path.with_suffix(".json"), lambda p: p.write_text(text, encoding="utf-8"))
    return path


def read_sample(wav: Path) -> dict | None:
    """What the JSON beside a wav says; None where there is none.

    :raises UserError: a JSON that is no description of a sample.
    """
    path = wav.with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about["kind"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{path}: not a description of a sample ({e}); delete it and generate again"
        ) from None
    return about


def read_samples(folder: Path) -> list[tuple[Path, dict]]:
    """(wav, its JSON) of the samples in a folder, newest training step first.

    A wav without its JSON (or the reverse) is left out: it was not written to the end.
    """
    found = [(wav, read_sample(wav)) for wav in sorted(folder.glob("*.wav"))]
    described = [(wav, about) for wav, about in found if about is not None]
    return sorted(described, key=lambda item: -int(item[1].get("step") or 0))  # stable
