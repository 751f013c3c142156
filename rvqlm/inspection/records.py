"""The small files that rvqlm itself leaves beside tokens, models and samples, by their names."""

from __future__ import annotations

import json
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rvqlm.condition_info import KINDS, ConditionInfo
from rvqlm.data.ragged import MAGIC, Ragged
from rvqlm.errors import UserError
from rvqlm.files import read_json, read_lines, read_yaml

REMEDY = "make it again with the command that wrote it"


def look_at_record(path: Path, start: bytes) -> tuple[str, dict] | None:
    """(kind, facts) of such a file; None for any other.

    :param start: its first bytes.
    """
    if start.startswith(MAGIC):
        return _column(path)
    name = path.name.lower()
    if name.endswith("skipped.jsonl") or name == "texts_unmatched.jsonl":
        return _left_out(path)
    if name in [f"{kind}.json" for kind in KINDS]:
        return _condition(path)
    if name == "metrics.jsonl":
        return _log(path)
    if name == "config.yaml":
        flags = read_yaml(path, str(path))
        return ("flags of a training", _plain(flags)) if isinstance(flags, dict) else None
    for pattern, kind in _RECORDS.items():
        if fnmatch(name, pattern):
            return kind, _plain(read_json(path, REMEDY, type=dict))
    if name.endswith(".json") and path.with_suffix(".wav").is_file():
        return "sample, as described beside its wav", _plain(read_json(path, REMEDY, type=dict))
    return None


_RECORDS = {
    "splits.json": "how a token directory was split",
    "text_prepared.json": "what the texts of a token directory were made of",
    "eval_*.json": "evaluation of a model",
    "recognition*.json": "transcripts by a recogniser and their error rates",
    "run.json": "starts and ends of a training",
}


def _plain(fields: dict) -> dict[str, Any]:
    """What fits on a line each."""
    return {k: v for k, v in fields.items() if len(json.dumps(v)) <= 200}


def _condition(path: Path) -> tuple[str, dict] | None:
    fields = read_json(path, REMEDY, type=dict)
    described = fields.get("condition", fields)  # of source.json
    if not isinstance(described, dict) or "sizes" not in described:
        return None
    try:
        info = ConditionInfo.from_dict(described)
    except (UserError, TypeError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}); {REMEDY}") from None
    facts = {
        "fields": info.num_fields,
        "vocabularies": list(info.sizes),
        "frames_per_step": info.rate,
        **_plain(info.settings),
        "directory": fields.get("directory"),
    }
    return f"condition {info.kind!r} of a token directory", facts


def _column(path: Path) -> tuple[str, dict]:
    column = Ragged.open(path)
    lengths = column.lengths
    return "column of a token directory, a row for each cut", {
        "rows": len(lengths),
        "empty": int((lengths == 0).sum()),
        "steps": int(lengths.sum()),
    }


def _log(path: Path) -> tuple[str, dict]:
    """Its last line may be unfinished: a training is at it."""
    kinds: Counter[str] = Counter()
    for line in read_lines(path, str(path), REMEDY):
        try:
            kinds[str(json.loads(line)["kind"])] += 1
        except (ValueError, LookupError, TypeError):
            kinds["unreadable"] += 1
    return "log of a training", {"lines": sum(kinds.values()), "kinds": dict(kinds)}


def _left_out(path: Path) -> tuple[str, dict]:
    reasons: Counter[str] = Counter()
    for number, line in enumerate(read_lines(path, str(path), REMEDY), 1):
        try:
            reasons[str(json.loads(line)["reason"])] += 1
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}, entry {number}: no reason in it; {REMEDY}") from None
    facts = {"items": sum(reasons.values()), "reasons": dict(reasons.most_common(5))}
    return "list of what was left out, and why", facts
