"""What a training is doing, from its files: lines of text, a table of several, curves.

A training is read anew at each look, so one that was resumed or moved aside needs no care.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import numpy as np

from rvqlm.cli import clock, counted, span
from rvqlm.errors import UserError
from rvqlm.files import atomic_write, read_json
from rvqlm.metrics.schemas import Rank
from rvqlm.reports.expected import RECIPES, Expected, differences, find_expected, identity, stands
from rvqlm.reports.experiment import Training, median_speed, stage_folders
from rvqlm.reports.formatting import percent, shown
from rvqlm.training.schedule import Budget

PATIENCE = 120.0
"""Seconds without a new line after which a training counts as stalled, at least; more where the
lines are far apart (10 times that), or validations and samples take long (3 times that)."""
SKIPS = ("nonfinite", "outlier", "overflow")
BARS = "▁▂▃▄▅▆▇█"
_FIGURE = {"figsize": (15, 8), "layout": "constrained"}


class Watched:
    """One training.

    :param exp_dir: of a training; of a model trained in stages the last stage is watched.
    :raises UserError: no training has begun there.
    """

    def __init__(self, exp_dir: str | Path):
        self.asked = Path(exp_dir)
        self.read()

    def read(self) -> None:
        """Look at it again."""
        begun = [p for p in (self.asked, *reversed(stage_folders(self.asked))) if _has_begun(p)]
        if not begun:
            raise UserError(
                f"{self.asked}/metrics.jsonl: no log there; give the --exp-dir of a training that "
                "has begun"
            )
        self.training = training = Training.read(begun[0])
        self.exp_dir = training.folder
        self.last = {kind: records[-1] for kind, records in training.log.items()}
        """Newest record by kind."""
        self.newest = max(self.last.values(), key=lambda r: r["step"], default={})
        # records of samples have no time
        self.elapsed = max((r.get("elapsed", 0.0) for r in self.last.values()), default=0.0)
        self.skipped = {
            reason: sum(r.get(f"skipped_{reason}") or 0 for r in training.train) for reason in SKIPS
        }
        self.rollbacks = sum(r.get("rollbacks") or 0 for r in training.train)
        steps, losses = self.curve("valid", "loss")
        self.best = min(zip(losses, steps), default=None)
        """Lowest validation loss and its step."""

    def curve(self, kind: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of an entry of the log, where it is finite."""
        known = [(r["step"], r[name]) for r in self.training.log.get(kind, []) if _finite(r, name)]
        return [step for step, _ in known], [value for _, value in known]

    def state(self) -> str:
        """``running``, ``finished``, ``stopped (SIGTERM)``, or ``no line for 12.0 min: stalled or
        killed``."""
        ended = self.training.about.get("ended", [])
        if ended and len(ended) >= len(self.training.about.get("started", [])):
            outcome = ended[-1]["outcome"]
            return outcome if outcome == "finished" else f"stopped ({outcome})"
        files = [self.exp_dir / name for name in ("metrics.jsonl", "run.json")]  # of a new start
        age = time.time() - max((p.stat().st_mtime for p in files if p.exists()), default=0.0)
        times = [r["elapsed"] for r in self.training.train[-2:] if "elapsed" in r]
        between = times[1] - times[0] if len(times) == 2 else 0.0
        pauses = sum(self.last.get(kind, {}).get("seconds", 0.0) for kind in ("valid", "sample"))
        if age <= max(PATIENCE, 10 * between, 3 * pauses):
            return "running"
        ranks = []
        for path in sorted((self.exp_dir / "ranks").glob("rank-*.json")):
            with contextlib.suppress(UserError):  # torn by a crash of the machine
                place = read_json(path, "", type=Rank)
                ranks.append(f"rank {place['rank']} in {place['where']}")
        return f"no line for {span(age)}: stalled or killed" + f" ({', '.join(ranks)})" * bool(
            ranks
        )

    def progress(self) -> float | None:
        """Used share of the budget."""
        if not self.newest or not self.training.config:
            return None
        flags, line = self.training.flags(), self.newest
        budget = Budget(*(flags.get(f, 0) for f in ("num-epochs", "max-steps", "max-minutes")))
        batches = self.training.about.get("data", {}).get("batches_per_epoch") or 1
        epochs = max(line.get("epoch", 0), line["step"] * flags.get("accum", 1) / batches)
        return budget.progress(line["step"], epochs, self.elapsed)


def read_again(experiments: list[Watched]) -> list[str]:
    """Look at all of them; a line for each that was moved aside by a start from the beginning and
    comes back."""
    gone = []
    for experiment in experiments:
        try:
            experiment.read()
        except UserError as e:
            gone.append(str(e))
    return gone


def _has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.jsonl", "run.json"))


