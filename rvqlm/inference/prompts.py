"""What generation starts from: prompts of audio files or of a token directory, and conditions.

A prompt is the beginning of a sequence of codes. Conditions (text, MIDI, recordings to accompany or
to sound like) come beside it, or alone, for models that were trained with them.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvqlm.audio.load import load_file
from rvqlm.batch import Padded
from rvqlm.cli import counted
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.chunking import encode_whole
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset, manifest_path, read_manifest
from rvqlm.data.plan import Items
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.exchange.names import flat_name
from rvqlm.frontends.midi import MidiFrontEnd
from rvqlm.frontends.midi_file import read_midi
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.inference.speech import RECORDED, Text, Texts, known_times, with_times


@dataclass
class PromptArgs:
    """Prompts (none of these: unprompted)"""

    prompt: tuple[str, ...] = ()
    """Audio files to continue."""
    manifest_dir: str = ""
    """Token directory to take prompts from."""
    split: str = "test"
    """Split of the token directory."""
    num_prompts: int = 4
    """How many cuts of the split to continue, at most; drawn by --seed."""
    prompt_seconds: float = 3.0
    """How much of each prompt the model is given. 0 with --manifest-dir: none of the cuts, only the
    conditions that belong to them."""
    infill: str = ""
    """Make this stretch of each prompt anew, in seconds, and keep the rest of it: 1.5-2.5. For
    models that see both sides, masked and valle."""

    def gap(self, frame_rate: float) -> tuple[int, int] | None:
        """First frame of --infill and the one behind it.

        :raises UserError: no two times, or nothing between them.
        """
        if not self.infill:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d*)?)-(\d+(?:\.\d*)?)", self.infill)
        start, end = (round(float(s) * frame_rate) for s in found.groups()) if found else (0, 0)
        if start >= end:
            raise UserError(
                f"--infill {self.infill}: give its start and end in seconds, such as 1.5-2.5"
            )
        return start, end


@dataclass
class ConditionArgs:
    """Conditions, for models that were trained with them: one for all samples, or as many as
    prompts"""

    text: tuple[str, ...] = ()
    """What is to be said. With a prompt: its words first, then those to come. [pause 0.5s] between
    two words: so much silence."""
    text_file: str = ""
    """A text a line, instead of --text."""
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
        return texts

    def problems(self) -> list[str]:
        """What is wrong with --durations."""
        if not self.durations:
            return []
        if RECORDED not in self.durations:
            return [] if self.text or self.text_file else ["--durations FILE goes with --text"]
        if len(self.durations) > 1:
            return [f"--durations {RECORDED} is for all samples; give nothing beside it"]
        if self.text or self.text_file:
            return [f"--durations {RECORDED} are those of the cuts' own texts; leave out --text"]
        return []


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


@dataclass
class Prompt:
    """What one sample starts from."""

    codes: Tensor
    """(P, K) int64; P = 0 for none."""
    name: str
    """Stem of the sample's file name, as far as no other sample has it."""
    source: str | None = None
    """Path of the audio file or id of the cut; None when unprompted."""
    scales: Tensor | None = None
    """(n,) float32 of its segments, for codecs that store such beside the codes."""
    given: Given = field(default_factory=Given)
    """Its conditions."""
    after: Tensor | None = None
    """(A, K) int64 codes behind the gap that is to be filled; None where it is continued."""
    gap: int = 0
    """Frames of the gap."""
    numbered: bool = False
    """Whether the name always gets a number: that of a text or other condition, or none at all."""

    @property
    def kind(self) -> str:
        """What the sample is: ``continuation`` of a recording, ``infilling`` of a gap in one,
        ``conditioned`` on what is given beside the codes, or ``unprompted``."""
        if self.after is not None:
            return "infilling"
        if len(self.codes):
            return "continuation"
        return "conditioned" if self.given.values else "unprompted"


