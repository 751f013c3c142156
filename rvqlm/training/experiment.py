"""The files of an experiment beside its checkpoints: flags, record of the runs, earlier runs."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

from rvqlm.cli import flatten
from rvqlm.files import atomic_write
from rvqlm.training.config import TrainerConfig

_OF_A_RUN = (
    *("latest.pt", "best.pt", "metrics.jsonl", "tensorboard", "run.json", "config.yaml"),
    *("samples", "eval_*.json", "recognition_*.json", "archive", "average.pt", "*.dcp"),
    *("bad_batches", "ranks", "hang-rank-*.txt"),
)


def write_config(config: TrainerConfig) -> None:
    """EXP/config.yaml: every flag, to be used as ``--config``. What is asked of one start only
    (--resume, --dry-run) is left out."""
    import yaml

    flags = {k: v for k, v in flatten(config).items() if k not in ("resume", "dry-run")}
    text = yaml.safe_dump(flags, sort_keys=False)
    atomic_write(Path(config.exp_dir) / "config.yaml", lambda p: p.write_text(text))


def write_run(exp_dir: str | Path, record: dict, command: str) -> None:
    """EXP/run.json: `record` of this start, and the commands and times of all starts so far."""
    path = Path(exp_dir) / "run.json"
    try:
        earlier = json.loads(path.read_text())
        commands, started = list(earlier["commands"]), list(earlier["started"])
        ended = list(earlier.get("ended", []))
    except (OSError, ValueError, KeyError, TypeError):
        commands, started, ended = [], [], []
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    history = {"commands": [*commands, command], "started": [*started, now], "ended": ended}
    record = {**history, **record}
    atomic_write(path, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


def end_run(exp_dir: str | Path, outcome: str, step: int) -> None:
    """Note in EXP/run.json how this start ended; one that was killed leaves none."""
    path = Path(exp_dir) / "run.json"
    record = json.loads(path.read_text())
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    # starts that were killed stand as such, so that the lists stay side by side
    killed = [{"outcome": "killed"}] * (len(record["started"]) - 1 - len(record.get("ended", [])))
    ended = [*record.get("ended", []), *killed, {"outcome": outcome, "step": step, "time": now}]
    record["ended"] = ended
    atomic_write(path, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))


def remove_torn_files(exp_dir: str | Path) -> None:
    """Delete half-written checkpoints of a process that was killed while it wrote them."""
    for pattern in (".*.tmp", "archive/.*.tmp"):
        for path in Path(exp_dir).glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def move_aside(exp_dir: str | Path) -> Path | None:
    """Move the files of an earlier run to EXP/previous-N; None where there are none."""
    exp_dir = Path(exp_dir)
    found = [p for pattern in _OF_A_RUN for p in sorted(exp_dir.glob(pattern))]
    if not found:
        return None
    number = 1
    while (exp_dir / f"previous-{number}").exists():
        number += 1
    target = exp_dir / f"previous-{number}"
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target
