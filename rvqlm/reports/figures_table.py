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
from rvqlm.reports.evaluation import code_divergence
from rvqlm.reports.formatting import mean, number, percent, signed
from rvqlm.reports.judged import VIEWS, Figure
from rvqlm.reports.recognition import recognizer_for


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
    _add_references(add, split)
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
    if not all(row.family == "recognizer" for row in rows):
        add("release checks", "What a model must not do before it is given to others.", _checks)
        add("best settings", "Of generation, compared on the same recordings.", _settings)
    for name in dict.fromkeys(name for row in rows for name in row.judged.figures):
        figures = [row.judged.figures.get(name) for row in rows]
        known = next(f for f in figures if f)
        cells = [
            Cell(f.text("samples"), f.within("samples")) if f else Cell("–", command=_judge(row))
            for row, f in zip(rows, figures)
        ]
        lines.append(Line(name, known.tip, cells, _references(known)))
    return lines


def _add_references(add: Callable, split: str) -> None:
    """What an evaluation says beside its bits: what they are worth without a model, how sure the
    model is, and how it fares by itself."""

    def of(show: Callable[[dict], Cell | None], key: str) -> Callable[[Row], Cell]:
        def cell(row: Row) -> Cell:
            evaluation = row.evaluation or {}
            if key in evaluation:
                return (evaluation[key] and show(evaluation[key])) or Cell("–")
            return Cell("–", command=_evaluate(row, split, key))

        return cell

    def calibration(by_level: list[float | None]) -> Cell | None:
        error = mean(by_level)
        return None if error is None else Cell(f"{100 * error:.1f} %")

    def level_0(found: dict) -> Cell:
        apart, within = found["likelihood"]["difference"][0], found["likelihood"]["interval"]
        ends = within[0] if within and apart is not None else ()
        return Cell(signed(apart), " to ".join(map(signed, ends)))

    def codes(found: dict) -> Cell:
        own, recorded = code_divergence(found)
        return Cell(f"{own:.2f}", f"recordings {recorded:.2f}")

    def shared(found: dict) -> Cell | None:
        runs = found["shared_runs"].get("level_0") or {}
        if "samples" not in runs:
            return None
        beside = (f"{kind} {run['mean']:.1f}" for kind, run in runs.items() if kind != "samples")
        return Cell(f"{runs['samples']['mean']:.1f} frames", ", ".join(beside))

    add(
        "saved of the previous frame",
        "Bits per second fewer than for who knows which codes follow each other in training.",
        of(lambda gain: Cell(number(gain["bits_per_second"]), _ends(gain["interval"])), "gain"),
    )
    add(
        "calibration error",
        "Mean over levels of the expected calibration error: how far the probability of the "
        "likeliest code is from how often it is right.",
        of(calibration, "calibration_error"),
    )
    add(
        "parts from the recording",
        "A greedy continuation, of level 0: half of them within so long.",
        of(
            lambda free: Cell(
                f"{free['first_divergence']['median_seconds']:.2f} s",
                f"{free['first_divergence']['never']} of {free['recordings']} never",
            ),
            "free_running",
        ),
    )
    add(
        "own samples, nats",
        "Of a code of level 0, less those of recordings: far below 0 is in love with what it says, "
        "far above lost in what it does not know.",
        of(level_0, "free_running"),
    )
    add(
        "divergence of codes",
        "KL of the codes that it uses from those of the split, mean over levels; of as many "
        "recorded codes beside it.",
        of(codes, "free_running"),
    )
    add(
        "shared with training",
        "Longest run of level 0 that is in a training recording, mean over continuations.",
        of(shared, "free_running"),
    )


def _ends(interval: list[float]) -> str:
    return " to ".join(map(number, interval))


def _checks(row: Row) -> Cell:
    if row.checks is None:
        return Cell("–", command=row.run_again().check(_recognizer(row)))
    return Cell(row.checks.words, ", ".join(row.checks.failed))


def _settings(row: Row) -> Cell:
    if row.grid is None:
        return Cell("–", command=row.run_again().grid(_recognizer(row)))
    return Cell(row.grid.best, "" if row.grid.certain else "not certain")


def _recognizer(row: Row) -> Path | str | None:
    given = row.given if row.given is not None else row.flags.get("conditions") or []
    return recognizer_for(Path(row.exp_dir), given)


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
    return row.run_again().judge() if row.samples else None


def _evaluate(row: Row, split: str, key: str = "") -> str | None:
    """The command for a figure of an evaluation, where the model has it."""
    run_again = row.run_again(split)
    if row.family == "recognizer" or (key == "calibration_error" and row.family == "masked"):
        return None
    if key == "free_running":
        return run_again.run_freely((row.evaluation or {}).get("prompt_fraction", 0.0))
    return run_again.evaluate()


def _references(figure: Figure) -> str:
    of = {v: figure.text(v) for v in VIEWS if v in figure.means and v != "samples"}
    return "; ".join(f"{VIEWS[view]} {text}" for view, text in of.items())


def _bits(row: Row, split: str) -> Cell:
    evaluation = row.evaluation
    if not evaluation or not evaluation.get("bits_per_second"):
        return Cell("–", command=_evaluate(row, split))
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
    return spoken and row.run_again().recognize(spoken)
