"""The log of a training: spikes, where it diverged, skipped steps, levels that learn nothing.

Steps and epochs are those of the lines of metrics.jsonl (epochs count from 0). A train line is the
mean since the line before, so a place is known to within --log-every-steps.
"""

from __future__ import annotations

import re
from functools import cached_property
from math import exp, inf, isfinite, log, nan
from pathlib import Path
from typing import NamedTuple

from rvqlm.doctor.finding import rule, some
from rvqlm.doctor.series import Excursion, Judged, judge
from rvqlm.metrics.log import scan_log

LEAST_LOSS = 0.05
"""Nats per code: losses closer than this to the usual ones are never called unusual."""
GRAD_FACTOR = 10.0
"""Times the usual gradient norm; norms scatter like products, so their logarithms are judged."""


class Line(NamedTuple):
    """One line of the log."""

    step: int
    epoch: int
    loss: float | None
    """None: every step of the line was skipped"""
    grad_norm: float
    """NaN: there is none"""
    nats: list
    counts: dict[str, float]
    """skipped_* and rollbacks, since the line before"""

    @property
    def place(self) -> str:
        return f"step {self.step:,}, epoch {self.epoch}"


def _line(record: dict) -> Line:
    def number(value) -> float:
        return float(value) if isinstance(value, (int, float)) else nan

    counts = {k: number(n) for k, n in record.items() if k.startswith(("skipped_", "rollbacks"))}
    loss = number(record.get("loss"))
    if not isfinite(loss) and any(counts.values()):
        loss = None
    grad_norm, nats = number(record.get("grad_norm")), record.get("nats") or []
    return Line(record["step"], record["epoch"], loss, grad_norm, nats, counts)


class Log:
    """Lines of the kinds ``train`` and ``valid``, and what became of their values."""

    def __init__(self, path: Path):
        self.path, self.damaged = path, 0
        self.lines: dict[str, list[Line]] = {"train": [], "valid": []}
        for _, record in scan_log(path):
            if record is None or not isinstance(record.get("epoch"), int):
                self.damaged += 1
            elif record["kind"] in self.lines:
                self.lines[record["kind"]].append(_line(record))
        steps = [line.step for lines in self.lines.values() for line in lines]
        self.first_step, self.last_step = min(steps, default=None), max(steps, default=None)

    @cached_property
    def losses(self) -> dict[str, Judged]:
        """Of the kinds that have lines."""
        given = {kind: lines for kind, lines in self.lines.items() if lines}
        return {k: judge([x.loss for x in lines], LEAST_LOSS) for k, lines in given.items()}

    @cached_property
    def grad_norms(self) -> Judged:
        """Of the logarithms of the gradient norm."""
        # a line whose steps were all skipped has no gradient, and a NaN may stand there
        logs = [None if x.loss is None else log(max(x.grad_norm, 1e-30)) if isfinite(x.grad_norm)
                else nan for x in self.lines["train"]]  # fmt: skip
        return judge(logs, least=log(GRAD_FACTOR), relative=0.0)

    @cached_property
    def summary(self) -> dict:
        """JSON: first and last step, lowest losses, steps of spikes and of divergence."""
        train, valid = self.lines["train"], self.lines["valid"]
        out: dict = {"path": str(self.path), "train_lines": len(train), "valid_lines": len(valid)}
        if self.last_step is None:
            return out
        out |= {"first_step": self.first_step, "last_step": self.last_step}
        for kind, judged in self.losses.items():
            # a rise of the validation loss alone is overfitting
            alone = kind == "valid" and judged.creeping and "diverged" not in out.get("train", {})
            name = "overfitted" if alone else "diverged"
            out[kind] = _of_losses(self.lines[kind], judged, name)
        if any(isfinite(line.grad_norm) for line in train):
            norms, judged = [line.grad_norm for line in train], self.grad_norms
            spikes = [_spike(train, norms, e) for e in judged.excursions]
            spikes = [{**x, "usual": exp(x["usual"])} for x in spikes]
            out["grad_norm"] = {"last": norms[-1], "spikes": spikes}
        out["skipped"] = {
            name: int(sum(self.counts(name)))
            for name in sorted({k for x in train for k in x.counts})
        }
        return out

    def counts(self, name: str) -> list[float]:
        """``skipped_*`` or ``rollbacks`` of each train line, since the line before."""
        counts = [line.counts.get(name, 0.0) for line in self.lines["train"]]
        return [n if isfinite(n) else 0.0 for n in counts]


