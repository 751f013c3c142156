"""What a lhotse manifest holds: streamed once, line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from rvqlm.data.index import read_manifest
from rvqlm.data.schemas import Entry
from rvqlm.data.store import STORAGE_TYPE
from rvqlm.errors import UserError
from rvqlm.files import fits, read_json, read_yaml


def look_at_manifest(path: Path) -> tuple[str, dict]:
    """(kind, facts) of a manifest of recordings, cuts, supervisions or features.

    Raises `UserError` for a file of another sort and for one that is damaged.
    """
    kinds: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    rates: Counter[int] = Counter()
    texts = 0
    named: set[int] = set()
    codecs: Counter[str] = Counter()
    bar = tqdm(_entries(path), "manifest", unit=" entries", leave=False, disable=None)
    for number, entry in enumerate(bar, 1):
        kind = _kind(entry)
        if kind is None:
            raise UserError(
                f"{path}: entry {number} is no lhotse recording, cut, supervision or features, nor "
                "is the file anything else that rvqlm knows"
            )
        kinds[kind] += 1
        try:
            seconds[kind] += _seconds(entry)
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
            raise UserError(f"{path}: entry {number} has no duration that is a number") from None
        held = entry.get("features") if kind == "token cuts" else entry
        audio = entry.get("recording") or held
        if isinstance(audio, dict) and audio.get("sampling_rate"):
            rates[audio["sampling_rate"]] += 1
        if kind == "token cuts":
            codecs[str(held.get("type"))] += 1
        segments = entry.get("supervisions") or ([entry] if kind == "supervisions" else [])
        texts += any(s.get("text") for s in segments)
        named.update(hash(s["speaker"]) for s in segments if s.get("speaker"))
    if not kinds:
        raise UserError(f"{path}: an empty manifest")
    (kind, count), *others = kinds.most_common()
    facts: dict = {"cuts" if "cuts" in kind else kind.split()[-1]: count}
    if others:
        facts["also"] = ", ".join(f"{n} {k}" for k, n in others)
    facts["hours"] = seconds[kind] / 3600
    if rates:
        facts["sampling_rates"] = {str(rate): n for rate, n in rates.most_common(8)}
    if codecs:
        facts["codecs"] = ", ".join(codecs)
    facts["with_text"], facts["speakers"] = texts, len(named)
    return f"manifest of {kind}", facts


def _seconds(entry: dict) -> float:
    """Length of an entry; a mixed cut lasts until the last of its tracks ends."""
    if entry.get("type") != "MixedCut":
        return float(entry.get("duration") or 0.0)
    ends = (float(t.get("offset", 0.0)) + _seconds(t["cut"]) for t in entry.get("tracks") or ())
    return max(ends, default=0.0)


def _entries(path: Path) -> Iterator[dict]:
    if ".jsonl" in path.suffixes:
        yield from read_manifest(path, Entry)
        return
    if {".yaml", ".yml"} & set(path.suffixes):
        document = read_yaml(path, str(path))
    else:
        document = read_json(path, "make it again")
    if not isinstance(document, list) or not all(isinstance(d, dict) for d in document):
        held = f"a document with {[*document][:6]}" if isinstance(document, dict) else "a document"
        raise UserError(f"{path}: {held}, no manifest: nothing that rvqlm knows")
    for number, entry in enumerate(document, 1):
        try:
            yield fits(entry, Entry)
        except ValueError as e:
            raise UserError(f"{path}, entry {number}: {e}") from None


def _kind(entry: dict) -> str | None:
    """What one entry is, by the fields that lhotse writes."""
    if "sources" in entry and "num_samples" in entry:
        return "recordings"
    if entry.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut"):
        features = entry.get("features")
        if isinstance(features, dict):
            tokens = features.get("storage_type") == STORAGE_TYPE
            return "token cuts" if tokens else "cuts with features"
        if entry["type"] == "MixedCut":
            return "mixed cuts (several recordings in one)"
        return "audio cuts" if "recording" in entry else "cuts"
    if "storage_type" in entry and "num_features" in entry:
        return "features"
    if "recording_id" in entry and "start" in entry:
        return "supervisions"
    return None
