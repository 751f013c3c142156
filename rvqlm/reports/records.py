"""Records of other commands that pages and tables show beside the figures of an experiment: what a
model was given, what was left out of its data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rvqlm.cli import counted
from rvqlm.files import read_jsonl
from rvqlm.reports.experiment import REMEDY

SHOWN = 3
"""Examples of what was left out."""


def conditions_of(evaluation: dict, flags: dict) -> list[str]:
    """What a model's figures were conditioned on; evaluations of older versions do not say it, and
    a model has the conditions of its training."""
    found = evaluation.get("conditions")
    return list(found if found is not None else flags.get("conditions") or [])


def given_words(conditions: Iterable[str]) -> str:
    """
    >>> given_words(["text", "prompt"]), given_words([])
    ('text and prompt', 'nothing')
    """
    return " and ".join(conditions) or "nothing"


def outdated(evaluation: dict, family: str | None) -> bool:
    """Whether an evaluation's figures of single levels depend on how often each was masked, as
    those of masked models did before evaluations had their uncertainty."""
    return family == "masked" and "uncertainty" not in evaluation


# ------------------------------------------------------------------------- left out of the data


@dataclass
class LeftOut:
    """A list of items that a command skipped, or kept with a warning."""

    path: Path
    number: int
    examples: list[str]
    """The first ones with their reasons."""

    @property
    def skipped(self) -> bool:
        return self.path.stem.endswith("skipped")

    def words(self) -> str:
        what = "left out" if self.skipped else "kept with a warning"
        more = "; ..." if self.number > len(self.examples) else ""
        return (
            f"{counted(self.number, 'item')} {what} ({self.path}): "
            + "; ".join(self.examples)
            + more
        )


def left_out(manifest_dir: Path, sidecar: dict) -> list[LeftOut]:
    """The lists of skipped and of doubtful items beside the tokens and beside the manifest that
    they were made from, where rvqlm audio writes them; lists of nothing are left out.

    :param sidecar: tokens.json.
    """
    source = (sidecar.get("input") or {}).get("path")
    folders = [manifest_dir] + ([Path(source).parent] if source else [])
    found, seen = [], set()
    for folder in folders:
        if not folder.is_dir() or (place := folder.resolve()) in seen:
            continue
        seen.add(place)
        for ending in ("skipped", "warned"):
            for path in sorted(folder.glob(f"*{ending}.jsonl")):
                entries = read_jsonl(path, str(path), REMEDY)
                examples = [_reason(entry) for entry in islice(entries, SHOWN)]
                if examples:
                    found.append(LeftOut(path, len(examples) + sum(1 for _ in entries), examples))
    return found


def _reason(entry: dict) -> str:
    name = entry.get("path") or entry.get("id") or "?"
    return f"{name}: {entry.get('reason') or entry.get('warning') or 'no reason given'}"