def _finite(record: dict, name: str) -> bool:
    return record.get(name) is not None and isfinite(record[name])


# ---------------------------------------------------------------- as text


def sparkline(values: list[float], width: int = 60) -> str:
    """A curve in one line of text, means over equal stretches.

    >>> sparkline([3.0, 2.0, 1.0, 1.0], width=4)
    '█▅▁▁'
    """
    if not values:
        return ""
    means = np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])
    height = (means - means.min()) / (np.ptp(means) or 1.0)
    return "".join(BARS[round(h * (len(BARS) - 1))] for h in height)


def describe(w: Watched, width: int = 100, expected: Expected | None = None) -> list[str]:
    """Lines about one training.

    :param expected: to compare it with; None: what a recipe has for its flags and data, if any.
    """
    run, newest, state = w.training.about, w.newest, w.state()
    train, valid = w.last.get("train", {}), w.last.get("valid", {})
    if not newest:
        return [f"{w.exp_dir}: {state}, nothing logged yet"]
    share = w.progress()
    left = w.elapsed * (1 - share) / share if share and state == "running" else 0.0
    best = f" (best {w.best[0]:.4f} at step {w.best[1]:,})" if w.best else ""
    nats = " ".join(shown(n, "{:.2f}") for n in (valid or train).get("nats", []))
    losses = w.curve("train", "loss")[1]
    skips = ", ".join(f"{number} {reason}" for reason, number in w.skipped.items())
    parts = {k.removeprefix("time_"): v for k, v in train.items() if k.startswith("time_")}
    hidden = " (hidden codes)" if w.training.scores_hidden_codes else ""
    parts |= {"rest": max(0.0, 1 - sum(parts.values()))}
    lines = [
        f"{w.exp_dir}: {state}",
        f"  at       step {newest['step']:,}, epoch {newest.get('epoch', 0) + 1}, "
        f"{clock(w.elapsed)} of training, {shown(share, percent)} of the budget"
        + (f", {clock(left)} left" if left else ""),
        f"  model    {run.get('model')}, {shown(run.get('parameters'), '{:,}')} parameters, "
        f"{shown(run.get('ranks'), lambda n: counted(n, 'rank'))}, commit {run.get('commit')}, "
        f"started {counted(len(run.get('started', [])), 'time')}",
        f"  loss     train {shown(train.get('loss'), '{:.4f}')}{hidden}, valid "
        f"{shown(valid.get('loss'), '{:.4f}')}{best}; "
        f"valid perplexity {shown(valid.get('perplexity'), '{:,.1f}')}, "
        f"{shown(valid.get('bits_per_second'), '{:,.0f}')} bits/s",
        f"  levels   {nats} nats ({'valid' if valid else 'train'})",
        f"  curve    {sparkline(losses, max(10, width - 12))}",
        f"  steps    lr {shown(train.get('lr'), '{:.3g}')}, gradient "
        f"{shown(train.get('grad_norm'), '{:.3g}')}; skipped {skips}; "
        f"{counted(w.rollbacks, 'rollback')}",
        f"  speed    {shown(train.get('frames_per_second'), '{:,.0f}')} frames/s, MFU "
        f"{shown(train.get('mfu'), percent)}, padding {shown(train.get('padding'), percent)}, "
        f"memory {shown(train.get('memory_mb'), '{:,.0f}')} MB",
        f"  in all   {shown(w.training.throughput, '{:,.0f}')} frames/s, pauses included; median "
        f"of the lines {shown(median_speed(w.training.train), '{:,.0f}')}",
        *([f"  machine  {shared}"] if (shared := w.training.shared) else []),
        f"  time     {', '.join(f'{k} {percent(v)}' for k, v in parts.items())}",
    ]
    if sample := w.last.get("sample"):
        lines.append(f"  samples  {w.exp_dir}/samples/step-{sample['step']:08d}")
    return lines + [f"  expected {line}" for line in _against(w, expected, share)]


def _against(w: Watched, expected: Expected | None, share: float | None) -> list[str]:
    """Where a training stands against those before it."""
    if expected is not None:
        if not w.training.config:
            return ["nothing, as no config.yaml tells what it is"]
        if differing := differences(expected, identity(w.training)):
            return [f"nothing, as it is of another config: {differing}"]
        return list(stands(expected, w.training, share))
    found = find_expected(w.training)
    if found is None:
        return []
    path, expected = found
    return [f"by {path.relative_to(RECIPES.parent)}", *stands(expected, w.training, share)]


def _last(kind: str, key: str, form: str | Callable) -> Callable[[Watched], str]:
    return lambda w: shown(w.last.get(kind, {}).get(key), form)


