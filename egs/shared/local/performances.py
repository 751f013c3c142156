"""Manifests of recorded piano performances, of which there are MIDI files: `write_manifests`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import MonoCut

from rvqlm.audio.cuts import CutWriter, in_order
from rvqlm.audio.parts import read_recording, recording_cut, shortened
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar
from rvqlm.files import atomic_open, json_line


@dataclass
class Performance:
    """One recording, and what the corpus says of it."""

    id: str
    audio: Path
    midi: str
    """Path of its MIDI file."""
    group: str
    """What splits must not divide: the piece."""
    split: str
    """Split that the corpus puts it in, "all" where it has none."""
    about: dict = field(default_factory=dict)
    """Composer, title and the like."""


Manifests = dict[str, dict[str, RecordingSet | SupervisionSet]]


def write_manifests(
    name: str,
    performances: Iterable[Performance],
    output_dir: Path,
    cut_seconds: float = 0.0,
    jobs: int = 0,
) -> Manifests:
    """Write NAME_recordings_SPLIT and NAME_supervisions_SPLIT (.jsonl.gz) as lhotse's recipes do,
    and cuts.jsonl.gz of all splits for ``rvqlm tokenize``; what is no audio is listed in
    skipped.jsonl.

    :param cut_seconds: average length of the cuts, equal parts of a performance of 0.5 to 1.5 times
        that; 0: whole performances.
    :raises UserError: nothing is left.
    """
    found: dict[str, list[tuple[Recording, SupervisionSegment]]] = {}
    with CutWriter(str(output_dir / "cuts.jsonl.gz")) as writer:
        listed = list(performances)
        for it, result in in_order(_recording, bar(listed, "performances", len(listed)), jobs):
            if isinstance(result, BadAudio):
                writer.skip(it.id, str(result.path), result.reason)
                continue
            recording, notes = result
            writer.warn(it.id, str(it.audio), notes)
            custom = {"midi_path": it.midi, "group": it.group, "split": it.split}
            for cut in _parts(recording, cut_seconds):
                cut.custom = custom
                writer.write(cut)
            about = SupervisionSegment(
                it.id, it.id, 0.0, recording.duration, recording.channel_ids,
                custom=custom | it.about,
            )  # fmt: skip
            found.setdefault(it.split, []).append((recording, about))
        print(writer.summary(), file=sys.stderr)
    manifests: Manifests = {}
    for split, pairs in found.items():
        recordings, supervisions = zip(*pairs)
        manifests[split] = {
            "recordings": RecordingSet.from_recordings(recordings),
            "supervisions": SupervisionSet.from_segments(supervisions),
        }
        for what, manifest in manifests[split].items():
            with atomic_open(output_dir / f"{name}_{what}_{split}.jsonl.gz") as file:
                file.writelines(json_line(entry.to_dict()) for entry in manifest)
    return manifests


def _recording(it: Performance) -> tuple[Recording, list[str]]:
    return read_recording(it.id, str(it.audio))


def _parts(recording: Recording, seconds: float) -> list[MonoCut]:
    """Equal cuts of about so many seconds, which are all of a recording; one where that is 0."""
    whole = recording_cut(recording)
    if not seconds:
        return [whole]
    number = max(1, int(recording.duration / seconds + 0.5))
    edges = [recording.num_samples * n // number for n in range(number + 1)]
    parts = [shortened(whole, a, b - a) for a, b in pairwise(edges)]
    for n, part in enumerate(parts):
        part.id = f"{recording.id}-{n:03d}"
    return parts
