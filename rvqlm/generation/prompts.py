"""Where generation starts from: audio files, cuts of a token directory, or nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError


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


def unprompted(number: int, info: CodecInfo) -> list[Prompt]:
    empty = torch.empty(0, info.num_codebooks, dtype=torch.int64)
    return [Prompt(empty, f"unprompted-{i:02d}") for i in range(number)]


def from_audio(paths: list[str], codec, num_frames: int) -> list[Prompt]:
    """Encode the first ``num_frames`` frames of each file.

    :raises UserError: a file that is missing, unreadable, empty or not finite.
    """
    from rvqlm.audio.load import load_file
    from rvqlm.codecs.chunking import encode_whole

    prompts = []
    for path in paths:
        info = codec.info
        audio = load_file(
            path, info.sampling_rate, info.channels, max_samples=info.num_samples(num_frames)
        )
        codes, scales = encode_whole(codec, torch.from_numpy(audio))
        name = f"continuation-{Path(path).stem}"
        prompts.append(Prompt(codes[:num_frames], name, path, scales))
    names = [p.name for p in prompts]
    for i, prompt in enumerate(prompts):  # files of the same stem in different folders
        if names.count(prompt.name) > 1:
            prompt.name = f"{prompt.name}-{i:02d}"
    return prompts


def from_tokens(
    manifest_dir: str, split: str, number: int, num_frames: int, info: CodecInfo, seed: int
) -> list[Prompt]:
    """The first ``num_frames`` frames of ``number`` cuts of a split (or of fewer, with a word on
    stderr), drawn by ``seed`` from those that go on for at least half as long again; from as many
    speakers as there are.

    :raises UserError: no such split, tokens of another codec, no cut of that length.
    """
    from rvqlm.data.index import TokenDataset

    dataset = TokenDataset.open(manifest_dir, split)
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
    prompts = []
    for row in rows:
        codes = torch.from_numpy(dataset.read(row, 0, num_frames).astype(np.int64))
        name = dataset.id_of(row)
        prompt = Prompt(codes, f"continuation-{name.replace('/', '_')}", name)
        if name in scales:
            prompt.scales = scales[name][: info.num_scales(num_frames)]
        prompts.append(prompt)
    return prompts


def stored_scales(
    manifest_dir: str | Path, split: str, info: CodecInfo, ids: set[str]
) -> dict[str, Tensor]:
    """Scales (n,) float32 of the cuts `ids` of a split; empty for codecs without any."""
    from rvqlm.data.index import manifest_path, read_manifest

    found = {}
    for cut in read_manifest(manifest_path(manifest_dir, split)) if info.segment else ():
        scales = (cut.get("custom") or {}).get("scales")
        if cut["id"] in ids and scales is not None:
            found[cut["id"]] = torch.tensor(scales, dtype=torch.float32)
    return found


def _speakers(manifest_dir: str, split: str) -> list[str]:
    """Speaker of every cut in row order; a cut without one is its own."""
    from rvqlm.data.index import manifest_path, read_manifest

    found = []
    for cut in read_manifest(manifest_path(manifest_dir, split)):
        named = (s.get("speaker") for s in cut.get("supervisions") or [])
        found.append(next((name for name in named if name), f"cut {cut['id']}"))
    return found
