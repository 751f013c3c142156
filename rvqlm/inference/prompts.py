"""Where generation starts from: audio files, cuts of a token directory, or nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.inference.conditions import Given, text_front_end


@dataclass
class Prompt:
    """One start of a continuation."""

    codes: Tensor
    """(P, K) int64; P = 0 for none."""
    name: str
    """Stem of the sample's file name."""
    source: str | None = None
    """Path of the audio file or id of the cut; None when unprompted."""
    scales: Tensor | None = None
    """(n,) float32 of its segments, for codecs that store such beside the codes."""
    given: Given = field(default_factory=lambda: Given({}, {}))
    """What is heard beside it."""

    @property
    def kind(self) -> str:
        """What the sample is: ``continuation`` of something heard, ``conditioned`` on what is
        given beside the codes, or ``unprompted``."""
        if len(self.codes):
            return "continuation"
        return "conditioned" if self.given.values else "unprompted"


def unprompted(number: int, info: CodecInfo) -> list[Prompt]:
    empty = torch.empty(0, info.num_codebooks, dtype=torch.int64)
    return [Prompt(empty, f"unprompted-{i:02d}") for i in range(number)]


def combine(starts: list[Prompt], given: list[Given], info: CodecInfo) -> list[Prompt]:
    """Prompts with conditions: one of either for all of the other, or as many.

    :raises UserError: unequal numbers.
    """
    if not given:
        return starts or unprompted(1, info)
    if not starts:
        empty = torch.empty(0, info.num_codebooks, dtype=torch.int64)
        return [Prompt(empty, f"conditioned-{i:02d}", given=g) for i, g in enumerate(given)]
    if 1 not in (len(starts), len(given)) and len(starts) != len(given):
        raise UserError(
            f"{len(starts)} prompts and {len(given)} texts or other conditions: give one of "
            "either, or as many"
        )
    found = []
    for i in range(max(len(starts), len(given))):
        start, more = starts[i % len(starts)], given[i % len(given)]
        merged = Given({**start.given.values, **more.values}, {**start.given.about, **more.about})
        name = start.name if len(starts) > 1 else f"{start.name}-{i:02d}"
        found.append(replace(start, name=name, given=merged))
    return found


def jobs(starts: list[Prompt], many: int) -> list[tuple[int, Prompt, str]]:
    """``many`` samples of each start: number in the random stream, start, name of the file."""
    if len(starts) == 1 and starts[0].kind == "unprompted":
        return [(i, starts[0], f"unprompted-{i:02d}") for i in range(many)]
    named = [(s, s.name if many == 1 else f"{s.name}-{j:02d}") for s in starts for j in range(many)]
    return [(i, s, name) for i, (s, name) in enumerate(named)]


def from_audio(paths: list[str], codec, num_frames: int) -> list[Prompt]:
    """Encode the first ``num_frames`` frames of each file.

    :raises UserError: a file that is missing, unreadable, empty or not finite.
    """
    prompts = []
    for path in paths:
        codes, scales = encode_file(path, codec, num_frames)
        prompts.append(Prompt(codes, f"continuation-{Path(path).stem}", path, scales))
    names = [p.name for p in prompts]
    for i, prompt in enumerate(prompts):  # files of the same stem in different folders
        if names.count(prompt.name) > 1:
            prompt.name = f"{prompt.name}-{i:02d}"
    return prompts


def encode_file(path: str, codec, num_frames: int) -> tuple[Tensor, Tensor | None]:
    """The first ``num_frames`` frames of an audio file: codes (P, K) int64 and scales, if any."""
    from rvqlm.audio.load import load_file
    from rvqlm.codecs.chunking import encode_whole

    info = codec.info
    audio = load_file(
        path, info.sampling_rate, info.channels, max_samples=info.num_samples(num_frames)
    )
    codes, scales = encode_whole(codec, torch.from_numpy(audio))
    return codes[:num_frames].cpu(), scales


