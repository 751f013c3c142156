"""What a training is doing, read from its files: metrics.jsonl, run.json, config.yaml.

`Watched` reads on where it stopped and keeps a bounded number of points, so a log of weeks costs
neither time nor memory at each look.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.training.checkpoint import last_stage
from rvqlm.training.schedule import Budget

MOST_POINTS = 4000
_PATIENCE = 120.0
"""Seconds without a new line after which a training counts as stalled, at least; and so many times
the usual time between lines:"""
_TIMES = 10


class Series:
    """Points (step, value) of one entry; of too many every second one is dropped, from then on
    only each so-many-th is kept."""

    def __init__(self):
        self.steps: list[int] = []
        self.values: list = []
        self.every, self.seen = 1, 0

    def add(self, step: int, value) -> None:
        if self.seen % self.every == 0:
            self.steps.append(step)
            self.values.append(value)
            if len(self.steps) > MOST_POINTS:
                self.steps, self.values = self.steps[::2], self.values[::2]
                self.every *= 2
        self.seen += 1


class Watched:
    """One experiment.

    :param exp_dir: of a training; of a model trained in stages the last stage is watched.
    :raises UserError: there is no log.
    """

    def __init__(self, exp_dir: str | Path):
        self.asked = Path(exp_dir)
        self._forget()
        self.read()

    def _forget(self) -> None:
        self.offset, self.torn = 0, ""
        self.inode: int | None = None
        self.last: dict[str, dict] = {}
        """Newest line by kind."""
        self.series: dict[str, Series] = {}
        self.totals = {"nonfinite": 0, "outlier": 0, "overflow": 0, "rollbacks": 0}
        self.best: tuple[float, int] | None = None
        self.between: float | None = None
        """Seconds of training between the last two train lines."""

    @property
    def exp_dir(self) -> Path:
        if (self.asked / "metrics.jsonl").exists():
            return self.asked
        staged = sorted(self.asked.glob("stage[0-9]*/metrics.jsonl"))
        return last_stage(self.asked) if not staged else staged[-1].parent

    @property
    def path(self) -> Path:
        return self.exp_dir / "metrics.jsonl"

    def read(self) -> None:
        """Take in what was written since the last time; all of it anew where the log was cut or
        replaced, as a resumed training does."""
        try:
            stat = self.path.stat()
        except OSError:
            raise UserError(
                f"{self.path}: no log there; give the --exp-dir of a training that has begun"
            ) from None
        if stat.st_ino != self.inode or stat.st_size < self.offset:
            self._forget()
            self.inode = stat.st_ino
        with open(self.path, encoding="utf-8", errors="replace") as file:
            file.seek(self.offset)
            text = self.torn + file.read()
            self.offset = file.tell()
        *lines, self.torn = text.split("\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # torn by a crash

    def _take(self, line: dict) -> None:
        kind, step = line["kind"], line["step"]
        if kind == "train":
            before = self.last.get("train")
            self.between = line["elapsed"] - before["elapsed"] if before else None
            for name in self.totals:
                key = name if name == "rollbacks" else f"skipped_{name}"
                self.totals[name] += line.get(key) or 0
            skips = sum(v for k, v in self.totals.items() if k != "rollbacks")
            self._add("skipped", step, skips)
            for name in ("loss", "lr", "grad_norm", "frames_per_second", "mfu", "nats"):
                self._add(name, step, line.get(name))
        elif kind == "valid":
            self._add("valid", step, line["loss"])
            if self.best is None or line["loss"] < self.best[0]:
                self.best = line["loss"], step
        self.last[kind] = line

    def _add(self, name: str, step: int, value) -> None:
        if value is not None:
            self.series.setdefault(name, Series()).add(step, value)

    # --------------------------------------------------------------------------------- state

    @property
    def newest(self) -> dict:
        return max(self.last.values(), key=lambda x: x["step"], default={})

    def run(self) -> dict:
        """run.json, or nothing."""
        try:
            return json.loads((self.exp_dir / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    def flags(self) -> dict:
        """config.yaml, or nothing."""
        import yaml

        try:
            return yaml.safe_load((self.exp_dir / "config.yaml").read_text()) or {}
        except (OSError, yaml.YAMLError):
            return {}

    def age(self) -> float:
        """Seconds since the last line."""
        return max(0.0, time.time() - self.path.stat().st_mtime)

    def state(self) -> str:
        """``running``, ``finished``, ``stopped (SIGTERM)``, or ``no line for 12 min: stalled or
        killed``."""
        run, age = self.run(), self.age()
        ended = run.get("ended", [])
        if ended and len(ended) >= len(run.get("started", [])):
            outcome = ended[-1]["outcome"]
            return outcome if outcome == "finished" else f"stopped ({outcome})"
        if age <= max(_PATIENCE, _TIMES * (self.between or 0.0)):
            return "running"
        where = self._where()
        return f"no line for {span(age)}: stalled or killed{where}"

    def _where(self) -> str:
        """Where the ranks stood, of a training on several."""
        places = []
        for path in sorted((self.exp_dir / "ranks").glob("rank-*.json")):
            try:
                place = json.loads(path.read_text())
                places.append(f"rank {place['rank']} in {place['where']}")
            except (OSError, ValueError, KeyError):
                continue
        return f" ({', '.join(places)})" if places else ""

    def progress(self) -> float | None:
        """Used share of the budget."""
        flags, line = self.flags(), self.newest
        if not line or not flags:
            return None
        budget = Budget(
            flags.get("num-epochs", 0), flags.get("max-steps", 0), flags.get("max-minutes", 0.0)
        )
        batches = self.run().get("data", {}).get("batches_per_epoch") or 1
        epochs = max(line["epoch"], line["step"] * flags.get("accum", 1) / batches)
        return budget.progress(line["step"], epochs, line.get("elapsed", 0.0))

    def left(self) -> float | None:
        """Seconds to the end of the budget, at the mean speed so far."""
        share = self.progress()
        if not share:
            return None
        return self.last.get("train", {}).get("elapsed", 0.0) * (1 - share) / share


def span(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def is_terminal() -> bool:
    return os.isatty(1)
