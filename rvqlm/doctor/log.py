"""The log of a training: spikes, where it diverged, skipped steps, levels that learn nothing.

Steps and epochs are those of the lines of metrics.jsonl (epochs count from 0). A train line is the
mean since the line before, so a place is known to within --log-every-steps.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from math import exp, inf, isfinite, log, nan
from pathlib import Path

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient
from rvqlm.doctor.series import Excursion, judge

LEAST_LOSS = 0.05
"""Nats per code: losses closer than this to the usual ones are never called unusual."""
GRAD_FACTOR = 10.0
"""Times the usual gradient norm; norms scatter like products, so their logarithms are judged."""
MANY_SPIKES = 5
"""More spikes of the loss than this are of concern, and any that doubles it; fewer came back."""
MAX_SKIPPED = {"nonfinite": 0.0, "outlier": 0.01, "overflow": 0.05}
"""Share of the steps that may be skipped for each reason. A gradient that is no number is a fault
whenever it comes; fp16's loss scale grows until it overflows and so skips a step now and then."""
LEARNED, UNLEARNED, TIME_TO_LEARN = 0.9, 0.998, 500
"""A level learns nothing if its loss is above this share of ln V (a guess) after so many steps
while the other levels are below the first share on the mean."""


@dataclass
class Series:
    """Lines of one kind, as columns."""

    step: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    nats: list[list] = field(default_factory=list)
    counts: list[dict] = field(default_factory=list)
    """skipped_* and rollbacks"""

    def place(self, i: int) -> str:
        return f"step {self.step[i]:,}, epoch {self.epoch[i]}"


def read_log(path: Path) -> tuple[dict[str, Series], int]:
    """Series of the kinds ``train`` and ``valid``, and the number of damaged lines."""
    series = {"train": Series(), "valid": Series()}
    damaged = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                kind, step, epoch = line["kind"], int(line["step"]), int(line["epoch"])
            except (ValueError, KeyError, TypeError):
                damaged += 1
                continue
            if kind not in series:
                continue
            s = series[kind]
            names = [k for k in line if k.startswith("skipped_") or k == "rollbacks"]
            counts = {k: _number(line[k]) for k in names}
            loss = _number(line.get("loss"))
            if not isfinite(loss) and any(counts.values()):
                loss = None  # every step of the line was skipped: its loss is that of none
            s.step.append(step)
            s.epoch.append(epoch)
            s.loss.append(loss)
            s.grad_norm.append(_number(line.get("grad_norm")))
            s.nats.append(line.get("nats") or [])
            s.counts.append(counts)
    return series, damaged


def _number(value) -> float:
    return float(value) if isinstance(value, (int, float)) else nan


def check_log(patient: Patient) -> tuple[dict, list[Finding]]:
    """Summary of the log beside the checkpoint, and findings about it."""
    series, damaged = read_log(patient.log_path)
    train, valid = series["train"], series["valid"]
    where, found = str(patient.log_path), []
    if damaged:
        found.append(
            Finding("note", "log", where, f"{damaged} damaged lines, skipped", "a crash tears one")
        )
    steps = train.step + valid.step
    out: dict = {"path": where, "train_lines": len(train.step), "valid_lines": len(valid.step)}
    if not steps:
        what = "no train or valid lines in it"
        return out, [*found, Finding("note", "log", where, what, "")]
    out |= {"first_step": min(steps), "last_step": max(steps)}
    if max(steps) + (patient.config.get("log-every-steps") or 1) < patient.step:
        what = f"the log ends at step {max(steps):,}, the checkpoint is of {patient.step:,}"
        found.append(Finding("note", "log", where, what, "lines were lost or the log was moved"))
    for kind, s in series.items():
        if s.step:
            out[kind], more = _check_loss(patient, kind, s, out.get("train", {}))
            found += more
    if any(isfinite(g) for g in train.grad_norm):
        out["grad_norm"], more = _check_gradients(train, out["train"].get("diverged"))
        found += more
    out["skipped"], more = _check_skipped(train)
    return out, found + more + _check_levels(patient, train)