def _of_losses(lines: list[Line], judged: Judged, name: str) -> dict:
    """
    :param name: of a divergence.
    """
    losses = [line.loss for line in lines]
    last = next((v for v in reversed(losses) if v is not None), None)
    out: dict = {"last": last, "last_step": lines[-1].step}
    if finite := [v for v in losses if v is not None and isfinite(v)]:
        low = lines[losses.index(min(finite))]
        out |= {"lowest": low.loss, "lowest_step": low.step, "lowest_epoch": low.epoch}
    out["spikes"] = [_spike(lines, losses, e) for e in judged.spikes]
    if (e := judged.divergence) is not None:
        begin, good = lines[e.first], lines[e.first - 1]
        out[name] = {"step": begin.step, "epoch": begin.epoch, "last_good_step": good.step,
                     "usual": e.level, "peak": e.peak, "last": last, "creeping": judged.creeping,
                     "levels": _risen(good.nats, lines[-1].nats)}  # fmt: skip
    return out


def _spike(lines: list[Line], values: list, e: Excursion) -> dict:
    """The highest value of an excursion."""

    def height(i: int) -> float:
        return -inf if values[i] is None else values[i] if isfinite(values[i]) else inf

    i = max(range(e.first, e.last + 1), key=height)
    return {"step": lines[i].step, "epoch": lines[i].epoch, "peak": values[i], "usual": e.level}


def _risen(before: list, after: list) -> list[int]:
    """Levels whose nats rose in a divergence, the most first."""
    rise = {k: b - a if b is not None and isfinite(b) else inf
            for k, (a, b) in enumerate(zip(before, after)) if a is not None}  # fmt: skip
    return sorted((k for k, r in rise.items() if r > 0.2), key=lambda k: -rise[k])


MANY_SPIKES = 5
"""More spikes of the loss than this are of concern, and any that doubles it; fewer came back."""
MAX_SKIPPED = {"nonfinite": 0.0, "outlier": 0.01, "overflow": 0.05}
"""Share of the steps that may be skipped for each reason. A non-finite gradient is a fault
whenever it comes; fp16's loss scale grows until it overflows and so skips a step now and then."""
LEARNED, UNLEARNED, TIME_TO_LEARN = 0.9, 0.998, 500
"""A level learns nothing if its loss is above this share of ln V (a guess) after so many steps
while the other levels are below the first share on the mean."""
_NAMES = {"train": "training", "valid": "validation"}


@rule("note", "log", "{n} damaged lines, skipped", "a crash tears one")
def damaged_lines(c):
    if c.log.damaged:
        yield {"where": c.log.path, "n": c.log.damaged}


@rule("note", "log", "no train or valid lines in it")
def empty_log(c):
    if c.log.last_step is None:
        yield {"where": c.log.path}


@rule("note", "log", "the log ends at step {last:,}, the checkpoint is of {step:,}",
      "lines were lost or the log was moved")  # fmt: skip
def log_ends_early(c):
    last = c.log.last_step
    if last is not None and last + (c.config.get("log-every-steps") or 1) < c.step:
        yield {"where": c.log.path, "last": last}


@rule("note", "log", "{n} of the {loss} loss: {peaks}",
      "--outlier-deviations skips such batches; EXP/bad_batches has those that were")  # fmt: skip
def loss_spikes(c):
    for kind, judged in c.log.losses.items():
        lines, spikes = c.log.lines[kind], c.log.summary[kind]["spikes"]
        if not spikes:
            continue
        doubled = any(not x["peak"] < 2 * x["usual"] for x in spikes)
        many = len(spikes) > max(MANY_SPIKES, len(lines) / 100)
        worst = max(judged.spikes, key=lambda e: e.peak)
        yield {
            "severity": "concern" if many or doubled or judged.spikes[-1].open else "note",
            "where": lines[worst.first].place,
            "n": f"{len(spikes)} spikes" if len(spikes) > 1 else "a spike",
            "loss": _NAMES[kind],
            "peaks": some(
                f"{x['peak']:.4g} at step {x['step']:,} (usual {x['usual']:.4g})" for x in spikes
            ),
        }


@rule("note", "log", "the {loss} loss rose from {level:.4g} to a new level and stayed there",
      "a change of the data or of a schedule does that")  # fmt: skip
def new_level(c):
    for kind, judged in c.log.losses.items():
        for e in judged.shifts:
            place = c.log.lines[kind][e.first].place
            yield {"where": place, "loss": _NAMES[kind], "level": e.level}


@rule("concern", "log", "the training diverged: the {loss} loss began to rise here, from "
      "{usual:.4g} to {last:.4g} nats per code{most}",
      "{advice}; keep --clip-grad-norm and --outlier-deviations above 0")  # fmt: skip
def diverged(c):
    for kind in c.log.losses:
        if d := c.log.summary[kind].get("diverged"):
            safe = _checkpoint_before(c, d["last_good_step"])
            yield {
                **d,
                "where": _place(d),
                "loss": _NAMES[kind],
                "most": f"; most of all level {some(d['levels'], 3)}" if d["levels"] else "",
                "advice": f"resume from {safe} with a lower --base-lr" if safe else
                          "start anew with a lower --base-lr or a longer warm-up",
            }  # fmt: skip


def _place(x: dict) -> str:
    return f"step {x['step']:,}, epoch {x['epoch']}"