def read_prompts(
    args: PromptArgs, conditions: ConditionArgs, model, codec, new_frames: int, seed: int
) -> list[Prompt]:
    """The prompts that flags name, with their conditions; one that is empty without any.

    :param codec: encodes audio files.
    :param new_frames: longest continuation; ``source`` and ``midi`` are read up to its end.
    :param seed: of the choice among cuts.
    :raises UserError: files, cuts or conditions that are missing, unusable or not the model's.
    """
    rate = float(model.info.frame_rate)
    frames = max(1, round(args.prompt_seconds * rate)) if args.prompt_seconds else 0
    gap = args.gap(rate)
    prompts = []
    if args.prompt:
        prompts = from_audio(list(args.prompt), codec, None if gap else frames)
    elif args.manifest_dir:
        most = None if gap else frames + new_frames
        prompts = from_tokens(args, conditions, frames, model, seed, most)
    longest = max((len(prompt.codes) for prompt in prompts), default=0)
    if gap:
        prompts = [with_gap(prompt, *gap, rate) for prompt in prompts]
    else:
        longest += new_frames
    given = from_arguments(conditions, model.conditions, codec, longest)
    return combine(prompts, given, model.info)


def with_gap(prompt: Prompt, start: int, end: int, frame_rate: float) -> Prompt:
    """A whole recording as what lies before and after a gap of frames [start, end).

    :raises UserError: a recording that does not go on behind the gap.
    """
    codes = prompt.codes
    if len(codes) <= end:
        raise UserError(
            f"--infill: {prompt.source} ends after {len(codes) / frame_rate:.2f} s, and the gap "
            f"at {end / frame_rate:.2f} s; leave something behind it"
        )
    name = prompt.name.replace("continuation-", "infilling-", 1)
    return replace(prompt, name=name, codes=codes[:start], after=codes[end:], gap=end - start)


def combine(prompts: list[Prompt], given: list[Given], info: CodecInfo) -> list[Prompt]:
    """Prompts with conditions: one of either for all of the other, or as many.

    :raises UserError: unequal numbers.
    """
    no_codes = torch.empty(0, info.num_codebooks, dtype=torch.int64)
    if not given:
        return prompts or [Prompt(no_codes, "unprompted", numbered=True)]
    prompts = prompts or [Prompt(no_codes, "conditioned")]
    if 1 not in (len(prompts), len(given)) and len(prompts) != len(given):
        raise UserError(
            f"{len(prompts)} prompts and {len(given)} texts or other conditions: give one of "
            "either, or as many"
        )
    found = []
    for i in range(max(len(prompts), len(given))):
        prompt, more = prompts[i % len(prompts)], given[i % len(given)]
        own = prompt.given
        about = own.about
        if "text" in more.values:  # instead of the recording's
            about = {k: v for k, v in about.items() if k not in ("text", "phonemes")}
            own = replace(own, durations=more.durations, times=more.times)
        merged = replace(own, values=own.values | more.values, about=about | more.about)
        found.append(replace(prompt, given=merged, numbered=len(prompts) == 1))
    return found


# ---------------------------------------------------------------------------------- prompts


def from_audio(paths: list[str], codec, num_frames: int | None) -> list[Prompt]:
    """Encode the first ``num_frames`` frames of each file, or all of it.

    :raises UserError: a file that is missing, unreadable, empty or not finite.
    """
    prompts = []
    for path in paths:
        codes, scales = encode_file(path, codec, num_frames)
        name = f"continuation-{flat_name(Path(path).stem)}"
        prompts.append(Prompt(codes, name, path, scales))
    return prompts


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


