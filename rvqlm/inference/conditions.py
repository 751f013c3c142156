"""What samples are given beside the codes: text, MIDI, recordings to accompany or to sound like; as
flags name it, or as a token directory has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvqlm.audio.load import load_file
from rvqlm.batch import Padded
from rvqlm.cli import counted
from rvqlm.codecs.chunking import encode_whole
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.plan import Items
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd
from rvqlm.frontends.midi_file import read_midi
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.inference.speech import RECORDED, Text, Texts, with_times


@dataclass
class ConditionArgs:
    """Conditions, for models that were trained with them: one for all samples, or as many as
    prompts"""

    text: tuple[str, ...] = ()
    """What is to be said. With a prompt: its words first, then those to come. [pause 0.5s] between
    two words: so much silence."""
    text_file: str = ""
    """A text a line, instead of --text."""
    one_text: bool = False
    """The lines of --text-file are one text, and one sample."""
    language: str = ""
    """Language of the texts, for phonemes; empty: the one of most texts in training."""
    durations: tuple[str, ...] = ()
    """When the symbols are said, for models that learned it: TextGrid files with the words or
    phones, one for each text; "recorded": with --manifest-dir as in the cuts. Without it the model
    chooses."""
    midi: tuple[str, ...] = ()
    """MIDI files to play: their notes in as many seconds as are made, the prompt's included."""
    midi_start: float = 0.0
    """Second of the MIDI files at which to begin."""
    source: tuple[str, ...] = ()
    """Audio files to accompany, frame by frame."""
    voice: tuple[str, ...] = ()
    """Audio files of the speaker or instrument to sound like; the condition `prompt`."""
    voice_seconds: float = 3.0
    """How much of each --voice is given, or of another recording of the speaker where prompts come
    from --manifest-dir."""

    def texts(self) -> list[str]:
        """:raises UserError: both ways of giving texts, or a file that cannot be read."""
        if self.text and self.text_file:
            raise UserError("--text and --text-file exclude each other")
        if not self.text_file:
            return list(self.text)
        try:
            lines = Path(self.text_file).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--text-file {self.text_file}: cannot be read ({e})") from None
        if not (texts := [line.strip() for line in lines if line.strip()]):
            raise UserError(f"--text-file {self.text_file}: no text in it")
        return ["\n".join(texts)] if self.one_text else texts

    def problems(self) -> list[str]:
        """What is wrong with --durations or --one-text."""
        if self.one_text and not self.text_file:
            return ["--one-text goes with --text-file"]
        if not self.durations:
            return []
        if RECORDED not in self.durations:
            return [] if self.text or self.text_file else ["--durations FILE goes with --text"]
        if len(self.durations) > 1:
            return [f"--durations {RECORDED} is for all samples; give nothing beside it"]
        if self.text or self.text_file:
            return [f"--durations {RECORDED} are those of the cuts' own texts; leave out --text"]
        return []


class Piece(NamedTuple):
    """Of a text that is said in several."""

    words: str
    text: Text
    frames: int
    """Longest that it may take."""


@dataclass
class Given:
    """Conditions of one sample."""

    values: dict[str, Tensor] = field(default_factory=dict)
    """By kind: (S, F) int64."""
    about: dict[str, str] = field(default_factory=dict)
    """What the user gave, for the record: texts and paths by kind."""
    durations: Tensor | None = None
    """Of the text, as in `Text`."""
    times: Tensor | None = None
    pieces: tuple[Piece, ...] = ()
    """Of a text that is said in several (`rvqlm.inference.long_texts`)."""
    frames: float = 0.0
    """That its text takes, where it is known."""
    known: int = 0
    """Symbols of the text that the codes of the prompt already say."""


def encode_file(path: str, codec, num_frames: int | None) -> tuple[Tensor, Tensor | None]:
    """The first ``num_frames`` frames of an audio file, or all: codes (P, K) int64 and scales, if
    any."""
    info = codec.info
    most = None if num_frames is None else info.num_samples(num_frames)
    notes: list[str] = []
    audio = load_file(path, info.sampling_rate, info.channels, max_samples=most, notes=notes)
    if notes:
        print(f"{path}: {'; '.join(notes)}", file=sys.stderr)
    codes, scales = encode_whole(codec, torch.from_numpy(audio))
    return codes[:num_frames].cpu(), scales


