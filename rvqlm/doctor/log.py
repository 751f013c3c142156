"""The log of a training: spikes, where it diverged, skipped steps, levels that learn nothing.

Steps and epochs are those of the lines of metrics.jsonl (epochs count from 0). A train line is the
mean since the line before, so a place is known to within --log-every-steps.
"""

from __future__ import annotations

from functools import cached_property
from math import exp, inf, isfinite, log, nan
from pathlib import Path
from typing import NamedTuple

from rvqlm.checkpoints.archives import archives
from rvqlm.doctor.finding import rule, some
from rvqlm.doctor.series import Judged, judge
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
    counts = {k: n if isfinite(n) else 0.0 for k, n in counts.items()}
    loss = number(record.get("loss"))
    if not isfinite(loss) and any(counts.values()):
        loss = None
    grad_norm, nats = number(record.get("grad_norm")), record.get("nats") or []
    return Line(record["step"], record["epoch"], loss, grad_norm, nats, counts)


class Log:
    """Lines of the kinds ``train`` and ``valid``, and what became of their losses."""

    def __init__(self, path: Path):
        self.path, self.damaged = path, 0
        self.lines: dict[str, list[Line]] = {"train": [], "valid": []}
        for _, record in scan_log(path):
            if record is None or not isinstance(record.get("epoch"), int):
                self.damaged += 1
            elif record["kind"] in self.lines:
                self.lines[record["kind"]].append(_line(record))

    @cached_property
    def losses(self) -> dict[str, Judged]:
        """Of the kinds that have lines."""
        given = {kind: lines for kind, lines in self.lines.items() if lines}
        return {k: judge([x.loss for x in lines], LEAST_LOSS) for k, lines in given.items()}

    @cached_property
    def summary(self) -> dict:
        """JSON: numbers of lines, lowest losses, steps of spikes and of divergence, skipped."""
        train = self.lines["train"]
        out: dict = {"path": str(self.path), "damaged_lines": self.damaged}
        for kind, lines in self.lines.items():
            out[f"{kind}_lines"] = len(lines)
        for kind, judged in self.losses.items():
            # a rise of the validation loss alone is overfitting
            alone = kind == "valid" and judged.creeping and "diverged" not in out.get("train", {})
            out[kind] = _of_losses(self.lines[kind], judged, "overfitted" if alone else "diverged")
        names = sorted({k for line in train for k in line.counts})
        out["skipped"] = {k: int(sum(line.counts.get(k, 0) for line in train)) for k in names}
        return out


def _of_losses(lines: list[Line], judged: Judged, rise: str) -> dict:
    """JSON of one kind of lines; `rise` is the key of a lasting rise."""
    given = [line for line in lines if line.loss is not None]
    last = given[-1].loss if given else None
    out: dict = {"last": last, "last_step": lines[-1].step}
    if finite := [line for line in given if isfinite(line.loss)]:
        low = min(finite, key=lambda line: line.loss)
        out |= {"lowest": low.loss, "lowest_step": low.step, "lowest_epoch": low.epoch}
    out["spikes"] = [
        {"step": lines[e.highest].step, "epoch": lines[e.highest].epoch,
         "peak": lines[e.highest].loss, "usual": e.level}
        for e in judged.spikes
    ]  # fmt: skip
    if (e := judged.divergence) is not None:
        begin, good = lines[e.first], lines[e.first - 1]
        out[rise] = {"step": begin.step, "epoch": begin.epoch, "last_good_step": good.step,
                     "usual": e.level, "last": last,
                     "levels": _risen(good.nats, lines[-1].nats)}  # fmt: skip
    return out


def _risen(before: list, after: list) -> list[int]:
    """Levels whose nats rose in a divergence, the most first."""
    rise = {k: b - a if b is not None and isfinite(b) else inf
            for k, (a, b) in enumerate(zip(before, after)) if a is not None}  # fmt: skip
    return sorted((k for k, r in rise.items() if r > 0.2), key=lambda k: -rise[k])


MANY_SPIKES = 5
"""More spikes of the loss than this are of concern, and any that doubles it; fewer came back."""
MAX_SKIPPED = {"skipped_nonfinite": 0.0, "skipped_overflow": 0.05, "rollbacks": 0.0}
"""Share of the steps that may be skipped for each reason, else 0.01. A non-finite gradient is a
fault whenever it comes; fp16's loss scale grows until it overflows and so skips a step now and
then."""
LEARNED, UNLEARNED, TIME_TO_LEARN = 0.9, 0.998, 500
"""A level learns nothing if its loss is above this share of ln V (a guess) after so many steps
while the other levels are below the first share on the mean."""
_NAMES = {"train": "training", "valid": "validation"}


@rule("note", "log", "spikes of the {loss} loss: {peaks}",
      "--outlier-deviations skips such batches; EXP/bad_batches has those that were")  # fmt: skip
def loss_spikes(c):
    for kind, judged in c.log.losses.items():
        spikes = c.log.summary[kind]["spikes"]
        if not spikes:
            continue
        doubled = any(not x["peak"] < 2 * x["usual"] for x in spikes)
        many = len(spikes) > max(MANY_SPIKES, len(c.log.lines[kind]) / 100)
        peaks = (f"{x['peak']:.4g} at step {x['step']:,} (usual {x['usual']:.4g})" for x in spikes)
        yield {
            "severity": "concern" if many or doubled or judged.spikes[-1].open else "note",
            "where": _place(spikes[0]),
            "loss": _NAMES[kind],
            "peaks": some(peaks),
        }


def _place(x: dict) -> str:
    return f"step {x['step']:,}, epoch {x['epoch']}"


@rule("note", "log", "the gradient norm jumped: {peaks}",
      "--clip-grad-norm bounds what such a step does")  # fmt: skip
def gradient_spikes(c):
    lines = [line for line in c.log.lines["train"] if isfinite(line.grad_norm)]
    logs = [log(max(line.grad_norm, 1e-30)) for line in lines]
    judged = judge(logs, least=log(GRAD_FACTOR))
    found = judged.spikes + ([judged.divergence] if judged.divergence else [])
    peaks = [
        f"{lines[e.highest].grad_norm:.3g} at step {lines[e.highest].step:,} (usual "
        f"{exp(e.level):.2g})"
        for e in found
    ]
    if peaks:
        yield {
            "severity": "concern" if judged.divergence else "note",
            "where": lines[found[0].first].place,
            "peaks": some(peaks),
        }


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


def _checkpoint_before(c, step: int) -> Path | None:
    """The checkpoint of the experiment that is nearest before `step`."""
    folder = c.log.path.parent
    kept = [*archives(folder, "step"), *archives(folder, "best")]
    there = [(int(path.name.split("-")[1]), path) for path in kept]
    best = ((c.state or {}).get("best") or {}).get("step")
    if best and (folder / "best.pt").exists():
        there.append((best, folder / "best.pt"))
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


@rule("note", "log", "{total:,} {what} ({share:.1%} of all steps)",
      "EXP/bad_batches has the batches: rvqlm doctor --replay; lower --base-lr if they differ in "
      "nothing from others")  # fmt: skip
def skipped_steps(c):
    train = c.log.lines["train"]
    for name, total in c.log.summary["skipped"].items():
        if total:
            share = total / max(1, train[-1].step)
            places = [line.place for line in train if line.counts.get(name)]
            yield {
                "severity": "concern" if share > MAX_SKIPPED.get(name, 0.01) else "note",
                "where": f"from {places[0]} to {places[-1]}",
                "what": name.replace("skipped_", "steps skipped as "),
                "total": total,
                "share": share,
            }


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