ROWS: dict[str, Callable[[Watched], str]] = {
    "": lambda w: str(w.asked),
    "state": lambda w: w.state().split(":")[0],
    "step": lambda w: shown(w.newest.get("step"), "{:,}"),
    "training": lambda w: clock(w.elapsed),
    "train loss": _last("train", "loss", "{:.4f}"),
    "valid loss": _last("valid", "loss", "{:.4f}"),
    "best valid": lambda w: shown(w.best and w.best[0], "{:.4f}"),
    "at step": lambda w: shown(w.best and w.best[1], "{:,}"),
    "bits/s": _last("valid", "bits_per_second", "{:,.0f}"),
    "lr": _last("train", "lr", "{:.3g}"),
    "gradient": _last("train", "grad_norm", "{:.3g}"),
    "skipped": lambda w: str(sum(w.skipped.values())),
    "frames/s": _last("train", "frames_per_second", "{:,.0f}"),
    "in all": lambda w: shown(w.training.throughput, "{:,.0f}"),
    "median": lambda w: shown(median_speed(w.training.train), "{:,.0f}"),
    "MFU": _last("train", "mfu", percent),
}


def table(experiments: list[Watched]) -> list[str]:
    """A column for each training."""
    columns = [[value(w) for value in ROWS.values()] for w in experiments]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([name.ljust(10), *(cell.rjust(n) for cell, n in zip(cells, widths))])
        for name, *cells in zip(ROWS, *columns)
    ]


# ---------------------------------------------------------------- as a picture


def draw(figure, experiments: list[Watched]) -> None:
    """Loss, levels, learning rate, gradient, speed and skips over steps, on a matplotlib figure;
    what was on it goes."""
    figure.clear()
    axes = figure.subplots(2, 3)
    loss, levels, rate, gradient, speed, skips = axes.flat
    alone = len(experiments) == 1
    for number, w in enumerate(experiments):
        color, name, records = f"C{number}", str(w.asked), w.training.train
        hidden = " (hidden codes)" if w.training.scores_hidden_codes else ""
        label = f"{name} train{hidden}"
        loss.plot(*w.curve("train", "loss"), color=color, alpha=0.5, label=label)
        loss.plot(*w.curve("valid", "loss"), color=color, marker=".", label=f"{name} valid")
        steps = [r["step"] for r in records]
        for level in range(max((len(r.get("nats", [])) for r in records), default=0)):
            style = {"color": f"C{level}"} if alone else {"color": color, "alpha": 0.4}
            nats = [dict(enumerate(r.get("nats", []))).get(level) for r in records]
            levels.plot(steps, nats, label=f"level {level}" if alone else None, **style)
        rate.plot(*w.curve("train", "lr"), color=color)
        gradient.plot(*w.curve("train", "grad_norm"), color=color)
        speed.plot(*w.curve("train", "frames_per_second"), color=color)
        skipped = [sum(r.get(f"skipped_{reason}") or 0 for reason in SKIPS) for r in records]
        skips.plot(steps, np.cumsum(skipped), color=color)
    titles = (
        *("loss, nats per code", "nats per level (train)", "learning rate"),
        *("norm of the gradient before clipping", "frames per second", "skipped steps so far"),
    )
    for axis, title in zip(axes.flat, titles):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    loss.legend()
    gradient.set_yscale("log")
    if alone and levels.lines:
        levels.legend(ncols=2, fontsize="small")


def plot(experiments: list[Watched], out: str | Path) -> Path:
    """The curves (`draw`) as a file: PNG, SVG or PDF by the name of `out`."""
    from matplotlib.figure import Figure

    figure, out = Figure(**_FIGURE), Path(out)
    draw(figure, experiments)
    atomic_write(out, lambda p: figure.savefig(p, format=out.suffix.lstrip("."), dpi=110))
    return out


def live(experiments: list[Watched], every: float) -> None:
    """The curves in a window, drawn again every so many seconds until it is closed.

    :raises UserError: no window can be opened.
    """
    import matplotlib.pyplot as plt

    try:
        figure = plt.figure("rvqlm monitor", **_FIGURE)
        toolkit, why = figure.canvas.required_interactive_framework, "matplotlib has no window here"
    except ImportError as e:  # a toolkit that was asked for by name
        toolkit, why = None, str(e)
    if toolkit is None:
        plt.close("all")
        raise UserError(
            f"--live: no window can be opened ({why}): it needs a display (ssh -X) and a toolkit "
            "(Tk, or pip install PySide6); --plot FILE writes a picture"
        )
    while plt.fignum_exists(figure.number):
        gone = read_again(experiments)
        draw(figure, experiments)
        figure.suptitle("; ".join(gone or [f"{w.asked}: {w.state()}" for w in experiments]))
        plt.pause(every)
