"""Geometry of the report's figures: line charts as percentages, spectrograms as small PNGs.

Charts are computed here and drawn by the page's template: paths in a unit square that the browser
stretches, tick labels as text beside it. So they stay sharp and legible at any width, follow the
light or dark theme, and need no plotting library. Spectrograms are palette PNGs, 10-40 kB each.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np

from rvqlm.metrics.audio_metrics import log_spectrum
from rvqlm.reports.formatting import number

MAX_POINTS = 240


class Series(NamedTuple):
    """One line of a chart. `kind` names its colour in the stylesheet."""

    label: str
    kind: str
    x: list[float]
    y: list[float]


class Reference(NamedTuple):
    """A horizontal line with a name."""

    label: str
    kind: str
    value: float


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high].

    >>> nice_ticks(0, 7.3)
    [0.0, 2.0, 4.0, 6.0]
    """
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        return [low]
    ticks = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [round(float(t), 10) for t in ticks if low - slack <= t <= high + slack]


def thin(x: list[float], y: list[float], limit: int = MAX_POINTS) -> tuple[list, list]:
    """At most `limit` points: means over runs of neighbours of equal number. Drops non-finite y."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[keep], ys[keep]
    if xs.size > limit:
        xs, ys = (np.array([run.mean() for run in np.array_split(a, limit)]) for a in (xs, ys))
    return xs.tolist(), ys.tolist()


def y_limits(series: list[Series], references: list[Reference]) -> tuple[float, float]:
    """Range that shows every reference and nearly all points.

    The first steps of a training run are off the scale of everything that follows, so the top is
    the larger of the references and the 97th percentile of the points.
    """
    values = [v for s in series for v in s.y if math.isfinite(v)]
    marks = [r.value for r in references]
    if not values and not marks:
        return 0.0, 1.0
    high = max(marks + ([float(np.quantile(values, 0.97))] if values else []))
    low = min(marks + values)
    margin = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-6)
    return low - margin, high + margin


def chart(
    series: list[Series],
    references: list[Reference] | None = None,
    x_label: str = "",
    y_label: str = "",
    limits: tuple[float, float] | None = None,
    ticks: int = 5,
) -> dict:
    """Everything the template needs to draw a line chart.

    Positions are percentages of the plot, x from the left and y from the top; ``path`` is SVG path
    data in the same units. ``hover`` carries the values that the page shows under the pointer.
    """
    references = references or []
    drawn = [Series(s.label, s.kind, *thin(s.x, s.y)) for s in series]
    drawn = [s for s in drawn if s.x]
    low, high = limits or y_limits(drawn, references)
    right = max((s.x[-1] for s in drawn), default=1.0) or 1.0

    def px(v: float) -> float:
        return round(100 * v / right, 2)

    def py(v: float) -> float:
        return round(min(100.0, max(0.0, 100 * (high - v) / (high - low))), 2)

    lines = []
    for s in drawn:
        points = [(px(a), py(b)) for a, b in zip(s.x, s.y)]
        lines.append(
            {
                "label": s.label,
                "kind": s.kind,
                "path": "M" + "L".join(f"{a} {b}" for a, b in points),
                "last": points[-1],
                "hover": [[*p, number(a), number(b, 4)] for p, a, b in zip(points, s.x, s.y)],
            }
        )
    return {
        "lines": lines,
        "references": [
            {"label": r.label, "kind": r.kind, "y": py(r.value), "value": number(r.value, 4)}
            for r in references
        ],
        "x_ticks": [(px(t), f"{t:g}") for t in nice_ticks(0, right, ticks)],
        "y_ticks": [(py(t), f"{t:,g}") for t in nice_ticks(low, high, ticks)],
        "x_label": x_label,
        "y_label": y_label,
    }


def mel(hz):
    """Mel scale of O'Shaughnessy (1987): 2595 log10(1 + f / 700)."""
    return 2595 * np.log10(1 + np.asarray(hz, float) / 700)


def frequency_ticks(sampling_rate: int) -> list[tuple[float, str]]:
    """(percent from the top, label) for a `spectrogram_png` of this sampling rate."""
    top = sampling_rate / 2
    marks = [hz for hz in (500, 1000, 2000, 4000, 8000, 16000) if hz < 0.97 * top]
    return [(round(100 * (1 - float(mel(hz) / mel(top))), 1), f"{hz / 1000:g}k") for hz in marks]


def spectrogram_png(
    audio, sampling_rate: int, width: int = 720, height: int = 112, range_db: float = 75.0
) -> bytes:
    """A spectrogram as PNG bytes: time to the right, mel-spaced frequency upwards.

    Args:
        audio: (S,) or (C, S) in [-1, 1].
        sampling_rate: Hz; the top of the picture is half of it.
        width: pixels; columns are averaged over the audio they cover.
        height: pixels.
        range_db: how far below -5 dBFS per bin the darkest colour lies. The scale is absolute, so
            that loudness can be compared between pictures.
    """
    import matplotlib
    from PIL import Image

    spectrum = log_spectrum(audio, sampling_rate)  # (F, bins)
    bins = spectrum.shape[1]
    # rows: interpolate at frequencies equally spaced in mel
    hz = 700 * (10 ** (np.linspace(0, mel(sampling_rate / 2), height) / 2595) - 1)
    at = hz / (sampling_rate / 2) * (bins - 1)
    rows = np.stack([np.interp(at, np.arange(bins), frame) for frame in spectrum])  # (F, height)
    if len(rows) >= width:
        columns = np.stack([part.mean(0) for part in np.array_split(rows, width)])
    else:
        columns = rows[np.arange(width) * len(rows) // width]
    scaled = np.clip((columns + 5 + range_db) / range_db, 0, 1)  # (width, height)
    levels = 64  # enough for the eye, and the file is a third smaller than with 256
    index = np.round(scaled * (levels - 1)).astype(np.uint8).T[::-1]
    palette = matplotlib.colormaps["magma"](np.linspace(0, 1, levels))[:, :3]
    image = Image.frombytes("P", (width, height), index.tobytes())
    image.putpalette(np.round(palette * 255).astype(np.uint8).ravel().tolist())
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return data.getvalue()