def from_tokens(
    manifest_dir: str,
    split: str,
    number: int,
    num_frames: int,
    model,
    seed: int,
    heard_seconds: float = 3.0,
) -> list[Prompt]:
    """The first ``num_frames`` frames of ``number`` cuts of a split (or of fewer, with a word on
    stderr), drawn by ``seed`` from those that go on for at least half as long again; from as many
    speakers as there are.

    :param num_frames: 0 for none of the cut itself, only the conditions that belong to it.
    :param heard_seconds: length of another recording of the speaker, for models that hear one.
    :raises UserError: no such split, tokens of another codec, no cut of that length, nothing to
        hear at all.
    """
    from rvqlm.data.index import TokenDataset

    info = model.info
    if not num_frames and not model.conditions:
        raise UserError(
            "--prompt-seconds 0: the model hears nothing but the codes of its prompt; leave out "
            "--manifest-dir to make audio from nothing"
        )
    dataset = TokenDataset.open(manifest_dir, split, num_codebooks=info.num_codebooks)
    dataset.info.require_same(info, f"{manifest_dir} ({split})", "the checkpoint")
    rows = np.flatnonzero(np.asarray(dataset.frames) * 2 >= 3 * num_frames)
    if not len(rows):
        raise UserError(
            f"{manifest_dir}: no cut of split {split!r} is longer than 1.5 times the prompt of "
            f"{num_frames} frames; lower --prompt-seconds"
        )
    if len(rows) < number:
        print(
            f"{manifest_dir}: only {len(rows)} cuts of split {split!r} are longer than 1.5 times "
            f"the prompt of {num_frames} frames, {number} asked for: continuing these",
            file=sys.stderr,
        )
    rows = np.random.default_rng(seed).permutation(rows).tolist()
    speakers = _speakers(manifest_dir, split)
    turn: dict[str, int] = {}  # how many cuts of a speaker came before
    order = []
    for row in rows:
        turn[speakers[row]] = turn.get(speakers[row], -1) + 1
        order.append((turn[speakers[row]], len(order), row))
    rows = [row for _, _, row in sorted(order)[:number]]
    scales = stored_scales(manifest_dir, split, info, {dataset.id_of(row) for row in rows})
    heard = conditions_of(dataset, rows, model, seed, heard_seconds)
    prompts = []
    for row, given in zip(rows, heard):
        codes = torch.from_numpy(dataset.read(row, 0, num_frames).astype(np.int64))
        name = dataset.id_of(row)
        kind = "continuation" if num_frames else "conditioned"
        prompt = Prompt(codes, f"{kind}-{name.replace('/', '_')}", name, given=given)
        if name in scales:
            prompt.scales = scales[name][: info.num_scales(num_frames)]
        prompts.append(prompt)
    return prompts


def conditions_of(dataset, rows: list[int], model, seed: int, heard_seconds: float) -> list[Given]:
    """What a model hears beside the codes of some cuts, as its token directory has it.

    :raises UserError: conditions that were made otherwise than those of the model's training.
    """
    from rvqlm.data.conditions import ConditionSet

    if not model.conditions:
        return [Given({}, {}) for _ in rows]
    prompt_frames = max(1, round(heard_seconds * float(model.info.frame_rate)))
    conditions = ConditionSet.open(
        dataset, list(model.conditions), prompt_frames=prompt_frames, seed=seed
    )
    for kind, info in model.conditions.items():
        info.require_same(conditions.infos[kind], "the checkpoint", str(dataset.directory))
    index = np.asarray(rows)
    padded = conditions.read(index, np.zeros_like(index), np.asarray(dataset.frames)[index], 0)
    found = []
    for i in range(len(rows)):
        values = {k: p.values[i, : int(p.lengths[i])].long() for k, p in padded.items()}
        values = {k: v for k, v in values.items() if len(v)}
        about = {}
        if "text" in values:
            front_end = text_front_end(model.conditions["text"])
            # phonemes are no text that could be spoken again
            key = "phonemes" if front_end.settings.type == "phonemes" else "text"
            about[key] = front_end.decode(values["text"][:, 0])
        found.append(Given(values, about))
    return found


def _speakers(manifest_dir: str, split: str) -> list[str]:
    """Speaker of every cut in row order; a cut without one is its own."""
    from rvqlm.data.index import manifest_path, read_manifest

    found = []
    for cut in read_manifest(manifest_path(manifest_dir, split)):
        named = (s.get("speaker") for s in cut.get("supervisions") or [])
        found.append(next((name for name in named if name), f"cut {cut['id']}"))
    return found
