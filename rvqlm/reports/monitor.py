"""What a training is doing, read from its files: metrics.jsonl, run.json, config.yaml.

`Watched` reads on where it stopped and keeps a bounded number of points, so a log of weeks costs
neither time nor memory at each look.
"""

from __future__ import annotations

import json
import time
from math import isfinite
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.metrics.log import LogTail
from rvqlm.reports.formatting import span
from rvqlm.training.schedule import Budget

MOST_POINTS = 4000
_PATIENCE = 120.0
"""Seconds without a new line after which a training counts as stalled, at least."""
_TIMES = 10
"""The same as a multiple of the time between lines."""
_PAUSES = 3
"""The same as a multiple of the time that the last validation or round of samples took."""


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
    :raises UserError: no training has begun there.
    """

    def __init__(self, exp_dir: str | Path):
        self.asked = Path(exp_dir)
        self._start_over()
        self.read()

    def _start_over(self) -> None:
        self.tail = LogTail(self._clear)
        self._clear()

    def _clear(self) -> None:
        self.last: dict[str, dict] = {}
        """Newest line by kind."""
        self.series: dict[str, Series] = {}
        self.skipped = {"nonfinite": 0, "outlier": 0, "overflow": 0}
        """Steps by reason."""
        self.rollbacks = 0
        self.best: tuple[float, int] | None = None
        self.between: float | None = None
        """Seconds of training between the last two train lines."""

    @property
    def exp_dir(self) -> Path:
        # not by checkpoints: a stage is watched before its first one
        staged = [p for p in self.asked.glob("stage[0-9]*") if _has_begun(p)]
        if _has_begun(self.asked) or not staged:
            return self.asked
        return max(staged, key=lambda p: (len(p.name), p.name))

    @property
    def path(self) -> Path:
        return self.exp_dir / "metrics.jsonl"

    def read(self) -> None:
        """Take in what was written since the last time; all of it anew where the log was cut or
        replaced, as a resumed training does."""
        try:
            for line in self.tail.read(self.path):
                self._take(line)
        except OSError:
            if not _has_begun(self.path.parent):
                raise UserError(
                    f"{self.path}: no log there; give the --exp-dir of a training that has begun"
                ) from None
            self._start_over()  # before its first line

    def _take(self, line: dict) -> None:
        kind, step = line["kind"], line["step"]
        if kind == "train":
            times = self.last.get("train", {}).get("elapsed"), line.get("elapsed")
            self.between = None if None in times else times[1] - times[0]
            self.rollbacks += line.get("rollbacks") or 0
            for reason in self.skipped:
                self.skipped[reason] += line.get(f"skipped_{reason}") or 0
            self._add("skipped", step, sum(self.skipped.values()))
            for name in ("loss", "lr", "grad_norm", "frames_per_second", "mfu", "nats"):
                self._add(name, step, line.get(name))
        elif kind == "valid":
            loss = line.get("loss")
            self._add("valid", step, loss)
            if loss is not None and isfinite(loss) and (self.best is None or loss < self.best[0]):
                self.best = loss, step
        self.last[kind] = line

    def _add(self, name: str, step: int, value) -> None:
        if value is not None and (isinstance(value, list) or isfinite(value)):
            self.series.setdefault(name, Series()).add(step, value)

    # --------------------------------------------------------------------------------- state

    @property
    def newest(self) -> dict:
        return max(self.last.values(), key=lambda x: x["step"], default={})

    @property
    def elapsed(self) -> float:
        """Seconds of training; lines of samples have none."""
        return max((x.get("elapsed", 0.0) for x in self.last.values()), default=0.0)

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
        """Seconds since the last line, or since the start where there is none."""
        times = []
        for name in ("metrics.jsonl", "run.json"):  # a start may be newer than the last line
            try:
                times.append((self.exp_dir / name).stat().st_mtime)
            except OSError:
                continue
        return max(0.0, time.time() - max(times, default=0.0))

    def patience(self) -> float:
        """Seconds without a line that are nothing unusual."""
        pauses = (self.last.get(kind, {}).get("seconds", 0.0) for kind in ("valid", "sample"))
        return max(_PATIENCE, _TIMES * (self.between or 0.0), _PAUSES * sum(pauses))

    def state(self) -> str:
        """``running``, ``finished``, ``stopped (SIGTERM)``, or ``no line for 12 min: stalled or
        killed``."""
        run, age = self.run(), self.age()
        ended = run.get("ended", [])
        if ended and len(ended) >= len(run.get("started", [])):
            outcome = ended[-1]["outcome"]
            return outcome if outcome == "finished" else f"stopped ({outcome})"
        if age <= self.patience():
            return "running"
        return f"no line for {span(age)}: stalled or killed{self._places()}"

    def _places(self) -> str:
        """Where the ranks of a training on several stood."""
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
        budget = Budget(*(flags.get(f, 0) for f in ("num-epochs", "max-steps", "max-minutes")))
        batches = self.run().get("data", {}).get("batches_per_epoch") or 1
        epochs = max(line["epoch"], line["step"] * flags.get("accum", 1) / batches)
        return budget.progress(line["step"], epochs, self.elapsed)

    def left(self) -> float | None:
        """Seconds to the end of the budget, at the mean speed so far."""
        share = self.progress()
        return self.elapsed * (1 - share) / share if share else None


def _has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.jsonl", "run.json"))
