"""Conditions beside a token directory, for the tests of several rooms."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from rvqlm.condition_info import ConditionInfo
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.text_times import TextTimes

SIZES = {"text": (40,), "midi": (88, 32, 30, 50, 64, 3)}


def make_steps(
    directory: Path, kind: str, split: str = "train", seed: int = 0, rate: float = 4.0
) -> list[np.ndarray]:
    """Write random text or notes for every cut of an index, none for each seventh; returns them:
    (S, F) arrays."""
    dataset = TokenDataset.open(directory, split)
    rng, sizes = np.random.default_rng(seed), SIZES[kind]
    rows = []
    for n, frames in enumerate(dataset.frames.tolist()):
        steps = 0 if n % 7 == 6 else max(1, round(frames / rate))
        rows.append(rng.integers(0, sizes, (steps, len(sizes))))
    write_ragged(directory / f"{kind}_{split}.bin", rows, len(sizes), dataset.fingerprint)
    info = ConditionInfo(kind, sizes, rate, {"made": "at random"})
    (directory / f"{kind}.json").write_text(json.dumps(info.to_dict()))
    return rows


def make_times(directory: Path, split: str = "train", seed: int = 0) -> list[np.ndarray | None]:
    """Write when the symbols of `make_steps` are said, not known of each fifth cut; returns them in
    seconds."""
    dataset = TokenDataset.open(directory, split)
    text = Ragged.open(directory / f"text_{split}.bin")
    rng, rows = np.random.default_rng(seed), []
    for n, steps in enumerate(text.lengths.tolist()):
        until = rng.integers(0, 2000, (steps, 2)).cumsum().reshape(steps, 2) / 10_000
        rows.append(until if steps and n % 5 != 4 else None)
    TextTimes.write(dataset, text, rows)
    return rows


def edit_cuts(directory: Path, edit, split: str = "train") -> None:
    """Let `edit(number, cut)` change every cut of a manifest, and index it again."""
    path = directory / f"cuts_{split}.jsonl.gz"
    with gzip.open(path, "rt") as file:
        cuts = [json.loads(line) for line in file]
    for n, cut in enumerate(cuts):
        edit(n, cut)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    build_index(directory, split)
