"""Samples as files: a wav and a JSON of the same name that says how it was made."""

from __future__ import annotations

from pathlib import Path

from rvqlm.exchange.wav import write_wav
from rvqlm.files import read_json, write_json
from rvqlm.metrics.schemas import Sample


def write_sample(path: Path, audio, sampling_rate: int, about: dict) -> Path:
    """Wav first, JSON last, each complete or absent.

    :param audio: (C, S) float tensor; beyond [-1, 1] it is clipped.
    """
    path.with_suffix(".json").unlink(missing_ok=True)  # of an older wav
    write_wav(path, [audio], sampling_rate, *audio.shape)
    write_json(path.with_suffix(".json"), about, checksum=True)
    return path


def read_sample(wav: Path) -> dict | None:
    """What the JSON beside a wav says; None where there is none.

    :raises UserError: a JSON that is no description of a sample.
    """
    path = wav.with_suffix(".json")
    if not path.exists():
        return None
    return read_json(path, "delete it and generate again", type=Sample)


def names_in(folder: Path) -> set[str]:
    """Stems of the samples in a folder, those included of which a part only is there."""
    return {path.stem for path in folder.iterdir() if path.suffix in (".wav", ".json")}


def read_samples(folder: Path) -> list[tuple[Path, dict]]:
    """(wav, its JSON) of the samples in a folder, newest training step first.

    A wav without its JSON (or the reverse) is left out: it was not written to the end.
    """
    found = [(wav, read_sample(wav)) for wav in sorted(folder.glob("*.wav"))]
    described = [(wav, about) for wav, about in found if about is not None]
    return sorted(described, key=lambda item: -(item[1].get("step") or 0))  # stable


def text_of(about: dict) -> str | None:
    """What a sample was to say, by its JSON: words, or symbols where these were given."""
    conditions = about.get("conditions") or {}
    return conditions.get("text") or conditions.get("phonemes")
