"""The report: an experiment as one HTML file that needs nothing but a browser.

Gathers what the other commands left in the experiment and token directories, and renders
`templates/report.html`: audio, curves, statistics, commands. What is missing is said on the page
together with the command that makes it; only a directory without any training is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path

from rvqlm.checkpoints.loading import last_stage
from rvqlm.cli import counted
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.files import read_json
from rvqlm.inference.held_out import HeldOutSplit
from rvqlm.metrics.losses import bits_per_second
from rvqlm.metrics.schemas import Evaluation, Stats
from rvqlm.reports.clips import RECORDED, Clip
from rvqlm.reports.evaluation import (
    conditions_of,
    free_running,
    given_words,
    level_table,
    outdated,
)
from rvqlm.reports.experiment import (
    REMEDY,
    Commands,
    Training,
    left_out,
    median_speed,
    read_stages,
)
from rvqlm.reports.figures import Reference, Series, chart
from rvqlm.reports.formatting import mean, number, percent
from rvqlm.reports.judged import Judged
from rvqlm.reports.listening import Listener
from rvqlm.reports.listening_results import linked, tests_in
from rvqlm.reports.recognition import Recognitions, recognizer_for
from rvqlm.reports.release import Checks, Grid
from rvqlm.version import __version__


@dataclass
class ReportArgs:
    exp_dir: Path
    """Experiment directory of rvqlm trainer."""
    manifest_dir: Path
    """Token directory that it was trained on."""
    out: Path | None = None
    """Page to write; EXP_DIR/report.html if not given."""
    split: str = "test"
    """Held-out split whose evaluation and recordings are shown."""
    num_samples: int = 4
    """Recordings, sentences of --text, and samples of each other kind, at most. Each clip adds some
    200 kB a 10 s."""
    max_seconds: float = 12.0
    """Originals, reconstructions and voices are cut to this length."""
    title: str | None = None
    """Heading of the page; a sentence made from the numbers if not given."""
    download: bool = False
    """Fetch the codec that the tokens name from the hub, where it is not on this machine."""

    @property
    def path(self) -> Path:
        """Where the page goes."""
        return (self.out or self.exp_dir / "report.html").resolve()

    def check(self) -> None:
        problems = []
        if self.num_samples < 0:
            problems.append(f"--num-samples {self.num_samples}: at least 0")
        if not self.max_seconds > 0:
            problems.append(f"--max-seconds {self.max_seconds:g}: above 0")
        if problems:
            raise UserError("; ".join(problems))


# ---------------------------------------------------------------- figures


def _curves(run: Training, value: Callable[[dict], float]) -> list[Series]:
    """A value of the records of training and of validation over the minutes of training; of
    validation alone where the two are not of the same codes."""
    curves = [("held out", "valid", run.valid)]
    if not run.scores_hidden_codes:
        curves.insert(0, ("train", "train", run.train))
    return [
        Series(label, kind, _minutes(records), [value(r) for r in records])
        for label, kind, records in curves
    ]


def _minutes(records: list[dict]) -> list[float]:
    return [r.get("elapsed", 0.0) / 60 for r in records]


def total_chart(run: Training, info: CodecInfo, unigram: list[float] | None) -> dict:
    """Bits per second of audio over the minutes of training."""
    references = [Reference("stored plainly", "plain", info.bitrate)]
    if unigram:
        of_unigram = bits_per_second(unigram, info.frame_rate)
        references.append(Reference("unigram: frequencies only", "unigram", of_unigram))
    return chart(
        _curves(run, lambda r: r.get("bits_per_second") or math.nan),
        references,
        x_label="minutes of training",
        y_label="bits per second of audio",
    )


def hidden_chart(run: Training) -> dict:
    """Nats of the hidden codes in training, of a model that compares with nothing else."""
    losses = [r.get("loss") or math.nan for r in run.train]
    return chart(
        [Series("train, hidden codes", "train", _minutes(run.train), losses)],
        x_label="minutes of training",
        y_label="nats per hidden code",
    )


def error_chart(run: Training) -> dict:
    """Error rate of a recogniser."""
    return chart(
        _curves(run, lambda r: r.get("error_rate", math.nan)),
        x_label="minutes of training",
        y_label="symbol error rate",
    )


def level_charts(run: Training, info: CodecInfo, unigram: list[float] | None) -> list[dict]:
    """One chart a level, all with the same scale."""

    def nats(record: dict, level: int) -> float:
        values = record.get("nats", [])[level : level + 1]
        return math.nan if values in ([], [None]) else values[0]  # a level that is not trained

    panels = [_curves(run, partial(nats, level=level)) for level in range(info.num_codebooks)]
    top = math.log(info.codebook_size)
    low = min([top, *(v for panel in panels for s in panel for v in s.y if math.isfinite(v))])
    high = 1.02 * top
    limits = (low - 0.05 * (high - low), high)
    marks = [[Reference("unigram", "unigram", value)] for value in (unigram or [])[: len(panels)]]
    return [
        chart(panel, mark, limits=limits, ticks=3) for panel, mark in zip_longest(panels, marks)
    ]


def speed_chart(run: Training) -> dict:
    speeds = [r.get("frames_per_second") or math.nan for r in run.train]
    return chart(
        [Series("frames per second", "train", _minutes(run.train), speeds)],
        x_label="minutes of training",
        y_label="frames per second",
        limits=(0.0, 1.08 * max((v for v in speeds if math.isfinite(v)), default=1.0)),
    )


# ---------------------------------------------------------------- numbers


def extent(hours: float | None) -> tuple[str, str]:
    """Length of a corpus as number and unit.

    >>> extent(0.008), extent(0.299), extent(6.04), extent(None)
    (('29', 'seconds'), ('18', 'minutes'), ('6', 'hours'), ('–', 'hours'))
    """
    if hours is None or hours >= 1:
        return number(hours, 2), "hours"
    if hours < 2 / 60:
        return number(3600 * hours, 2), "seconds"
    return number(60 * hours, 2), "minutes"


def headline(
    run: Training,
    evaluations: dict[str, dict],
    info: CodecInfo,
    tokens: dict,
    split: str,
    given: list[str],
) -> dict:
    """The numbers at the top of the page.

    :param given: the model's conditions.
    """
    evaluation = evaluations.get(split, {})
    best = min(run.valid, key=lambda r: r.get("bits_per_second") or math.inf, default={})
    bits = None if run.recognizes else (evaluation or best).get("bits_per_second")
    last_tenth = run.train[-max(1, len(run.train) // 10) :]
    of_train = evaluations.get("train", {}).get("bits_per_second")
    if of_train is None and not run.scores_hidden_codes:
        of_train = mean(r.get("bits_per_second") for r in last_tenth)
    unigram = evaluation.get("unigram_bits_per_second")
    of_previous = evaluation.get("previous_frame_bits_per_second")
    speed = run.throughput or median_speed(run.train)
    last = (run.train or run.valid or [{}])[-1]
    frames = last.get("total_frames")
    bars = [
        ("codes stored plainly", "plain", info.bitrate),
        ("unigram: how often each code occurs", "unigram", unigram),
        ("previous frame: which codes follow each other", "unigram", of_previous),
        ("model, held-out recordings", "valid", bits),
        ("model, training recordings", "train", of_train),
    ]
    return {
        "bits": bits,
        "unigram": unigram,
        "plain": info.bitrate,
        "saved": 1 - bits / unigram if bits and unigram else None,
        "source": f"split “{split}”" if evaluation else "best validation during training",
        "bound": bool(evaluation.get("bound", run.scores_hidden_codes)),
        "given": given,
        "within": (evaluation.get("uncertainty") or {}).get("plus_minus"),
        "gain": evaluation.get("gain"),
        "bars": [
            {"label": label, "kind": kind, "value": value, "width": 100 * value / info.bitrate}
            for label, kind, value in bars
            if value
        ],
        "extent": extent(tokens.get("hours")),
        "parameters": run.about.get("parameters"),
        "elapsed": last.get("elapsed"),
        "step": last.get("step"),
        "speed": speed,
        "median_speed": median_speed(run.train),
        "shared": run.shared,
        "realtime": speed / float(info.frame_rate) if speed else None,
        "padding": mean(r.get("padding") for r in run.train),
        "memory_mb": last.get("memory_mb"),
        "seconds_seen": frames / float(info.frame_rate) if frames else None,
    }


# ---------------------------------------------------------------- the page


def missing_commands(
    args: ReportArgs,
    run: Training,
    evaluation: dict | None,
    samples: list[Clip],
    recognitions: Recognitions,
) -> list[str]:
    """What the page lacks, with the commands that make it and that this model can run."""
    split, run_again = args.split, Commands(args.exp_dir, args.manifest_dir, args.split)
    if run.recognizes:
        if recognitions.all():
            return []
        return [f"No error rate of the “{split}” split; run: {run_again.recognize_recordings()}"]
    remarks = []
    if evaluation is None:
        remarks.append(
            f"The held-out numbers are validation figures of the training; for the “{split}” split "
            f"run: {run_again.evaluate()}"
        )
    elif outdated(evaluation, run.family):
        remarks.append(
            "The held-out figures of single levels are those of an earlier version, which depend "
            f"on how often each was masked; run again: {run_again.evaluate()}"
        )
    if not samples:
        some = run_again.generate("--seconds", "8")
        remarks.append(f"No samples of the model; make some: {some}")
    if any(clip.text for clip in samples) and recognitions.samples is None:
        command = run_again.recognize(args.exp_dir / "samples")
        remarks.append(f"No error rate of what the model says; run: {command}")
    return remarks


def collect(args: ReportArgs, command: str | None = None) -> dict:
    """Everything that the page shows, from what the other commands left.

    :param command: command line of the report itself, shown with the others.
    :raises UserError: directories that are not what they should be, or damaged files.
    """
    exp_dir, manifest_dir, split = args.exp_dir, args.manifest_dir, args.split
    run = Training.read(last_stage(exp_dir))  # evaluation and samples lie beside the stages
    if not (run.folder / "metrics.jsonl").exists():
        raise UserError(
            f"{exp_dir} holds no training (no metrics.jsonl); "
            f"train first: rvqlm trainer --exp-dir {exp_dir}"
        )
    found = {
        path.stem.removeprefix("eval_"): read_json(path, REMEDY, type=Evaluation)
        for path in sorted(exp_dir.glob("eval_*.json"))
    }
    # of a model as it was trained, given all of its conditions
    evaluations = {
        name: e
        for name, e in found.items()
        if not e.get("without") and e.get("weights", "float") == "float"
    }
    tokens = read_sidecar(manifest_dir)
    info = CodecInfo.from_dict(tokens["codec"])
    trained_on = run.about.get("data", {}).get("codec")
    if trained_on:
        CodecInfo.from_dict(trained_on).require_same(info, str(exp_dir), str(manifest_dir))

    evaluation = evaluations.get(split)
    recognitions = Recognitions.read(exp_dir, split, run.recognizes)
    judged = Judged.read([exp_dir])
    listener = Listener(exp_dir / "samples", info, recognitions, args.num_samples, args.max_seconds)
    try:
        held_out, missing = HeldOutSplit(manifest_dir, split, info), []
    except UserError as e:
        held_out, missing = None, [f"No held-out recordings: {e}."]
    listening = listener.listen(held_out, args.download)
    table = listening.table()
    sampled = [c for kind, of in listening.kinds().items() for c in of if kind not in RECORDED]
    remarks = missing_commands(args, run, evaluation, sampled, recognitions)
    remarks += missing + listening.remarks
    flags = run.flags() if run.config else {}
    given = conditions_of(evaluation or {}, flags)
    checks, grid = Checks.read([exp_dir]), Grid.read([exp_dir])
    if checks:
        checks.listen(args.max_seconds)
        if (step := (evaluation or {}).get("step", checks.step)) != checks.step:
            remarks.append(f"The checks are of step {checks.step:,}, the evaluation of {step:,}.")
    commands = list(run.about.get("commands", []))  # in the order of the work
    commands += [e.get("command") for e in evaluations.values()]
    commands += listening.commands
    commands += [one.command for one in recognitions.all()] + judged.commands
    commands += [tried.command for tried in (checks, grid) if tried]
    run_again = Commands(exp_dir, manifest_dir, split)
    recognizer = recognizer_for(exp_dir, given)
    machine = run.about.get("machine") or {}
    started = next(iter(run.about.get("started", [])), None)
    unigram = (evaluation or next(iter(evaluations.values()), {})).get("unigram_nats")
    stats = manifest_dir / "stats.json"
    return {
        "title": args.title,
        "name": exp_dir.resolve().name,
        "info": info,
        "head": headline(run, evaluations, info, tokens, split, given),
        "given": given_words(given),
        "masked": run.scores_hidden_codes,
        "prompted": run.family == "valle",
        "recognizes": run.recognizes,
        "recognitions": recognitions.all(),
        "judged": judged,
        "free": free_running(evaluation or {}, info),
        "checks": checks,
        "check_clips": {name: clip.card() for name, clip in checks.clips.items()} if checks else {},
        "grid": grid,
        "tests": linked(tests_in([exp_dir]), args.path.parent),
        "not_run": {
            "free": run_again.run_freely((evaluation or {}).get("prompt_fraction", 0.0)),
            "judged": run_again.judge(),
            "checks": run_again.check(recognizer),
            "grid": run_again.grid(recognizer),
            "tests": run_again.listen(),
        },
        "left_out": left_out(manifest_dir, tokens),
        "remarks": remarks,
        "own": [article.card() for article in listening.own],
        "rows": [article.card() for article in listening.recordings],
        "samples": {k: [c.card() for c in of_kind] for k, of_kind in listening.others.items()},
        "left_out_samples": listening.left_out,
        "speaks": any(c.heard or c.alignment for of in listening.kinds().values() for c in of),
        "clip_table": table,
        "total": error_chart(run) if run.recognizes else total_chart(run, info, unigram),
        "hidden": hidden_chart(run) if run.scores_hidden_codes else None,
        "panels": [] if run.recognizes else level_charts(run, info, unigram),
        "speed": speed_chart(run),
        "levels": level_table(evaluation, info) if evaluation else [],
        "split": split,
        "evaluation": evaluation,
        "stats": read_json(stats, REMEDY, type=Stats) if stats.exists() else None,
        "tokens": tokens,
        "stages": read_stages(exp_dir / "stages.tsv"),
        "commands": list(dict.fromkeys(c for c in [*commands, command] if c)),
        "machine": {k: v for k, v in machine.items() if v not in (None, "", [])},
        "commit": run.about.get("commit") or machine.get("commit"),
        "started": started and _date(started),
        "config": run.config,
        "level_ceiling": math.log(info.codebook_size),
        "version": __version__,
    }


def _date(text: str) -> str:
    """``2 January 2026, 03:04 UTC`` of an ISO date; another text as it is."""
    try:
        return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M %Z}"
    except ValueError:
        return text


def summary(content: dict) -> list[str]:
    """The page in a few lines for a terminal."""
    head, lines = content["head"], []
    if head["bits"]:
        unigram = f", unigram {number(head['unigram'])}" if head["unigram"] else ""
        within = f" +- {number(head['within'])}" if head["within"] else ""
        given = f" given {given_words(head['given'])}" if head["given"] else ""
        lines.append(
            f"held out ({head['source']}): {'at most ' * head['bound']}{number(head['bits'])}"
            f"{within} bits/s{given}{unigram}, stored plainly {number(head['plain'])}"
        )
    for one in content["recognitions"]:
        lines.append(f"error rate of {one.label}: {one.error_rate:.1%}")
    if content["checks"]:
        lines.append(f"release: {content['checks'].words}")
    if content["grid"]:
        lines.append(f"best settings: {content['grid'].best}")
    for row in content["clip_table"]:
        shares = [
            f"{name} {percent(row[key])}"
            for name, key in (("silent", "silence"), ("repeating", "repetition"))
            if row[key] is not None
        ]
        lines.append(f"{row['kind']}: {', '.join([counted(row['clips'], 'clip'), *shares])}")
    return lines + [f"missing: {remark}" for remark in content["remarks"]]
