"""The curves of trainings as a picture."""

from __future__ import annotations

from pathlib import Path

from rvqlm.files import atomic_write
from rvqlm.reports.monitor import Watched


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
