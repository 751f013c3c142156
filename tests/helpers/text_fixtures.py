"""A token directory with texts, for the tests of the text front ends and of what uses them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from token_fixtures import make_tokens

from rvqlm.data.index import build_index

FRAMES = 10  # of every cut, unless told


def make_texts(directory: Path, frames: list[int] | None = None, **splits: list) -> None:
    """Write a token directory with a cut for each entry of `splits`, in order.

    An entry is a text, the fields of a supervision, a list of such, or None for no supervision.
    frames: of all cuts.
    """
    entries = [(split, entry) for split, listed in splits.items() for entry in listed]
    make_tokens(directory, frames or [FRAMES] * len(entries), split=None)
    with gzip.open(directory / "cuts.jsonl.gz", "rt") as file:
        cuts = [json.loads(line) for line in file]
    for cut, (_, entry) in zip(cuts, entries):
        segments = entry if isinstance(entry, list) else [] if entry is None else [entry]
        segments = [{"text": s} if isinstance(s, str) else s for s in segments]
        base = {"recording_id": cut["id"], "start": 0.0, "duration": cut["duration"], "channel": 0}
        cut["supervisions"] = [
            {"id": f"{cut['id']}-{n}", **base, **fields} for n, fields in enumerate(segments)
        ]
    for split in splits:
        with gzip.open(directory / f"cuts_{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(c) + "\n" for c, (s, _) in zip(cuts, entries) if s == split)
        build_index(directory, split)