def _check_loss(patient: Patient, kind: str, s: Series, train: dict) -> tuple[dict, list[Finding]]:
    name = {"train": "training", "valid": "validation"}[kind]
    judged, found = judge(s.loss, LEAST_LOSS), []
    finite = [v for v in s.loss if v is not None and isfinite(v)]
    last = _last(s)
    out: dict = {"last": last, "last_step": s.step[-1]}
    if finite:
        at = s.loss.index(min(finite))
        out |= {"lowest": s.loss[at], "lowest_step": s.step[at], "lowest_epoch": s.epoch[at]}
    spikes = [_spike(s, s.loss, e) for e in judged.spikes]
    out["spikes"] = spikes
    if spikes:
        doubled = any(not x["peak"] < 2 * x["usual"] for x in spikes)
        bad = len(spikes) > max(MANY_SPIKES, len(s.step) / 100) or doubled or judged.spikes[-1].open
        what = (
            f"{len(spikes)} spikes of the {name} loss: "
            if len(spikes) > 1
            else (f"a spike of the {name} loss: ")
        )
        what += some(f"{x['peak']:.4g} at step {x['step']:,} (usual {x['usual']:.4g})"
                     for x in spikes)  # fmt: skip
        remedy = "--outlier-deviations skips such batches; EXP/bad_batches has those that were"
        worst = max(judged.spikes, key=lambda e: e.peak)
        severity = "concern" if bad else "note"
        found.append(Finding(severity, "log", s.place(worst.first), what, remedy))
    for e in judged.shifts:
        what = f"the {name} loss rose from {e.level:.4g} to a new level and stayed there"
        remedy = "a change of the data or of a schedule does that"
        found.append(Finding("note", "log", s.place(e.first), what, remedy))
    if judged.divergence is not None:
        e = judged.divergence
        overfitted = kind == "valid" and judged.creeping and not train.get("diverged")
        out["overfitted" if overfitted else "diverged"] = {
            "step": s.step[e.first],
            "epoch": s.epoch[e.first],
            "last_good_step": s.step[e.first - 1],
            "usual": e.level,
            "peak": e.peak,
            "last": last,
            "creeping": judged.creeping,
            "levels": _risen(s, e),
        }
        finding = _overfitted if overfitted else _diverged
        found.append(finding(patient, name, s, e))
    elif kind == "valid" and finite:
        found += _plateau(s, out)
    return out, found


def _last(s: Series) -> float | None:
    return next((v for v in reversed(s.loss) if v is not None), None)


def _spike(s: Series, values: list, e: Excursion) -> dict:
    def height(i: int) -> float:
        return -inf if values[i] is None else values[i] if isfinite(values[i]) else inf

    top = max(range(e.first, e.last + 1), key=height)
    return {"step": s.step[top], "epoch": s.epoch[top], "peak": values[top], "usual": e.level}


def _risen(s: Series, e: Excursion) -> list[int]:
    """Levels whose loss rose in a divergence, the most first."""
    before, after = s.nats[max(0, e.first - 1)], s.nats[-1]
    rise = {
        k: b - a if b is not None and isfinite(b) else float("inf")
        for k, (a, b) in enumerate(zip(before, after))
        if a is not None
    }
    return sorted((k for k, r in rise.items() if r > 0.2), key=lambda k: -rise[k])


def _diverged(patient: Patient, name: str, s: Series, e: Excursion) -> Finding:
    levels, last = _risen(s, e), _last(s)
    what = (
        f"the training diverged: the {name} loss began to rise here, from {e.level:.4g} to "
        f"{last:.4g} nats per code"
    )
    if levels:
        what += f"; most of all level {some(levels, 3)}"
    safe = _safe_checkpoint(patient, s.step[e.first - 1])
    remedy = f"go on from {safe} with a lower --base-lr" if safe else "start anew with a lower "
    remedy += "" if safe else "--base-lr or a longer warm-up"
    remedy += "; keep --clip-grad-norm and --outlier-deviations above 0"
    return Finding("concern", "log", s.place(e.first), what, remedy)


def _overfitted(patient: Patient, name: str, s: Series, e: Excursion) -> Finding:
    what = f"overfitting: the validation loss has risen from {e.level:.4g} to {_last(s):.4g}"
    remedy = "best.pt has the lowest loss; more data, --dropout or fewer epochs keep it low"
    return Finding("note", "log", s.place(e.first), what, remedy)


def _plateau(s: Series, out: dict) -> list[Finding]:
    """The lowest validation loss is old: more than 10 validations and half of the run ago."""
    at = s.step.index(out["lowest_step"])
    since = len(s.step) - 1 - at
    if since < 10 or since < len(s.step) / 2:
        return []
    what = f"no lower validation loss in the {since} validations since ({out['lowest']:.4f})"
    remedy = "a smaller learning rate or more data may help; more of the same does not"
    return [Finding("note", "log", s.place(at), what, remedy)]


