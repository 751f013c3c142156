"""Experiments side by side: what the commands left in several directories, as one Markdown table.

A row an experiment. Bits per second mean nothing across rows unless the held-out frames are the
same, so rows that were evaluated on other frames, or on codes of another codec, are refused. What
an experiment lacks is a dash, and said in words with the command that makes it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.cli import span
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.files import read_json
from rvqlm.inference.files import read_samples, text_of
from rvqlm.metrics.schemas import Evaluation
from rvqlm.reports.evaluation import conditions_of, outdated
from rvqlm.reports.experiment import (
    Commands,
    Training,
    default_flags,
    median_speed,
    stage_folders,
)
from rvqlm.reports.formatting import mean, number
from rvqlm.reports.judged import Judged
from rvqlm.reports.recognition import Recognition, of_samples
from rvqlm.reports.release import Checks, Grid

IDENTITY = ("pattern", "masking")
"""Options that say what a family is: shown at their defaults too where not all rows have them."""
SHAPE = ("decoder-dim", "num-decoder-layers")
IGNORED = re.compile(
    r"model-name|exp-dir|manifest-dir|device|num-threads|train-stage"
    r"|eval-draws|quiet|num-epochs|max-steps|max-minutes|(log|valid|save)-.*"
)
"""Flags that do not make models differ, or that columns of the table show."""


@dataclass
class Samples:
    """Audio of one kind that an experiment's model made, all in one step of its training."""

    count: int
    passes_per_second: float | None
    """Passes of the network for a second of new audio, of samples made one at a time."""
    seconds_per_second: float | None
    """Wall-clock time for a second of new audio, likewise."""
    silence: float | None
    repetition: float | None
    settings: dict
    beginnings: list[str]
    """Recordings or texts that they were made from, sorted."""
    wavs: list[str]
    texts: int
    """How many of them were given a text."""
    commands: list[str]