def from_tokens(
    args: PromptArgs,
    wanted: ConditionArgs,
    num_frames: int,
    model,
    seed: int,
    max_frames: int | None = None,
) -> list[Prompt]:
    """The first ``num_frames`` frames of ``args.num_prompts`` cuts of a split (or of fewer, with a
    word on stderr), drawn by ``seed`` from those that continue for at least half as long again;
    from as many speakers as there are.

    :param wanted: how long another recording of the speaker is, for models that are given one, and
        whether the symbols of texts are said as recorded or, but for those in the prompt, as the
        model chooses.
    :param num_frames: 0 for none of the cut itself, only the conditions that belong to it.
    :param max_frames: conditions that have times are read up to there; None: all of them.
    :raises UserError: no such split, tokens of another codec, no cut of that length, nothing to
        start from at all.
    """
    info, manifest_dir, split = model.info, args.manifest_dir, args.split
    gap = args.gap(float(info.frame_rate))
    if not num_frames and not model.conditions:
        raise UserError(
            "--prompt-seconds 0: the model is given nothing but the codes of its prompt; leave out "
            "--manifest-dir to make unprompted audio"
        )
    text, recorded = model.conditions.get("text"), RECORDED in wanted.durations
    if recorded and (text is None or not text.aligned):
        raise UserError(
            f"--durations {RECORDED} needs a model that was trained on texts with times (rvqlm "
            "align), and this one was not"
        )
    dataset = TokenDataset.open(manifest_dir, split, num_codebooks=info.num_codebooks)
    dataset.info.require_same(info, f"{manifest_dir} ({split})", "the checkpoint")
    if gap:
        least, long, flag = gap[1] + 1, "long enough to go on behind --infill", "--infill"
    else:
        least, flag = -(-3 * num_frames // 2), "--prompt-seconds"
        long = f"longer than 1.5 times the prompt of {num_frames} frames"
    rows = np.flatnonzero(np.asarray(dataset.frames) >= least)
    if not len(rows):
        raise UserError(f"{manifest_dir}: no cut of split {split!r} is {long}; lower {flag}")
    if len(rows) < args.num_prompts:
        print(
            f"{manifest_dir}: only {counted(len(rows), 'cut')} of split {split!r} "
            f"{'is' if len(rows) == 1 else 'are'} {long}, {args.num_prompts} asked for: taking "
            "what there is",
            file=sys.stderr,
        )
    rows = np.random.default_rng(seed).permutation(rows).tolist()
    speakers = _speakers(manifest_dir, split)
    rows = in_turns(rows, [speakers[row] for row in rows])[: args.num_prompts]
    scales = stored_scales(manifest_dir, split, info, {dataset.id_of(row) for row in rows})
    conditions = conditions_of(dataset, rows, model, seed, wanted, max_frames)
    lost = sum("text" in given.values and given.times is None for given in conditions)
    if lost and text.aligned and (num_frames or recorded):
        print(
            f"{manifest_dir}: {lost} of {counted(len(rows), 'cut')} without times (rvqlm align): "
            "when their words are said, those of a prompt included, the model guesses",
            file=sys.stderr,
        )
    if not recorded:
        known, rest = gap or (num_frames, math.inf)
        for given in conditions:
            if given.times is not None:
                given.times = known_times(given.times, known, rest)
    prompts = []
    for row, given in zip(rows, conditions):
        codes = dataset.read(row) if gap else dataset.read(row, 0, num_frames)
        codes = torch.from_numpy(codes.astype(np.int64))
        name = dataset.id_of(row)
        kind = "continuation" if num_frames else "conditioned"
        prompt = Prompt(codes, f"{kind}-{flat_name(name)}", name, given=given)
        if name in scales:
            prompt.scales = scales[name][: info.num_scales(len(codes))]
        prompts.append(prompt)
    return prompts


def in_turns(items: Sequence, speakers: Sequence[str], before: Sequence[str] = ()) -> list:
    """Items reordered so that the second of a speaker comes after the first of everybody.

    :param before: speakers of items that come before all of these.

    >>> in_turns([1, 2, 3], ["ann", "ann", "bob"])
    [1, 3, 2]
    """
    count = Counter(before)
    turns = []
    for i, speaker in enumerate(speakers):
        turns.append((count[speaker], i))
        count[speaker] += 1
    return [items[i] for _, i in sorted(turns)]


def _speakers(manifest_dir: str, split: str) -> list[str]:
    """Speaker of every cut in row order; a cut without one is its own."""
    found = []
    for cut in read_manifest(manifest_path(manifest_dir, split)):
        named = (s.get("speaker") for s in cut.get("supervisions") or [])
        found.append(next((name for name in named if name), f"cut {cut['id']}"))
    return found


# ------------------------------------------------------------------------------- conditions


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
