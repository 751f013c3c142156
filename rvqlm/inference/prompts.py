"""What generation starts from: prompts of audio files or of a token directory.

A prompt is the beginning of a sequence of codes. Conditions (`rvqlm.inference.conditions`) come
beside it, or alone, for models that were trained with them.
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
from rvqlm.cli import counted
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.chunking import encode_whole
from rvqlm.data.index import TokenDataset, manifest_path, read_manifest
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.exchange.names import flat_name
from rvqlm.inference.conditions import (
    ConditionArgs,
    Given,
    conditions_of,
    encode_file,
    from_arguments,
)
from rvqlm.inference.speech import RECORDED, known_times


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
    infill: tuple[str, ...] = ()
    """Make this stretch of each prompt anew, in seconds, and keep the rest of it: 1.5-2.5. Or what
    lies between two audio files: before.wav after.wav, with --gap-seconds. For models that see both
    sides, masked and valle."""
    gap_seconds: float = 0.0
    """New audio between the two files of --infill."""
    prompts: str = ""
    """A table of samples to make, a line each: tabs between columns, which the first line names:
    name, and any of the flags of a sample (prompt, text, language, voice, midi, seconds, seed,
    temperature ...). Those that are there already are left as they are."""

    @property
    def between(self) -> bool:
        """Whether --infill names two files."""
        return len(self.infill) == 2

    def problems(self) -> list[str]:
        """What is wrong with --infill."""
        given = f"--infill {' '.join(self.infill)}"
        found = []
        if len(self.infill) > 2:
            found.append(f"{given}: give a stretch such as 1.5-2.5, or two files")
        if self.between:
            if self.prompt or self.manifest_dir:
                found.append(f"{given}: these are the prompts; leave out --prompt, --manifest-dir")
            if not 0 < self.gap_seconds < math.inf:
                found.append(f"{given}: give --gap-seconds, more than 0")
        elif self.gap_seconds:
            found.append(
                f"--gap-seconds {self.gap_seconds:g} goes with --infill before.wav after.wav"
            )
        elif self.infill and not (self.prompt or self.manifest_dir):
            found.append(f"{given}: --infill goes with --prompt or --manifest-dir, or two files")
        return found

    def gap(self, frame_rate: float) -> tuple[int, int] | None:
        """First frame of the stretch of --infill and the one behind it.

        :raises UserError: no two times, or nothing between them.
        """
        if not self.infill or self.between:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d*)?)-(\d+(?:\.\d*)?)", self.infill[0])
        start, end = (round(float(s) * frame_rate) for s in found.groups()) if found else (0, 0)
        if start >= end:
            raise UserError(
                f"--infill {self.infill[0]}: give its start and end in seconds, such as 1.5-2.5, "
                "or two audio files"
            )
        return start, end


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
    behind: str | None = None
    """Path of the file behind it, where it is another."""
    numbered: bool = False
    """Whether the name always gets a number: that of a text or other condition, or none at all."""
    shared: bool = False
    """Whether other samples begin with the same codes, so that what is computed of these alone is
    worth keeping."""
    number: int | None = None
    """Of the sample in the random stream; None: its place among those of a call."""

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
    if args.between:
        prompts = [between(*args.infill, args.gap_seconds, codec)]
        longest = len(prompts[0].codes) + prompts[0].gap + len(prompts[0].after)
    elif gap:
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


def between(before: str, after: str, seconds: float, codec) -> Prompt:
    """Two audio files with a gap of so many seconds between them, encoded as one recording that is
    silent there: so what is kept lies on the frames, and has the loudness, that it has in whole.

    :raises UserError: files that cannot be read, or shorter than a frame.
    """
    info = codec.info
    parts = []
    for path in (before, after):
        notes: list[str] = []
        audio = torch.from_numpy(load_file(path, info.sampling_rate, info.channels, notes=notes))
        if notes:
            print(f"{path}: {'; '.join(notes)}", file=sys.stderr)
        if audio.shape[1] < 2 * info.hop:
            raise UserError(f"--infill: {path} has not even two frames of {info.hop} samples")
        parts.append(audio)
    silence = parts[0].new_zeros(len(parts[0]), max(1, round(seconds * info.sampling_rate)))
    codes, scales = encode_whole(codec, torch.cat([parts[0], silence, parts[1]], 1))
    # a frame that is partly silence is made anew
    start = parts[0].shape[1] // info.hop
    end = -(-(parts[0].shape[1] + silence.shape[1]) // info.hop)
    name = f"infilling-{flat_name(Path(before).stem)}-{flat_name(Path(after).stem)}"
    whole = Prompt(codes.cpu(), name, before, scales)
    return replace(with_gap(whole, start, end, float(info.frame_rate)), behind=after)


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