def _checkpoint_before(c, step: int) -> Path | None:
    """The checkpoint of the experiment that is nearest before `step`."""
    there = []
    for path in c.exp_dir.glob("archive/*.pt"):
        if match := re.match(r"(?:step|best)-(\d+)", path.name):
            there.append((int(match[1]), path))
    best = ((c.state or {}).get("best") or {}).get("step")
    if best and (c.exp_dir / "best.pt").exists():
        there.append((best, c.exp_dir / "best.pt"))
    return max((p for p in there if p[0] <= step), default=(0, None))[1]


@rule("note", "log",
      "overfitting: the validation loss has risen from {usual:.4g} to {last:.4g}",
      "best.pt has the lowest loss; more data, --dropout or fewer epochs keep it low")  # fmt: skip
def overfitted(c):
    if d := c.log.summary.get("valid", {}).get("overfitted"):
        yield {**d, "where": _place(d)}


@rule("note", "log", "no lower validation loss in the {since} validations since ({lowest:.4f})",
      "a smaller learning rate or more data may help; more of the same does not")  # fmt: skip
def plateau(c):
    """The lowest validation loss is more than 10 validations and half of the run ago."""
    lines, valid = c.log.lines["valid"], c.log.summary.get("valid", {})
    if "lowest" not in valid or c.log.losses["valid"].divergence is not None:
        return
    at = [line.step for line in lines].index(valid["lowest_step"])
    since = len(lines) - 1 - at
    if since >= max(10, len(lines) / 2):
        yield {"where": lines[at].place, "since": since, "lowest": valid["lowest"]}


@rule("note", "log", "the gradient norm jumped: {peaks}{before}",
      "--clip-grad-norm bounds what such a step does")  # fmt: skip
def gradient_spikes(c):
    spikes = c.log.summary.get("grad_norm", {}).get("spikes")
    if not spikes:
        return
    end = c.log.summary["train"].get("diverged", {}).get("step", -1)
    judged, peaks = c.log.grad_norms, [x["peak"] for x in spikes]
    yield {
        "severity": "concern" if judged.divergence or not all(map(isfinite, peaks)) else "note",
        "where": c.log.lines["train"][judged.excursions[0].first].place,
        "peaks": some(f"{x['peak']:.3g} at step {x['step']:,} (usual {x['usual']:.2g})"
                      for x in spikes),
        "before": "; before the loss diverged" if any(x["step"] <= end for x in spikes) else "",
    }  # fmt: skip


@rule("note", "log", "{total:,} steps skipped as {reason} ({share:.1%} of all){most}",
      "EXP/bad_batches has the batches: rvqlm doctor --replay; lower --base-lr if they differ in "
      "nothing from others")  # fmt: skip
def skipped_steps(c):
    for name, total in c.log.summary.get("skipped", {}).items():
        if total and name != "rollbacks":
            lines, counts = c.log.lines["train"], c.log.counts(name)
            reason, share = name.removeprefix("skipped_"), total / max(1, lines[-1].step)
            most = lines[counts.index(max(counts))].place
            yield {
                "severity": "concern" if share > MAX_SKIPPED.get(reason, 0.01) else "note",
                "where": _from_to(c.log, counts),
                "total": total,
                "reason": reason,
                "share": share,
                "most": f", most at {most}" if sum(map(bool, counts)) > 1 else "",
            }


@rule("concern", "log", "{total} rollbacks to the last good checkpoint",
      "EXP/bad_batches has the batches: rvqlm doctor --replay")  # fmt: skip
def rollbacks(c):
    if total := c.log.summary.get("skipped", {}).get("rollbacks"):
        yield {"where": _from_to(c.log, c.log.counts("rollbacks")), "total": total}


def _from_to(log, counts: list[float]) -> str:
    """Places of the first and of the last line that counts any."""
    places = [line.place for line, n in zip(log.lines["train"], counts) if n]
    return f"from {places[0]}" + (f" to {places[-1]}" if len(places) > 1 else "")


@rule("concern", "log", "a dead level: its codes are guessed ({nats:.3f} nats, ln V = {guess:.3f}) "
      "while others are learned",
      "check the weights of the levels, and whether the codec uses it: rvqlm validate prints its "
      "entropy")  # fmt: skip
def level_not_learned(c):
    size = ((c.state or {}).get("codec") or {}).get("codebook_size")
    lines = [line.nats for line in c.log.lines["train"][-5:]]
    if not size or not lines or c.log.lines["train"][-1].step < TIME_TO_LEARN:
        return
    levels = [sorted(v for v in nats if v is not None) for nats in zip(*lines)]
    shares = {k: v[len(v) // 2] / log(size) for k, v in enumerate(levels) if v}
    for k, share in shares.items():
        others = [s for j, s in shares.items() if j != k and s < UNLEARNED]
        if share >= UNLEARNED and others and sum(others) / len(others) < LEARNED:
            yield {"where": f"level {k}", "nats": share * log(size), "guess": log(size)}
