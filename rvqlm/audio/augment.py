"""``rvqlm audio augment``: copies of other speed, tempo or pitch, linked to their originals.

A copy is a FLAC file (24 bit) of its own and a cut over it:

- its id is that of the original with what was done: ``ID-speed0.9``, ``ID-tempo1.1-pitch-2``;
- ``augmented_from`` (custom field) is the original's id, ``group`` that of the original or else its
  recording's id: `rvqlm split` keeps them together, with copies in the training set only;
- supervisions are scaled in time with their words. Where speed or pitch changed, so did the voice:
  the speaker becomes ``NAME-speed0.9`` or ``NAME-pitch-2``, another one to condition on.

Files that are complete, and made in the same way from the same part of the same audio, are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from lhotse import SupervisionSegment
from lhotse.augmentation import Volume
from lhotse.cut import Cut
from lhotse.utils import TimeSpan, fastcopy, overspans

from rvqlm.audio.augment_signal import change
from rvqlm.audio.config import AugmentConfig
from rvqlm.audio.cuts import (
    CutWriter,
    count_cuts,
    group_of,
    in_order,
    make_folder,
    read_cuts,
    with_custom,
)
from rvqlm.audio.parts import cut_blocks, file_recording, recording_cut, source_path
from rvqlm.audio.prepare import CANCELLED, AudioConfig, Folding
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar
from rvqlm.errors import UserError
from rvqlm.files import atomic_write

VERSION = 1  # of the samples that a change gives: another one makes all files anew


@dataclass(frozen=True)
class Change:
    """What is done to one copy."""

    speed: float = 1.0
    tempo: float = 1.0
    semitones: float = 0.0

    @property
    def factor(self) -> float:
        """How many times shorter the copy is."""
        return self.speed * self.tempo

    @property
    def name(self) -> str:
        """``-speed0.9-tempo1.1-pitch+2``, without what is as it was."""
        return (
            f"-speed{self.speed:g}" * (self.speed != 1)
            + f"-tempo{self.tempo:g}" * (self.tempo != 1)
            + f"-pitch{self.semitones:+g}" * (self.semitones != 0)
        )

    @property
    def voice(self) -> str:
        """What changes a voice: the name without the tempo."""
        return replace(self, tempo=1.0).name


def changes(config: AugmentConfig) -> list[Change]:
    """The copies that are made of each cut.

    >>> [c.name for c in changes(AugmentConfig("", "", "", tempos=(0.9,), semitones=(-2, 2)))]
    ['-tempo0.9', '-pitch-2', '-pitch+2']
    """
    if config.combine == "single":
        return [
            *(Change(speed=v) for v in config.speeds),
            *(Change(tempo=v) for v in config.tempos),
            *(Change(semitones=v) for v in config.semitones),
        ]
    every = itertools.product(
        (1.0, *config.speeds), (1.0, *config.tempos), (0.0, *config.semitones)
    )
    return [Change(*values) for values in every][1:]


def augment(config: AugmentConfig) -> str:
    """Write copies and manifest and return the summary; see `AugmentConfig`.

    Cuts that cannot be read are listed as skipped; memory grows by 100 bytes a cut and copy, to
    find ids that occur twice.
    """
    total = count_cuts(config.input)
    made = lowered = 0
    make_folder(Path(config.audio_dir), "--audio-dir")
    with CutWriter(config.out, config.input) as writer:
        cuts = _unique(bar(read_cuts(config.input, skip=writer.skip), "augment", total), config)
        for cut, result in in_order(partial(_copies, config=config), cuts, config.jobs):
            if isinstance(result, BadAudio):
                writer.skip(cut.id, result.path, result.reason)
                continue
            copies, heard = result
            writer.warn(cut.id, source_path(cut.recording), heard.notes)
            if heard.folding.cancelled:
                writer.note(cut.id, f"to be skipped by rvqlm tokenize: {CANCELLED}")
            if config.keep_original:
                writer.write(with_custom(cut, group=group_of(cut)))
            for copy in copies:
                writer.write(copy)
                made += 1
                lowered += bool(copy.recording.transforms)
    return writer.summary(
        f"{made:,} {'copy' if made == 1 else 'copies'} in {config.audio_dir}"
        + ("" if config.keep_original else ", originals left out")
        + (f"; {lowered} stored at a lower level, with a gain, to avoid clipping" * bool(lowered))
    )


def _unique(cuts: Iterator[Cut], config: AugmentConfig) -> Iterator[Cut]:
    """The cuts, none of which, nor a copy of it, has the id of another: their files would be the
    same."""
    seen, names = set(), ["", *(one.name for one in changes(config))]
    for cut in cuts:
        for name in names:
            if (key := hash(cut.id + name)) in seen:
                raise UserError(
                    f"--input {config.input}: two cuts, copies included, would have the id "
                    f"{cut.id + name!r}; rename or leave out one of them"
                )
            seen.add(key)
        yield cut


def _copies(cut: Cut, config: AugmentConfig) -> tuple[list[Cut], _Heard]:
    """The copies, and what was noticed of the cut."""
    heard = _Heard(Folding(1, AudioConfig(), source_path(cut.recording)))
    return [_copy(cut, one, config, heard) for one in changes(config)], heard


@dataclass
class _Heard:
    """What is noticed of a cut as far as it has to be read: not where all copies are there."""

    folding: Folding
    notes: list[str] | None = None
    """what is missing or damaged; None if nothing was read"""

    def blocks(self, cut: Cut, config: AugmentConfig) -> Iterator[np.ndarray]:
        """The audio of the cut, (C, n)."""
        self.notes = []
        return self.folding.watch(cut_blocks(cut, config.outside, self.notes))


def _copy(cut: Cut, one: Change, config: AugmentConfig, heard: _Heard) -> Cut:
    """Render one copy unless it is there already; the cut over it."""
    id, rate = cut.id + one.name, cut.recording.sampling_rate
    if cut.num_channels > 8 or rate > 655350:
        why = f"{cut.num_channels} channels of {rate} Hz do not fit in a FLAC file"
        raise BadAudio(source_path(cut.recording), why)
    path = copy_path(config.audio_dir, id)
    samples, scale = _render(cut, one, config, path, heard)
    recording = file_recording(id, str(path), rate, cut.num_channels, samples)
    if scale != 1:
        recording.transforms = [Volume(1 / scale)]
    whole = recording_cut(recording)
    custom = {**(cut.custom or {}), "group": group_of(cut), "augmented_from": cut.id}
    supervisions = [_scaled(s, one, cut, whole) for s in cut.supervisions]
    return fastcopy(whole, supervisions=supervisions, custom=custom)


def _scaled(supervision: SupervisionSegment, one: Change, cut: Cut, copy: Cut):
    """A supervision of `cut` in the time, the channels and the voice of its copy."""
    moved = supervision.perturb_speed(one.factor, copy.sampling_rate, affix_id=False)
    if overspans(TimeSpan(0, cut.duration), supervision):
        moved = moved.trim(copy.duration)  # rounding may have moved its end by a sample
    channel = moved.channel
    if isinstance(cut.channel, list):  # channels of a copy are counted from 0
        number = {c: n for n, c in enumerate(cut.channel)}
        channel = [number[c] for c in channel] if isinstance(channel, list) else number[channel]
    else:
        channel = copy.channel
    return fastcopy(
        moved,
        id=supervision.id + one.name,
        recording_id=copy.recording.id,
        channel=channel,
        speaker=None if moved.speaker is None else moved.speaker + one.voice,
    )


def copy_path(folder: str, id: str) -> Path:
    """Where a copy lies: below the folder by its id, what a path cannot hold replaced."""
    parts = [p if p not in ("", ".", "..") else "_" for p in id.replace("\0", "_").split("/")]
    parts = [p if len(p.encode(errors="replace")) <= 200 else p[:40] for p in parts]
    name = "/".join(parts)
    if name != id:  # two ids must not become one file
        name += (
            "-" + hashlib.blake2b(id.encode(errors="surrogateescape"), digest_size=6).hexdigest()
        )
    return Path(folder) / f"{name}.flac"


def _render(
    cut: Cut, one: Change, config: AugmentConfig, path: Path, heard: _Heard
) -> tuple[int, float]:
    """Make the file unless it is there; (samples, the power of two that it is scaled by)."""
    key = _key(cut, one, config)
    if (there := _complete(path, key, cut)) is not None:
        return there
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, scale = 0, 1.0

    def write(to: Path) -> None:
        nonlocal samples, scale
        samples, peak = _write(to, cut, one, config, f"{key} {scale}", scale, heard)
        if not samples:
            raise BadAudio(source_path(cut.recording), "too short for a copy")
        if peak > 1:  # rare: quieter on disk, and again with room for the largest sample
            scale = 2.0 ** -math.ceil(math.log2(peak) + 1e-6)
            samples, peak = _write(to, cut, one, config, f"{key} {scale}", scale, heard)

    atomic_write(path, write)
    return samples, scale


def _write(
    path: Path,
    cut: Cut,
    one: Change,
    config: AugmentConfig,
    comment: str,
    scale: float,
    heard: _Heard,
) -> tuple[int, float]:
    """Samples and their peak before they are scaled."""
    rate, channels, samples, peak = cut.recording.sampling_rate, cut.num_channels, 0, 0.0
    try:
        file = soundfile.SoundFile(path, "w", rate, channels, subtype="PCM_24", format="FLAC")
    except RuntimeError as e:
        raise UserError(
            f"{path}: no FLAC file of {channels} x {rate} Hz can be written: {e}"
        ) from None
    changed = (one.speed, one.tempo, one.semitones, config.n_fft, config.hop_length)
    with file:
        file.comment = comment
        for block in change(heard.blocks(cut, config), rate, *changed):
            if not block.shape[1]:
                continue
            peak = max(peak, float(np.abs(block).max()))
            try:
                file.write((block * scale).T)
            except RuntimeError as e:
                raise UserError(f"{path}: writing failed ({e}); is the disk full?") from None
            samples += block.shape[1]
    return samples, peak


def _key(cut: Cut, one: Change, config: AugmentConfig) -> str:
    """A hash of all that the samples of a copy depend on, but for the contents of the source."""
    recording = cut.recording.to_dict()
    for field in ("id", "duration"):
        recording.pop(field, None)
    what = [VERSION, recording, cut.start, cut.duration, cut.channel]
    what += [one.speed, one.tempo, one.semitones]
    if one.tempo != 1 or one.semitones:  # the vocoder has work
        what += [config.n_fft, config.hop_length]
    text = json.dumps(what, sort_keys=True, default=str).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _complete(path: Path, key: str, cut: Cut) -> tuple[int, float] | None:
    """(samples, scale) of a file that an earlier run made of the same, and no older than that."""
    source = cut.recording.sources[0]
    try:
        if source.type == "file" and os.stat(source.source).st_mtime > path.stat().st_mtime:
            return None
        with soundfile.SoundFile(path) as file:
            found, scale = file.comment.split()
            return (file.frames, float(scale)) if found == key else None
    except (OSError, RuntimeError, ValueError):
        return None
