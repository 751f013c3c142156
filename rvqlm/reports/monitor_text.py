"""A training in ten lines of text, several of them as a table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from rvqlm.reports.monitor import Watched
from rvqlm.training.logger import clock

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 60) -> str:
    """A curve in one line of text, means over equal stretches.

    >>> sparkline([3.0, 2.0, 1.0, 1.0], width=4)
    '█▅▁▁'
    """
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * width
    return "".join(_BARS[round((m - low) / (high - low) * (len(_BARS) - 1))] for m in means)


def _number(value, form: str = ",.4g", none: str = "-") -> str:
    return none if value is None else format(value, form)


def _share(value) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def describe(watched: Watched, width: int = 100) -> list[str]:
    """Lines about one training."""
    w, run = watched, watched.run()
    train, valid = w.last.get("train", {}), w.last.get("valid", {})
    newest, share, left = w.newest, w.progress(), w.left()
    if not newest:
        return [f"{w.exp_dir}: {w.state()}, nothing logged yet"]
    lines = [
        f"{w.exp_dir}: {w.state()}",
        f"  at       step {newest['step']:,}, epoch {newest['epoch'] + 1}, "
        f"{clock(w.elapsed)} of training, {_share(share)} of the budget"
        + (f", {clock(left)} left" if left and w.state() == "running" else ""),
    ]
    if run:
        lines.append(
            f"  model    {run.get('model')}, {_number(run.get('parameters'), ',')} parameters, "
            f"{run.get('ranks')} ranks, commit {run.get('commit')}, started "
            f"{len(run.get('started', []))} times"
        )
    best = f" (best {w.best[0]:.4f} at step {w.best[1]:,})" if w.best else ""
    lines += [
        f"  loss     train {_number(train.get('loss'), '.4f')}, valid "
        f"{_number(valid.get('loss'), '.4f')}{best}; "
        f"valid perplexity {_number(valid.get('perplexity'), ',.1f')}, "
        f"{_number(valid.get('bits_per_second'), ',.0f')} bits/s",
        "  levels   "
        + " ".join(_number(n, ".2f") for n in (valid or train).get("nats", []))
        + f" nats ({'valid' if valid else 'train'})",
    ]
    losses = w.series.get("loss")
    if losses:
        line = sparkline(losses.values, max(10, width - 12))
        lines += [f"           {line}", f"           train {losses.values[0]:.3f} ... "
                  f"{_number(train.get('loss'), '.3f')}"]  # fmt: skip
    skips = ", ".join(f"{w.totals[k]} {k}" for k in ("nonfinite", "outlier", "overflow"))
    lines += [
        f"  steps    lr {_number(train.get('lr'), '.3g')}, gradient "
        f"{_number(train.get('grad_norm'), '.3g')}; skipped {skips}; {w.totals['rollbacks']} "
        "returns to a checkpoint",
        f"  speed    {_number(train.get('frames_per_second'), ',.0f')} frames/s, MFU "
        f"{_share(train.get('mfu'))}, padding {_share(train.get('padding'))}, memory "
        f"{_number(train.get('memory_mb'), ',.0f')} MB",
    ]
    parts = {k.removeprefix("time_"): v for k, v in train.items() if k.startswith("time_")}
    if parts:
        rest = max(0.0, 1 - sum(parts.values()))
        shown = ", ".join(f"{name} {_share(v)}" for name, v in [*parts.items(), ("rest", rest)])
        lines.append(f"  time     {shown}")
    if sample := w.last.get("sample"):
        lines.append(f"  samples  {w.exp_dir}/samples/step-{sample['step']:08d}")
    return lines


ROWS: list[tuple[str, Callable[[Watched], str]]] = [
    ("state", lambda w: w.state().split(":")[0]),
    ("step", lambda w: _number(w.newest.get("step"), ",")),
    ("hours", lambda w: _number(w.elapsed / 3600, ".2f")),
    ("train loss", lambda w: _number(w.last.get("train", {}).get("loss"), ".4f")),
    ("valid loss", lambda w: _number(w.last.get("valid", {}).get("loss"), ".4f")),
    ("best valid", lambda w: _number(w.best and w.best[0], ".4f")),
    ("at step", lambda w: _number(w.best and w.best[1], ",")),
    ("bits/s", lambda w: _number(w.last.get("valid", {}).get("bits_per_second"), ",.0f")),
    ("lr", lambda w: _number(w.last.get("train", {}).get("lr"), ".3g")),
    ("gradient", lambda w: _number(w.last.get("train", {}).get("grad_norm"), ".3g")),
    ("skipped", lambda w: str(sum(v for k, v in w.totals.items() if k != "rollbacks"))),
    ("frames/s", lambda w: _number(w.last.get("train", {}).get("frames_per_second"), ",.0f")),
    ("MFU", lambda w: _share(w.last.get("train", {}).get("mfu"))),
]


def table(experiments: list[Watched]) -> list[str]:
    """A column for each training."""
    columns = [["", *(name for name, _ in ROWS)]]
    for w in experiments:
        columns.append([str(w.asked), *(value(w) for _, value in ROWS)])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        )
        for row in zip(*columns)
    ]
