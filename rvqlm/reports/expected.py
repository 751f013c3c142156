"""What trainings of a config have come to, for later ones to be held against.

``NAME.expected.json`` lies beside the ``NAME.yaml`` of a recipe: the flags and the data that it is
of, and of each training that was run its validations, its training loss at a few steps and its
error rate. A training with the same flags and data is compared with these at its own step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from rvqlm.errors import UserError
from rvqlm.files import Count, Finite, Name, Positive, read_json, write_json
from rvqlm.metrics.schemas import Extent
from rvqlm.reports.experiment import Training, default_flags
from rvqlm.reports.recognition import of_samples

RECIPES = Path(__file__).resolve().parents[2] / "egs"
"""Of a checkout."""
MARGIN = 0.02
"""Of a loss: as far as a training may lie beyond those before it and count as expected. Two runs of
one config and seed on differently busy cores (900 and 1,011 steps) ended 1.1 % apart."""
PACE = 0.1
"""Shares of the budget at one step may differ so much; beyond, learning rates do too much."""
POINTS = 12
"""Of a training loss, that are kept."""
REMEDY = "write it again with rvqlm monitor EXP --write-expected FILE"
_IDLE = re.compile(
    r"exp-dir|manifest-dir|tag|device|num-threads|quiet|dry-run|resume|lock-minutes|mfu|seed"
    r"|(log|valid|save|sample|archive|keep)-.*"
)
"""Flags that change no loss, but by chance."""


class Point(TypedDict):
    step: Positive
    minutes: Extent
    loss: Finite
    nats: NotRequired[list[Finite | None]]


class Rate(TypedDict):
    error_rate: Finite
    interval: Annotated[list[Finite], Meta(min_length=2, max_length=2)] | None


class Reached(TypedDict):
    """One training."""

    commit: str | None
    machine: str
    steps: Positive
    minutes: Extent
    train: list[Point]
    valid: Annotated[list[Point], Meta(min_length=1)]
    errors: Rate | None


class Heard(TypedDict):
    """What is audible from a loss on."""

    loss: Finite
    what: Name


class _Data(TypedDict):
    codec: str | None
    train_frames: Count | None


class Expected(TypedDict):
    flags: dict
    data: _Data
    note: NotRequired[str]
    heard: NotRequired[list[Heard]]
    runs: Annotated[list[Reached], Meta(min_length=1)]


# ---------------------------------------------------------------- writing


def write_expected(path: Path, trainings: Sequence[Training], note: str = "") -> None:
    """Write what finished trainings of one config came to. Of a file that is there already,
    ``note`` and ``heard``, which people write, stay.

    :raises UserError: trainings of different flags or data, or without validations.
    """
    first, *others = trainings
    for other in others:
        if differing := differences(identity(first), identity(other)):
            raise UserError(
                f"{first.folder} and {other.folder} are no two runs of one config: {differing}"
            )
    kept = read_expected(path) if path.exists() else {}
    found = identity(first) | {"runs": [_reached(t) for t in trainings]}
    found |= {"note": note or kept.get("note", ""), "heard": kept.get("heard", [])}
    write_json(path, found)


def identity(training: Training) -> dict:
    """What has to be the same: the flags that are not at their defaults, and the data."""
    data = training.about.get("data") or {}
    flags = training.flags()
    defaults = default_flags(flags["model-name"])
    flags = {
        k: v
        for k, v in flags.items()
        if k == "model-name" or not (_IDLE.fullmatch(k) or v == defaults.get(k))
    }
    return {
        "flags": flags,
        "data": {
            "codec": (data.get("codec") or {}).get("fingerprint"),
            "train_frames": (data.get("train") or {}).get("frames"),
        },
    }


def _reached(training: Training) -> Reached:
    from rvqlm.reports.compare import describe_machine

    valid = [_point(r) for r in training.valid if r.get("loss") is not None and r["step"]]
    if not valid:
        raise UserError(f"{training.folder}: no validation; train with --valid-every-minutes")
    lines = [r for r in training.train if r.get("loss") is not None and r["step"]]
    chosen = np.unique(np.geomspace(1, len(lines), POINTS).round().astype(int)) if lines else []
    train = [{k: v for k, v in _point(lines[i - 1]).items() if k != "nats"} for i in chosen]
    recognition = of_samples(training.folder)
    machine = describe_machine(training.about.get("machine") or {})
    return {
        "commit": training.about.get("commit"),
        "machine": machine,
        "steps": max(p["step"] for p in (*train, *valid)),
        "minutes": max(p["minutes"] for p in (*train, *valid)),
        "train": train,
        "valid": valid,
        "errors": recognition
        and {"error_rate": recognition.error_rate, "interval": recognition.interval},
    }


def _point(record: dict) -> Point:
    return {
        "step": record["step"],
        "minutes": round(record.get("elapsed", 0.0) / 60, 2),
        "loss": round(record["loss"], 4),
        "nats": [n if n is None else round(n, 4) for n in record.get("nats", [])],
    }


# ---------------------------------------------------------------- finding


def read_expected(path: Path) -> Expected:
    """:raises UserError: no such file, or a damaged one."""
    return read_json(path, REMEDY, type=Expected)


def expected_files() -> list[Path]:
    """Those of the recipes of this checkout."""
    return sorted(RECIPES.glob("*/conf/**/*.expected.json"))


def find_expected(training: Training) -> tuple[Path, Expected] | None:
    """What a recipe says of trainings like this one; None where none has its flags and data.

    :raises UserError: damaged files.
    """
    try:
        own = identity(training)
    except UserError:  # no config.yaml, or a family that is not here
        return None
    for path in expected_files():
        expected = read_expected(path)
        if not differences(expected, own):
            return path, expected
    return None


def differences(expected: dict, own: dict) -> str:
    """What makes a training another than expected, in words; empty where nothing does.

    :param expected, own: as of `identity`.
    """
    found = []
    for group, missing in (("flags", "the default"), ("data", "?")):
        ours, theirs = expected[group], own[group]
        for name in sorted({*ours, *theirs}):
            a, b = (values.get(name, missing) for values in (ours, theirs))
            if a != b:
                found.append(f"{name} {b} instead of {a}")
    return ", ".join(found)


# ---------------------------------------------------------------- comparing


def at_step(points: Sequence[Point], step: int, level: int | None = None) -> float | None:
    """A loss between the points of a training, straight over the logarithm of the step; None before
    the first, and the last after the last by up to a tenth.

    :param level: nats of this level instead.
    """

    def value(point: Point) -> float | None:
        nats = point.get("nats") or []
        return point["loss"] if level is None else dict(enumerate(nats)).get(level)

    known = [(p["step"], v) for p in points if (v := value(p)) is not None]
    if not known or not known[0][0] <= step <= 1.1 * known[-1][0]:
        return None
    steps, values = zip(*known)
    return float(np.interp(np.log(step), np.log(steps), values))


def expected_range(expected: Expected, kind: str, step: int, level: int | None = None):
    """(lowest, highest) that is expected of a loss, with `MARGIN`; None where no run was there.

    :param kind: ``train`` or ``valid``.
    """
    values = [v for run in expected["runs"] if (v := at_step(run[kind], step, level)) is not None]
    return (min(values) * (1 - MARGIN), max(values) * (1 + MARGIN)) if values else None


def stands(expected: Expected, training: Training, share: float | None) -> Iterator[str]:
    """Where a training stands against what is expected, a line each.

    :param share: of its budget that is used, where it is known.
    """
    for kind, words in (("train", "train"), ("valid", "validation")):
        record = next((r for r in reversed(training.log.get(kind, [])) if r.get("loss")), None)
        if record is None:
            continue
        step, loss = record["step"], record["loss"]
        found = expected_range(expected, kind, step)
        if found is None:
            steps = [run[kind][0]["step"] for run in expected["runs"] if run[kind]]
            early = steps and step < min(steps)
            why = f"nothing is known before step {min(steps):,}" if early else "beyond what was run"
            yield f"step {step:,}: {words} {loss:.2f}; {why}"
            continue
        low, high = found
        yield (
            f"step {step:,}: {words} {loss:.2f}, expected {low:.2f} to {high:.2f}"
            f"{_verdict(loss, low, high)}{_levels(expected, record, kind)}"
        )
    yield from _pace(expected, training, share)
    yield from _ends(expected, training)


def _verdict(value: float, low: float, high: float) -> str:
    if value > high:
        return f": worse by {value - high:.2f}"
    return f": better by {low - value:.2f}" if value < low else ""


def _levels(expected: Expected, record: dict, kind: str) -> str:
    """The levels of a validation that are worse than expected."""
    worse = []
    for level, nats in enumerate(record.get("nats", []) if kind == "valid" else []):
        found = expected_range(expected, kind, record["step"], level)
        if found and nats is not None and nats > found[1]:
            worse.append(f"level {level} {nats:.2f}, expected {found[0]:.2f} to {found[1]:.2f}")
    return f" ({'; '.join(worse)})" if worse else ""


def _pace(expected: Expected, training: Training, share: float | None) -> Iterator[str]:
    """Where the schedule is elsewhere at the same step, as a budget of minutes has it on another
    machine."""
    step = max((r["step"] for of in training.log.values() for r in of), default=0)
    theirs = [step / run["steps"] for run in expected["runs"]]
    if share is None or not step or min(theirs) - PACE <= share <= max(theirs) + PACE:
        return
    moved = "higher" if share < min(theirs) else "lower"
    yield (
        f"{100 * share:.0f} % of the budget are used, where those before had used "
        f"{100 * sum(theirs) / len(theirs):.0f} %: another speed, so the learning rate is "
        f"{moved} than theirs was, and losses may be"
    )


def _ends(expected: Expected, training: Training) -> Iterator[str]:
    """What a training may end in, and what is audible now."""
    losses = [run["valid"][-1]["loss"] for run in expected["runs"]]
    rates = [run["errors"]["error_rate"] for run in expected["runs"] if run["errors"]]
    own = of_samples(training.folder)
    end = f"at the end: validation {_span(losses, '{:.2f}')}"
    if rates:
        end += f", errors of samples {_span(rates, '{:.1%}')}"
        end += f" (here {own.error_rate:.1%})" if own else ""
    yield end
    valid = next((r["loss"] for r in reversed(training.valid) if r.get("loss")), None)
    now = [h for h in expected.get("heard", []) if valid is not None and valid <= h["loss"]]
    if now:
        yield f"audible: {min(now, key=lambda h: h['loss'])['what']}"


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
