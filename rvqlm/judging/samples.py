"""Samples to judge: wav files of `rvqlm generate`, or of anybody."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.inference.files import read_sample
from rvqlm.judging.recordings import Recording, Recordings, audio_files


@dataclass(frozen=True)
class Sample:
    """One sample, and the recording that it is one of."""

    name: str
    path: str
    about: dict
    """Its JSON; empty where it has none."""
    recording: str | None
    """Name of the recording."""

    @property
    def prompt_seconds(self) -> float:
        return float(self.about.get("prompt_seconds") or 0.0)

    def given(self, name: str) -> str | None:
        """What it was given of a kind: ``text``, ``language``, ``midi``, ``prompt`` (a voice)."""
        return (self.about.get("conditions") or {}).get(name)

    def keeps_prompt(self, recording: Recording | None, wanted: bool) -> bool:
        """Whether it is judged with the prompt that it continues."""
        if recording is not None and recording.part is not None:
            return recording.part == "whole"
        return wanted

    def text(self, recording: Recording | None, whole: bool) -> str | None:
        """What the part of it that is judged should say, where that is known."""
        if recording is not None and recording.part is not None:
            return recording.text
        if self.prompt_seconds and not whole:
            return None  # the text is that of the prompt and the rest
        return self.given("text") or (recording.text if recording else None)


def find_samples(given: Sequence[str], recordings: Recordings | None) -> list[Sample]:
    """The samples of an experiment, of folders, or files, each with its recording.

    :raises UserError: nothing there.
    """
    places = []
    for text in given:
        path = Path(text)
        if (path / "samples").is_dir() and not any(path.glob("*.wav")):
            path = path / "samples"
        if path.is_dir():
            wavs = sorted(path.glob("*.wav"))
            if not wavs:
                # other formats, and folders within: of other systems
                wavs = [Path(f) for f in audio_files(str(path), "--samples").files]
            places += wavs
        elif path.is_file():
            places.append(path)
        else:
            raise UserError(f"--samples {text}: nothing there; give a folder of samples, or wavs")
    found = []
    for path in places:
        about = read_sample(path) or {}
        text = (about.get("conditions") or {}).get("text")
        name = recordings.find(path.stem, about.get("prompt"), text) if recordings else None
        found.append(Sample(path.stem, str(path), about, name))
    lost = [sample for sample in found if sample.recording is None]
    if found and recordings is not None and len(lost) == len(found):
        raise UserError(
            f"none of {counted(len(found), 'sample')} is one of {recordings.label}, by name, "
            f"prompt or text ({found[0].name}); --unpaired compares them as two sets"
        )
    if recordings is not None and lost:
        print(
            f"without a recording: {counted(len(lost), 'sample')} ({lost[0].name}, ...)",
            file=sys.stderr,
        )
    return found


def sampling_of(samples: Sequence[Sample]) -> str:
    """The model and how it was sampled, for a file's name; ``mixed`` where samples differ.

    >>> sampling_of([])
    ''
    """
    marks = {"temperature": "t", "top_k": "k", "top_p": "p", "cfg_scale": "g"}
    found = set()
    for about in (sample.about for sample in samples):
        words = [about.get("model"), about.get("step")]
        settings = about.get("settings") or {}
        for key, value in settings.items():
            short = f"{value:g}" if isinstance(value, float) else value
            words.append(None if value is None else f"{marks.get(key, key)}{short}")
        found.add("-".join(str(word) for word in words if word is not None))
    return found.pop() if len(found) == 1 else "mixed" if found else ""
