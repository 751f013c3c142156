"""Reading what a training says of itself: EXP/metrics.jsonl, one JSON object a line, with `kind`
(train, valid, sample) and `step`; EXP/run.json, the commands and circumstances.

A kill tears at most the last line. `read_log` reads a log as a whole, `scan_log` one that may be
damaged anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.files import MOST, fits, read_json
from rvqlm.metrics.schemas import Record, Run


def scan_log(path: str | Path) -> Iterator[tuple[int, dict | None]]:
    """(line number from 1, record) of a log; None for a damaged line."""
    with open(path, "rb") as file:
        lines = iter(lambda: file.readline(MOST), b"")  # one at a time: a log of weeks has a GB
        for number, line in enumerate(lines, 1):
            yield number, _record(line)


def read_log(path: str | Path) -> list[dict]:
    """Records in the order of the file; a damaged last line is left out.

    :raises UserError: a damaged line before the last; the message names it.
    """
    records: list[dict] = []
    damaged = 0
    for number, record in scan_log(path):
        if damaged:
            raise UserError(
                f"{path}: line {damaged} is not a record of the trainer; delete that line"
            )
        if record is None:
            damaged = number
        else:
            records.append(record)
    return records


def by_kind(records: Iterable[dict]) -> dict[str, list[dict]]:
    """Records of each kind, ordered by step.

    A run that was killed and resumed may repeat the steps since its checkpoint: the later record of
    a step replaces the earlier.

    >>> by_kind([{"kind": "train", "step": s, "loss": x} for s, x in [(2, 9), (1, 5), (2, 4)]])
    {'train': [{'kind': 'train', 'step': 1, 'loss': 5}, {'kind': 'train', 'step': 2, 'loss': 4}]}
    """
    found: dict[str, dict[int, dict]] = {}
    for record in records:
        found.setdefault(record["kind"], {})[record["step"]] = record
    return {kind: [of_kind[step] for step in sorted(of_kind)] for kind, of_kind in found.items()}


def _record(line: bytes) -> dict | None:
    try:
        return fits(json.loads(line), Record)
    except (ValueError, RecursionError):
        return None


def read_run(folder: str | Path) -> dict:
    """``run.json`` of an experiment (`rvqlm.metrics.schemas.Run`); empty where there is none.

    :raises UserError: it is damaged.
    """
    path = Path(folder) / "run.json"
    return read_json(path, "delete it and resume the training", type=Run) if path.exists() else {}