@dataclass
class Row:
    """What one experiment directory holds."""

    exp_dir: str
    name: str = ""
    """The shortest that tells it from the other rows."""
    family: str | None = None
    flags: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    """Of its flags, those that tell it from the other rows."""
    parameters: int | None = None
    minutes: float | None = None
    steps: int | None = None
    frames_seen: int | None = None
    throughput: float | None = None
    """Frames a second of the whole training, pauses included."""
    median_speed: float | None = None
    """Median frames a second of single lines of the log."""
    padding: float | None = None
    """Padding ratio of all batches of the training."""
    memory_mb: float | None = None
    evaluation: dict | None = None
    given: list[str] | None = None
    """Conditions of its evaluation; None: not evaluated."""
    samples: dict[str, Samples] = field(default_factory=dict)
    """By kind."""
    recognition: Recognition | None = None
    """Error rate of its samples."""
    judged: Judged = field(default_factory=Judged)
    """Figures of its samples by judges from outside."""
    checks: Checks | None = None
    grid: Grid | None = None
    codec: dict | None = None
    data: str | None = None
    machine: str | None = None
    commits: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is missing or to be known, a line each."""

    def run_again(self, split: str = "test") -> Commands:
        return Commands(self.exp_dir, self.flags.get("manifest-dir", "TOKENS"), split)

    def remark(self, text: str, where: Path | str = "") -> None:
        self.remarks.append(f"{where or self.exp_dir}: {text}")


# ---------------------------------------------------------------- reading


def read_row(exp_dir: str | Path, split: str) -> Row:
    """Read an experiment directory; of a model trained in stages, that above EXP/stageN.

    :raises UserError: no such directory, no trace of a training in it, or damaged files.
    """
    exp = Path(exp_dir)
    if not exp.is_dir():
        raise UserError(f"{exp}: no such directory; give the --exp-dir of a training")
    row = Row(str(exp))
    if re.fullmatch(r"stage[2-9]", exp.name):
        row.remark(
            f"the stages before are left out of minutes, steps and frames; give {exp.parent}"
        )
    stages = stage_folders(exp)
    whole = (exp / "metrics.jsonl").exists() or not stages
    trainings = [Training.read(p) for p in ([exp] if whole else stages)]
    for training in trainings:
        _add_training(row, training)
    _add_log(row, [t for t in trainings if t.train])
    places = [exp, *reversed(stages)]
    _add_evaluation(row, places, split)
    _add_samples(row, places)
    row.checks, row.grid = Checks.read(places), Grid.read(places)
    row.commands += [c for tried in (row.checks, row.grid) if tried and (c := tried.command)]
    if not (row.flags or row.commands or row.steps or row.evaluation or row.samples):
        raise UserError(f"{exp} holds no training; train first: rvqlm trainer --exp-dir {exp}")
    return row


def _add_training(row: Row, training: Training) -> None:
    """Flags and circumstances; of several stages, those of the last and the commands of all."""
    run, record = training.folder, training.about
    if training.config:
        row.flags = training.flags()
    else:
        row.remark("no config.yaml, so its options are not in the table", run)
    if not record:
        row.remark("no run.json (parameters, machine, commit, commands)", run)
    if not training.train:
        row.remark("no metrics.jsonl of a training (minutes, steps, padding)", run)
    row.family = row.flags.get("model-name") or record.get("model")
    row.parameters = record.get("parameters", row.parameters)
    row.commands += record.get("commands", [])
    if (commit := record.get("commit")) not in (None, *row.commits):
        row.commits.append(commit)
    row.machine = describe_machine(record.get("machine") or {}) or row.machine
    data = record.get("data") or {}
    row.codec = data.get("codec") or row.codec
    splits = {k: v["hours"] for k, v in data.items() if isinstance(v, dict) and "hours" in v}
    row.data = ", ".join(f"{span(3600 * h)} of {k}" for k, h in splits.items()) or row.data


def describe_machine(machine: dict) -> str:
    """The record of `rvqlm.runtime.describe_machine` in a line."""
    words = [machine["cpu"]] if machine.get("cpu") else []
    words += [f"{machine['cores']} cores"] if machine.get("cores") else []
    words += machine.get("gpus") or []
    words += [f"{k} {machine[k]}" for k in ("torch", "python") if machine.get(k)]
    return ", ".join(words)


def _add_log(row: Row, trainings: list[Training]) -> None:
    """What the logs of all stages add up to."""
    records = [r for t in trainings for r in t.train]
    row.steps = sum(t.train[-1]["step"] for t in trainings) or None
    row.frames_seen = sum(t.train[-1].get("total_frames", 0) for t in trainings) or None
    ends = [max(r.get("elapsed", 0) for of in t.log.values() for r in of) for t in trainings]
    row.minutes = sum(ends) / 60 or None
    row.throughput = row.frames_seen / sum(ends) if row.frames_seen and sum(ends) else None
    row.median_speed = median_speed(records)
    row.memory_mb = max((r["memory_mb"] for r in records if r.get("memory_mb")), default=None)
    batches = [r for r in records if "padding" in r and r.get("frames")]
    cells = sum(r["frames"] / (1 - r["padding"]) for r in batches)
    row.padding = 1 - sum(r["frames"] for r in batches) / cells if cells else None


def _add_evaluation(row: Row, places: list[Path], split: str) -> None:
    path = next((p for place in places if (p := place / f"eval_{split}.json").exists()), None)
    if path is None:
        command = row.run_again(split).evaluate()
        row.remark(f"no eval_{split}.json (bits per second, nats); run: {command}")
        return
    found = read_json(path, "run rvqlm evaluate again", type=Evaluation)
    row.evaluation = {"split": split, "prompt_fraction": 0.0} | found
    row.given = conditions_of(found, row.flags)
    if outdated(found, row.family):
        row.remark(
            f"eval_{split}.json is of an earlier version, whose nats of single levels depend on "
            "how often each was masked; run rvqlm evaluate again"
        )
    row.commands += [found["command"]] if found.get("command") else []


def _add_samples(row: Row, places: list[Path]) -> None:
    found = next((s for p in places if (s := read_samples(p / "samples"))), [])
    if not found:
        command = row.run_again().generate("--batch-size", "1")
        row.remark(f"no samples (speed, silence, repetition); run: {command}")
        return
    row.recognition = next((r for p in places if (r := of_samples(p))), None)
    row.judged = Judged.read(places)
    row.remarks += [f"{row.exp_dir}: not judged by {k}: {v}" for k, v in row.judged.not_run.items()]
    newest = int(found[0][1].get("step") or 0)
    current = [(w, a) for w, a in found if int(a.get("step") or 0) == newest]
    if old := len(found) - len(current):
        row.remark(f"{old} samples of training steps before {newest} are left out")
    evaluated = (row.evaluation or {}).get("step")
    if evaluated not in (None, newest):
        row.remark(
            f"samples of step {newest}, evaluation of step {evaluated}; generate or evaluate again "
            "for the same"
        )
    row.codec = row.codec or current[0][1].get("codec")
    spoken = next((w for w, a in current if text_of(a)), None)
    if spoken and row.recognition is None:
        command = row.run_again().recognize(spoken.parent)
        row.remark(f"no errors of the samples; run: {command}")
    for kind in dict.fromkeys(a["kind"] for _, a in current):
        row.samples[kind] = _summarize([(w, a) for w, a in current if a["kind"] == kind])
        if row.samples[kind].passes_per_second is None:
            row.remark(
                f"{kind} samples were not made one at a time, so their speed is left out; "
                "rvqlm generate --batch-size 1"
            )


def _summarize(found: list[tuple[Path, dict]]) -> Samples:
    abouts = [about for _, about in found]
    # what a batch of several costs is shared by them in a way that depends on its size
    measured = ("seconds", "passes", "generation_seconds")
    alone = [a for a in abouts if a.get("batch_size") == 1 and all(k in a for k in measured)]
    seconds = sum(a["seconds"] - (a.get("prompt_seconds") or 0) for a in alone)
    return Samples(
        count=len(found),
        passes_per_second=sum(a["passes"] for a in alone) / seconds if seconds else None,
        seconds_per_second=(
            sum(a["generation_seconds"] for a in alone) / seconds if seconds else None
        ),
        silence=mean(a.get("silence_ratio") for a in abouts),
        repetition=mean(a.get("repetition_ratio") for a in abouts),
        settings=settings_of(abouts),
        beginnings=sorted(str(a.get("prompt") or text_of(a) or a.get("seed")) for a in abouts),
        wavs=[str(w) for w, _ in found],
        texts=sum(text_of(a) is not None for a in abouts),
        commands=list(dict.fromkeys(a["command"] for a in abouts if a.get("command"))),
    )


def settings_of(abouts: Sequence[dict]) -> dict:
    """How samples were drawn; a setting in which they differ has each value with its number.

    >>> settings_of([{"settings": {"top_k": 5}, "seed": seed} for seed in (0, 0, 1)])
    {'top_k': 5, 'seed': '0 (2 of 3), 1 (1 of 3)'}
    """
    each = [{**(about.get("settings") or {}), "seed": about.get("seed")} for about in abouts]
    names = dict.fromkeys(name for settings in each for name in settings)
    found = {}
    for name in names:
        values = [settings.get(name) for settings in each]
        numbers = Counter(map(str, values))  # a list is a value as well
        words = (f"{value} ({n} of {len(values)})" for value, n in numbers.items())
        found[name] = values[0] if len(numbers) == 1 else ", ".join(words)
    return found


# ---------------------------------------------------------------- comparing


def distinguish(dicts: Sequence[dict], defaults: Sequence[dict] | None = None) -> list[dict]:
    """Of several dicts, the entries that tell each from the others.

    Entries that all have: where values differ. Others: where they are not the default, or in
    `IDENTITY`.

    >>> distinguish([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 0}], [{}, {"c": 0}])
    [{'b': 2}, {'b': 3}]
    """

    def tells(key: str, value, default: dict) -> bool:
        if all(key in d for d in dicts):
            return any(d[key] != value for d in dicts)
        return key in IDENTITY or value != default.get(key)

    return [
        {k: v for k, v in d.items() if tells(k, v, default)}
        for d, default in zip(dicts, defaults or [{}] * len(dicts))
    ]


def _set_options(rows: list[Row]) -> None:
    known = [r for r in rows if r.flags]
    defaults = [default_flags(r.family) for r in known]
    # a run of an older version has fewer flags, and what it did then is the default now
    flags = [d | r.flags for r, d in zip(known, defaults)]
    told = [{k: v for k, v in f.items() if not IGNORED.fullmatch(k)} for f in flags]
    for row, own, options in zip(known, flags, distinguish(told, defaults)):
        row.options = options
        if any(key in options for key in SHAPE):  # one without the other says little
            row.options |= {key: own[key] for key in SHAPE if key in own}


def grouped(values: Iterable[tuple[str, object]]) -> str:
    """(name, value) pairs in words; the names only where values differ.

    >>> grouped([("a", 1), ("b", 1)]), grouped([("a", 1), ("b", 2), ("c", 1)])
    ('1', '1 (a, c); 2 (b)')
    """
    names: dict[str, list[str]] = {}
    for name, value in values:
        names.setdefault(str(value), []).append(name)
    if len(names) < 2:
        return "".join(names)
    return "; ".join(f"{value} ({', '.join(of)})" for value, of in names.items())


def describe_codec(info: CodecInfo) -> str:
    """What makes codes comparable; not the name, for the same weights may go by several."""
    shape = f"{info.num_codebooks} x {info.codebook_size:,}"
    rate = number(float(info.frame_rate), 5)
    return f"fingerprint `{info.fingerprint}`, {shape}, {rate} frames/s"


def evaluated_on(e: dict) -> str:
    """What a row was evaluated on, in words; equal where the scored frames are."""
    return (
        f"split {e['split']}, {e['cuts']:,} recordings, {e['frames']:,} frames, "
        f"prompt fraction {e['prompt_fraction']:g}"
    )


def require_comparable(rows: list[Row]) -> None:
    """Raise `UserError` with all that makes figures of different rows incomparable."""
    evaluated = [(r.name, evaluated_on(r.evaluation)) for r in rows if r.evaluation]
    codecs = [(r.name, describe_codec(CodecInfo.from_dict(r.codec))) for r in rows if r.codec]
    problems = []
    if len({text for _, text in codecs}) > 1:
        problems.append(f"codes of different codecs or levels: {grouped(codecs)}")
    if len({text for _, text in evaluated}) > 1:
        problems.append(
            f"evaluated on different frames: {grouped(evaluated)}; run rvqlm evaluate for all with "
            "the same --manifest-dir, --split and --prompt-fraction"
        )
    if problems:
        raise UserError(f"these can't be compared: {'; '.join(problems)}")


def compare(
    exp_dirs: Sequence[str | Path], split: str = "test", evaluated: bool = True
) -> list[Row]:
    """Rows for `render`, in the order given.

    :param evaluated: at least one has to be, as a table says nothing otherwise.
    :raises UserError: directories without a training, given twice, or not to be compared; none
        that was evaluated.
    """
    if not exp_dirs:
        raise UserError("--exp-dirs: give the directories of one or more trainings")
    resolved = [Path(e).resolve() for e in exp_dirs]
    twice = sorted({str(e) for e, r in zip(exp_dirs, resolved) if resolved.count(r) > 1})
    if twice:
        raise UserError(f"--exp-dirs: {', '.join(twice)} given twice")
    rows = [read_row(e, split) for e in exp_dirs]
    common = os.path.commonpath([path.parent for path in resolved])
    for row, path in zip(rows, resolved):
        row.name = os.path.relpath(path, common)
    if evaluated and not any(r.evaluation for r in rows):
        raise UserError(
            f"nothing to compare: no eval_{split}.json in {', '.join(map(str, exp_dirs))}; run "
            f"rvqlm evaluate --split {split} for each"
        )
    require_comparable(rows)
    _set_options(rows)
    return rows
