"""A token directory with all that an export could lose, and what two directories have in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from lhotse import SupervisionSegment
from token_fixtures import INFO

from rvqlm.codec_info import CodecInfo
from rvqlm.exchange.directory import read_token_dir, write_token_dir
from rvqlm.exchange.items import TokenItem

AWKWARD = ["plain", "folder/a.b", "name with spaces", "日本語/é", "100%", ".hidden", "a.npy"]


def items_of(info: CodecInfo = INFO, ids=AWKWARD, frames=None, seed=0) -> list[TokenItem]:
    """Items with texts, speakers, scales, a true length that is no whole number of frames, and the
    largest code there is."""
    rng = np.random.default_rng(seed)
    items = []
    for n, id in enumerate(ids):
        T = frames[n] if frames else [1, 7, 150][n % 3]
        codes = rng.integers(0, info.codebook_size, (T, info.num_codebooks))
        codes[-1] = info.codebook_size - 1
        segment = SupervisionSegment(
            f"{id}-s", f"rec-{n}", 0.0123, 0.5, 0, "a “text”", speaker=f"s{n % 2}",
            custom={"mood": "gay"},
        )  # fmt: skip
        custom = {"num_samples": T * info.hop - 3, "group": f"g{n}", "score": 0.1 * n}
        if n % 2:
            custom["scales"] = [float(np.float32(x)) for x in rng.random(2)]
        if n % 3 == 2:
            custom["ends_recording"] = False
        items.append(TokenItem(id, codes, f"rec-{n}", n % 2, [segment.to_dict()], custom))
    return items


def write(path: Path, items=None, info: CodecInfo = INFO, splits: bool = False) -> Path:
    items = items_of(info) if items is None else items
    if splits:
        items = [replace(i, split=["train", "test"][n > 3]) for n, i in enumerate(items)]
    write_token_dir(str(path), info, items, {"path": "made up"})
    return path


def contents(path: Path, splits=(None,)) -> list[tuple]:
    """All that a token directory says, but for where its shards are."""
    return [
        (i.id, i.codes.tolist(), i.codes.dtype.name, i.recording_id, i.channel, i.supervisions,
         i.custom)
        for i in read_token_dir(path, list(splits))
    ]  # fmt: skip


def codec_of(path: Path) -> dict:
    return json.loads((path / "tokens.json").read_text())["codec"]