def from_arguments(
    args: ConditionArgs, infos: dict[str, ConditionInfo], codec, max_frames: int
) -> list[Given]:
    """The conditions that the flags name: empty without any, else one or more samples' worth.

    :param infos: conditions of the model.
    :param codec: encodes ``source`` and ``voice``.
    :param max_frames: a source, and notes, are read up to there.
    :raises UserError: a condition that the model does not know, unequal numbers, bad files.
    """
    given: dict[str, list[tuple[str, Tensor]]] = {}
    rate = float(codec.info.frame_rate)
    said: list[Text] = []
    if texts := args.texts():
        make, language = Texts(_known("text", infos), rate), args.language or None
        if args.durations:
            if len(args.durations) != len(texts):
                raise UserError(
                    f"{counted(len(texts), 'text')} and {len(args.durations)} --durations: give "
                    "one for each"
                )
            pairs = zip(texts, args.durations)
            said = [make.placed(text, language, path) for text, path in pairs]
        else:
            said = [make.encode(text, language) for text in texts]
        given["text"] = [(text, made.ids) for text, made in zip(texts, said)]
    if args.midi:
        front_end = MidiFrontEnd.from_info(_known("midi", infos))
        span = args.midi_start, args.midi_start + max_frames / rate
        notes = [_notes(front_end, path, *span) for path in args.midi]
        given["midi"] = [*zip(args.midi, notes)]
    for kind, paths, frames in (
        ("source", args.source, max_frames),
        ("prompt", args.voice, max(1, round(args.voice_seconds * rate))),
    ):
        if paths:
            _known(kind, infos)
            given[kind] = [(path, encode_file(path, codec, frames)[0]) for path in paths]
    if not given:
        return []
    number = max(len(items) for items in given.values())
    if uneven := [k for k, items in given.items() if len(items) not in (1, number)]:
        counts = ", ".join(f"{len(given[k])} of {k}" for k in uneven)
        raise UserError(f"{counts} but {number} in all: give one for all samples or {number}")
    found = [Given() for _ in range(number)]
    for kind, items in given.items():
        for i, sample in enumerate(found):
            sample.about[kind], sample.values[kind] = items[i % len(items)]
            if kind == "midi" and args.midi_start:
                sample.about["midi_start"] = f"{args.midi_start:g}"
            if kind == "text":
                sample.durations, sample.times = said[i % len(said)][1:]
                if args.language:
                    sample.about["language"] = args.language
                if args.durations:
                    sample.about["durations"] = args.durations[i % len(said)]
    return found


def _notes(front_end: MidiFrontEnd, path: str, start: float, end: float) -> Tensor:
    """(S, 6) int64: the notes of a file that sound in [start, end) seconds; says what is left."""
    score = read_midi(path)
    part, total = score.notes.between(start, end, front_end.sounding), len(score.notes.time)
    span = f"{start:g} to {end:g} s"
    if not len(part.time):
        first, last = score.notes.time[[0, -1]]
        raise UserError(
            f"--midi {path}: none of its {total:,} notes sounds in {span}, they begin from "
            f"{first:.1f} to {last:.1f} s; give another --midi-start"
        )
    tokens = front_end.tokens(part)
    said = [f"{len(tokens):,} of {total:,} notes, those in {span}"] if len(tokens) < total else []
    if said := said + ([score.describe()] if score.remarks else []):
        print(f"{path}: {'; '.join(said)}", file=sys.stderr)
    return torch.as_tensor(tokens).long()


def conditions_of(
    dataset,
    rows: list[int],
    model,
    seed: int,
    wanted: ConditionArgs,
    max_frames: int | None = None,
) -> list[Given]:
    """What a model is given beside the codes of some cuts, as their token directory has it, with
    the times of texts as recorded.

    :param max_frames: of notes and of a source, those of the first so many frames; None: all.
    :raises UserError: conditions that were made otherwise than those of the model's training.
    """
    if not model.conditions:
        return [Given() for _ in rows]
    voice_frames = max(1, round(wanted.voice_seconds * float(model.info.frame_rate)))
    items = whole = Items.whole(np.asarray(rows), dataset.frames)
    if max_frames is not None:
        items = whole._replace(lengths=np.minimum(whole.lengths, max_frames))
    padded = {}
    for kind, info in model.conditions.items():
        aligned = kind == "text" and with_times(info, dataset, RECORDED in wanted.durations)
        conditions = ConditionSet.open(
            dataset, [kind], prompt_frames=voice_frames, seed=seed, aligned=aligned
        )
        info.require_same(conditions.infos[kind], "the checkpoint", str(dataset.directory))
        padded |= conditions.read(whole if conditions.undivided else items)
    found = []
    for i in range(len(rows)):
        values = {k: p.values[i, : int(p.lengths[i])].long() for k, p in padded.items()}
        values = {k: v for k, v in values.items() if len(v)}
        about = {}
        if "text" in values:
            front_end = TextFrontEnd.from_info(model.conditions["text"])
            # phonemes are no text that could be spoken again
            key = "phonemes" if front_end.settings.type == "phonemes" else "text"
            about[key] = front_end.decode(values["text"][:, 0])
        found.append(Given(values, about))
        times = padded["text"].times if "text" in values else None
        if times is not None and not times[i, 0].isnan().any():
            found[-1].times = times[i, : len(values["text"])]
            if RECORDED in wanted.durations:
                about["durations"] = RECORDED
    return found


def pad(items: Sequence[Given], infos: dict[str, ConditionInfo]) -> dict[str, Padded]:
    """A batch of conditions; a sample without one of a kind that others have is "not given"."""
    kinds = {kind for item in items for kind in item.values}
    padded = {}
    for kind, info in infos.items():
        if kind in kinds:
            times = None
            if kind == "text" and any(item.times is not None for item in items):
                times = [item.times for item in items]
            values = [item.values.get(kind) for item in items]
            padded[kind] = Padded.of(values, info.num_fields, times)
    return padded


def pad_durations(items: Sequence[Given]) -> Tensor | None:
    """(B, 1 + S) frames of the durations that samples fix, NaN elsewhere; None where none does."""
    if all(item.durations is None for item in items):
        return None
    size = max(len(item.values.get("text", ())) for item in items)
    found = torch.full((len(items), 1 + size), torch.nan)
    for row, item in zip(found, items):
        if item.durations is not None:
            row[: len(item.durations)] = item.durations
    return found


def _known(kind: str, infos: dict[str, ConditionInfo]) -> ConditionInfo:
    if kind not in infos:
        flag = {"prompt": "voice"}.get(kind, kind)
        raise UserError(
            f"--{flag}: the model was trained without --conditions {kind}"
            + (f", only with {', '.join(infos)}" if infos else "")
        )
    return infos[kind]
