"""Sources of codes that are learned in a second, and models at several stages of learning them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from token_fixtures import make_tokens

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import build_index
from rvqlm.models.factory import build_model

K, V = 2, 16
INFO = CodecInfo("source", "0" * 16, 16000, 320, K, V)
SHAPE = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 1, "dim_feedforward": 64}


def recordings(number: int, frames: int, seed: int) -> list[np.ndarray]:
    """Level 0 goes on to one of two codes, of ten in all; level 1 is mostly one code of that."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        code, rows = rng.integers(10), []
        for _ in range(frames):
            code = (3 * code + rng.choice([1, 2], p=[0.8, 0.2])) % 10
            rows.append((code, (3 * code + (rng.random() < 0.1)) % V))
        found.append(np.array(rows))
    return found


def write(folder: Path, number: int = 300, frames: int = 32) -> tuple[list, list]:
    """A token directory with a training and a test split; their codes."""
    splits = {"train": recordings(number, frames, 1), "test": recordings(12, frames, 2)}
    given = [codes for of in splits.values() for codes in of]
    make_tokens(folder, [frames] * len(given), INFO, split=None, given=given)
    with gzip.open(folder / "cuts.jsonl.gz") as file:
        lines = file.readlines()
    for split, of in splits.items():
        with gzip.open(folder / f"cuts_{split}.jsonl.gz", "wb") as file:
            file.writelines(lines[: len(of)])
        lines = lines[len(of) :]
        build_index(folder, split)
    return splits["train"], splits["test"]


def trained(codes: list[np.ndarray], steps: int, told=None, infos=None, **shape):
    """A codec-lm after so many steps on batches of the codes, with conditions by kind."""
    torch.manual_seed(0)
    model = build_model("codec-lm", {**SHAPE, **shape}, INFO, infos)
    items = [torch.from_numpy(c) for c in codes]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.permutation(len(items))[:16]
        given = {kind: [of[r] for r in rows] for kind, of in (told or {}).items()}
        out = model(Batch.from_codes([items[r] for r in rows], conditions=given))
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
    return model.eval()
