"""Trainings as people see them: ten lines of text, a table of several, curves as a picture."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from rvqlm.cli import clock
from rvqlm.files import atomic_write
from rvqlm.reports.formatting import percent, shown
from rvqlm.reports.monitor import Watched

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


def describe(watched: Watched, width: int = 100) -> list[str]:
    """Lines about one training."""
    w, run = watched, watched.run()
    train, valid = w.last.get("train", {}), w.last.get("valid", {})
    newest, left = w.newest, w.left()
    if not newest:
        return [f"{w.exp_dir}: {w.state()}, nothing logged yet"]
    lines = [
        f"{w.exp_dir}: {w.state()}",
        f"  at       step {newest['step']:,}, epoch {newest['epoch'] + 1}, "
        f"{clock(w.elapsed)} of training, {shown(w.progress(), percent)} of the budget"
        + (f", {clock(left)} left" if left and w.state() == "running" else ""),
    ]
    if run:
        lines.append(
            f"  model    {run.get('model')}, {shown(run.get('parameters'), '{:,}')} parameters, "
            f"{run.get('ranks')} ranks, commit {run.get('commit')}, started "
            f"{len(run.get('started', []))} times"
        )
    best = f" (best {w.best[0]:.4f} at step {w.best[1]:,})" if w.best else ""
    nats = " ".join(shown(n, "{:.2f}") for n in (valid or train).get("nats", []))
    lines += [
        f"  loss     train {shown(train.get('loss'), '{:.4f}')}, valid "
        f"{shown(valid.get('loss'), '{:.4f}')}{best}; "
        f"valid perplexity {shown(valid.get('perplexity'), '{:,.1f}')}, "
        f"{shown(valid.get('bits_per_second'), '{:,.0f}')} bits/s",
        f"  levels   {nats} nats ({'valid' if valid else 'train'})",
    ]
    if losses := w.series.get("loss"):
        lines += [
            f"           {sparkline(losses.values, max(10, width - 12))}",
            f"           train {losses.values[0]:.3f} ... {shown(train.get('loss'), '{:.3f}')}",
        ]
    skips = ", ".join(f"{number} {reason}" for reason, number in w.skipped.items())
    lines += [
        f"  steps    lr {shown(train.get('lr'), '{:.3g}')}, gradient "
        f"{shown(train.get('grad_norm'), '{:.3g}')}; skipped {skips}; {w.rollbacks} rollbacks",
        f"  speed    {shown(train.get('frames_per_second'), '{:,.0f}')} frames/s, MFU "
        f"{shown(train.get('mfu'), percent)}, padding {shown(train.get('padding'), percent)}, "
        f"memory {shown(train.get('memory_mb'), '{:,.0f}')} MB",
    ]
    parts = {k.removeprefix("time_"): v for k, v in train.items() if k.startswith("time_")}
    if parts:
        parts["rest"] = max(0.0, 1 - sum(parts.values()))
        lines.append(f"  time     {', '.join(f'{k} {percent(v)}' for k, v in parts.items())}")
    if sample := w.last.get("sample"):
        lines.append(f"  samples  {w.exp_dir}/samples/step-{sample['step']:08d}")
    return lines


def _last(kind: str, key: str, form: str | Callable) -> Callable[[Watched], str]:
    return lambda w: shown(w.last.get(kind, {}).get(key), form)


ROWS: dict[str, Callable[[Watched], str]] = {
    "state": lambda w: w.state().split(":")[0],
    "step": lambda w: shown(w.newest.get("step"), "{:,}"),
    "hours": lambda w: f"{w.elapsed / 3600:.2f}",
    "train loss": _last("train", "loss", "{:.4f}"),
    "valid loss": _last("valid", "loss", "{:.4f}"),
    "best valid": lambda w: shown(w.best and w.best[0], "{:.4f}"),
    "at step": lambda w: shown(w.best and w.best[1], "{:,}"),
    "bits/s": _last("valid", "bits_per_second", "{:,.0f}"),
    "lr": _last("train", "lr", "{:.3g}"),
    "gradient": _last("train", "grad_norm", "{:.3g}"),
    "skipped": lambda w: str(sum(w.skipped.values())),
    "frames/s": _last("train", "frames_per_second", "{:,.0f}"),
    "MFU": _last("train", "mfu", percent),
}


def table(experiments: list[Watched]) -> list[str]:
    """A column for each training."""
    columns = [["", *ROWS]]
    for w in experiments:
        columns.append([str(w.asked), *(value(w) for value in ROWS.values())])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        )
        for row in zip(*columns)
    ]


def plot(experiments: list[Watched], out: str | Path) -> Path:
    """Loss, levels, learning rate, gradient, speed and skips over steps; PNG, SVG or PDF by the
    name of `out`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    loss, levels, rate, gradient, speed, skips = axes.flat
    alone = len(experiments) == 1
    for number, w in enumerate(experiments):
        color, name = f"C{number}", str(w.asked)

        def curve(axis, key, **style):
            series = w.series.get(key)  # noqa: B023 - called within the loop
            if series is not None:
                axis.plot(series.steps, series.values, **style)

        curve(loss, "loss", color=color, alpha=0.5, label=f"{name} train")
        curve(loss, "valid", color=color, marker=".", label=f"{name} valid")
        nats = w.series.get("nats")
        for level in range(len(nats.values[0]) if nats is not None else 0):
            style = {"color": f"C{level}"} if alone else {"color": color, "alpha": 0.4}
            points = [v[level] for v in nats.values]
            levels.plot(nats.steps, points, label=f"level {level}" if alone else None, **style)
        curve(rate, "lr", color=color)
        curve(gradient, "grad_norm", color=color)
        curve(speed, "frames_per_second", color=color)
        curve(skips, "skipped", color=color)
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
    out = Path(out)
    form = out.suffix.lstrip(".") or "png"
    atomic_write(out, lambda path: figure.savefig(path, format=form, dpi=110))
    plt.close(figure)
    return out