def _safe_checkpoint(patient: Patient, step: int) -> Path | None:
    """The checkpoint of the experiment that is nearest before `step`."""
    folder, there = patient.exp_dir, []
    for path in folder.glob("archive/*.pt"):
        if match := re.match(r"(?:step|best)-(\d+)", path.name):
            there.append((int(match[1]), path))
    best = ((patient.state or {}).get("best") or {}).get("step")
    if best and (folder / "best.pt").exists():
        there.append((best, folder / "best.pt"))
    return max((p for p in there if p[0] <= step), default=(0, None))[1]


def _check_gradients(train: Series, diverged: dict | None) -> tuple[dict, list[Finding]]:
    # a line whose steps were all skipped has no gradient, and one that is no number may stand there
    logs = [None if loss is None else log(max(g, 1e-30)) if isfinite(g) else nan
            for g, loss in zip(train.grad_norm, train.loss)]  # fmt: skip
    judged = judge(logs, least=log(GRAD_FACTOR), relative=0.0)
    high = [*judged.spikes, *([judged.divergence] if judged.divergence else [])]
    spikes = [_spike(train, train.grad_norm, e) for e in high]
    for x in spikes:
        x["usual"] = exp(x["usual"])
    out = {"last": train.grad_norm[-1], "spikes": spikes}
    if not spikes:
        return out, []
    what = "the gradient norm jumped: " + some(
        f"{x['peak']:.3g} at step {x['step']:,} (usual {x['usual']:.2g})" for x in spikes
    )
    if diverged and any(x["step"] <= diverged["step"] for x in spikes):
        what += "; before the loss diverged"
    remedy = "--clip-grad-norm bounds what such a step does"
    bad = judged.divergence is not None or any(not isfinite(x["peak"]) for x in spikes)
    place = train.place(high[0].first)
    return out, [Finding("concern" if bad else "note", "log", place, what, remedy)]


def _check_skipped(train: Series) -> tuple[dict, list[Finding]]:
    names = sorted({k for c in train.counts for k in c})
    total, found = {}, []
    for name in names:
        new = [c.get(name, 0.0) for c in train.counts]  # since the line before
        new = [v if isfinite(v) else 0.0 for v in new]
        total[name] = int(sum(new))
        if not total[name]:
            continue
        places = [i for i, v in enumerate(new) if v]
        most = max(places, key=lambda i: new[i])
        share = total[name] / max(1, train.step[-1])
        where = f"from {train.place(places[0])}"
        where += f" to {train.place(places[-1])}" if len(places) > 1 else ""
        if name == "rollbacks":
            what = f"{total[name]} times back to the last good checkpoint"
            bad, remedy = True, "EXP/bad_batches has the batches: rvqlm doctor --replay"
        else:
            reason = name.removeprefix("skipped_")
            what = f"{total[name]:,} steps skipped as {reason} ({share:.1%} of all)"
            what += f", most at {train.place(most)}" if len(places) > 1 else ""
            bad = share > MAX_SKIPPED.get(reason, 0.01)
            remedy = "EXP/bad_batches has the batches: rvqlm doctor --replay; lower --base-lr if "
            remedy += "they differ in nothing from others"
        found.append(Finding("concern" if bad else "note", "log", where, what, remedy))
    return total, found


def _check_levels(patient: Patient, train: Series) -> list[Finding]:
    """Levels that are still guessed while others are known."""
    size = ((patient.state or {}).get("codec") or {}).get("codebook_size")
    if not size or not train.step or train.step[-1] < TIME_TO_LEARN:
        return []
    lines = train.nats[-5:]
    K = min(map(len, lines))
    means = {}
    for k in range(K):
        values = sorted(x[k] for x in lines if x[k] is not None)
        if values:
            means[k] = values[len(values) // 2] / log(size)
    found = []
    for k, mean in means.items():
        others = [m for j, m in means.items() if j != k and m < UNLEARNED]
        if mean >= UNLEARNED and others and sum(others) / len(others) < LEARNED:
            what = f"a dead level: its codes are guessed ({mean * log(size):.3f} nats, "
            what += f"ln V = {log(size):.3f}) while others are learned"
            remedy = "check the weights of the levels, and whether the codec uses it: "
            remedy += "rvqlm validate prints its entropy"
            found.append(Finding("concern", "log", f"level {k}", what, remedy))
    return found
