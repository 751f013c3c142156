"""What was measured of several experiments, with intervals: a line each figure, a column each
experiment.

What an experiment lacks is "not run" together with the command that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvqlm.reports.compare import Row
from rvqlm.reports.compare_table import KINDS, model_words, nats_words, uncertainty
from rvqlm.reports.formatting import number, percent
from rvqlm.reports.judged import VIEWS, Figure


@dataclass
class Cell:
    """A figure of an experiment."""

    text: str = ""
    within: str = ""
    """Its 95 % interval, or what else belongs to it."""
    command: str | None = None
    """What makes it, where it was not run."""


@dataclass
class Line:
    name: str
    tip: str
    cells: list[Cell]
    references: str = ""
    """The same figure of recordings."""


def rate_cell(rate: dict | None, command: str | None = None) -> Cell:
    """An error rate with its interval."""
    if rate is None:
        return Cell("–", command=command)
    low, high = rate.get("interval") or (None, None)
    within = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f} %"
    return Cell(f"{100 * rate['error_rate']:.1f} %", within)


def figures_table(rows: list[Row], split: str) -> list[Line]:
    """Lines that say something of at least one experiment, or what to run for that."""
    lines: list[Line] = []

    def add(name: str, tip: str, cell: Callable[[Row], Cell]) -> None:
        cells = [cell(row) for row in rows]
        if any(c.text not in ("", "–") or c.command for c in cells):
            lines.append(Line(name, tip, cells))

    def plain(value: Callable[[Row], object], form: Callable[[object], str]) -> Callable:
        return lambda row: Cell("–" if (found := value(row)) is None else form(found))

    add("model", "Family, and what tells it apart.", lambda r: Cell(model_words(r) or "–"))
    add("parameters", "", plain(lambda r: r.parameters, lambda n: f"{n / 1e6:.1f} M"))
    add(
        "training",
        "Minutes of the training loop, validation included, and steps.",
        lambda r: Cell(
            f"{number(r.minutes)} min" if r.minutes else "–",
            f"{r.steps:,} steps" if r.steps else "",
        ),
    )
    add(
        "throughput",
        "Frames that were trained on over all seconds of the training, pauses included; and the "
        "median of single lines of the log.",
        lambda r: Cell(
            f"{number(r.throughput)} frames/s" if r.throughput else "–",
            f"median {number(r.median_speed)}" if r.median_speed else "",
        ),
    )
    add("bits per second", f"Of held-out audio, split {split}.", lambda r: _bits(r, split))
    add(
        "nats per level",
        "Mean nats of a code, level by level.",
        lambda r: Cell(nats_words(r.evaluation["nats"]) if r.evaluation else "–"),
    )
    add(
        "symbols wrong",
        "What a recogniser gets wrong of the samples that were given a text; 95 % interval over "
        "samples.",
        lambda r: rate_cell(_whole(r), _recognize(r)),
    )
    add(
        "without word boundaries",
        "The same without word boundaries and punctuation, which have no sound of their own.",
        lambda r: rate_cell(r.recognition.sounds if r.recognition else None, _recognize(r)),
    )
    add(
        "nearest to its own text",
        "Samples whose transcript is nearer to their own text than to any other's.",
        plain(lambda r: r.recognition and r.recognition.identified, lambda n: f"{n[0]} of {n[1]}"),
    )
    add(
        "by chance",
        "Symbols wrong against the texts of other samples.",
        plain(lambda r: r.recognition and r.recognition.chance, lambda c: f"{100 * c:.1f} %"),
    )
    for kind in KINDS:
        _add_kind(add, kind)
    for name in dict.fromkeys(name for row in rows for name in row.judged.figures):
        figures = [row.judged.figures.get(name) for row in rows]
        known = next(f for f in figures if f)
        cells = [
            Cell(f.text("samples"), f.within("samples")) if f else Cell("–", command=_judge(row))
            for row, f in zip(rows, figures)
        ]
        lines.append(Line(name, known.tip, cells, _references(known)))
    return lines


def _add_kind(add: Callable, kind: str) -> None:
    """Samples of a kind: silence and repetition."""

    def cell(value: Callable) -> Callable[[Row], Cell]:
        def of(row: Row) -> Cell:
            made = row.samples.get(kind)
            share = made and value(made)
            return Cell("–") if share is None else Cell(percent(share), f"{made.count} samples")

        return of

    add(f"silent, {kind}", "Share of 20 ms windows below -50 dB.", cell(lambda s: s.silence))
    add(
        f"repeating, {kind}",
        "Share of frames in runs of 8 or more coarse codes that occurred before in the sample.",
        cell(lambda s: s.repetition),
    )


def _judge(row: Row) -> str | None:
    """The command for figures of judges, where there is something to judge."""
    tokens = row.flags.get("manifest-dir", "TOKENS")
    return f"rvqlm judge --samples {row.exp_dir} --references {tokens}" if row.samples else None


def _references(figure: Figure) -> str:
    of = {v: figure.text(v) for v in VIEWS if v in figure.means and v != "samples"}
    return "; ".join(f"{VIEWS[view]} {text}" for view, text in of.items())


def _bits(row: Row, split: str) -> Cell:
    evaluation = row.evaluation
    if not evaluation or not evaluation.get("bits_per_second"):
        tokens = row.flags.get("manifest-dir", "TOKENS")
        command = f"rvqlm evaluate --exp-dir {row.exp_dir} --manifest-dir {tokens} --split {split}"
        return Cell(command=None if row.family == "recognizer" else command, text="–")
    within = uncertainty(evaluation)
    return Cell(
        f"{'≤ ' if evaluation['bound'] else ''}{evaluation['bits_per_second']:,.0f}",
        f"± {within:,.0f}" if within else "",
    )


def _whole(row: Row) -> dict | None:
    return row.recognition and vars(row.recognition)


def _recognize(row: Row) -> str | None:
    """The command for error rates, where there is something that was to be said."""
    spoken = next((Path(s.wavs[0]).parent for s in row.samples.values() if s.texts), None)
    return spoken and f"rvqlm recognize --recognizer RECOGNIZER --samples {spoken}"
