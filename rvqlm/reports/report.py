"""The report: an experiment as one HTML file that needs nothing but a browser.

Gathers what the other commands left in the experiment and token directories, and renders
`templates/report.html`: audio, curves, statistics, commands. What is missing is said on the page
together with the command that makes it; only a directory without any training is an error.
"""

from __future__ import annotations

import math
import os
from datetime import datetime
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.inference.held_out import read_held_out
from rvqlm.metrics.losses import bits_per_second
from rvqlm.reports import clips
from rvqlm.reports.figures import Reference, Series, chart, number
from rvqlm.reports.run import Run, read_json
from rvqlm.version import __version__

# ---------------------------------------------------------------- figures


def _axis(records: list[dict]) -> list[float]:
    """Minutes of training."""
    return [r.get("elapsed", 0.0) / 60 for r in records]


def _levels(records: list[dict], level: int) -> list[float]:
    """nan where a record has no loss of that level."""
    found = [r["nats"][level] if level < len(r.get("nats", ())) else None for r in records]
    return [math.nan if n is None else n for n in found]


def total_chart(run: Run, info: CodecInfo, unigram: list[float] | None) -> dict:
    """Bits per second of audio over the minutes of training."""

    def bits(records: list[dict]) -> list[float]:
        return [
            bits_per_second(r["nats"], info.frame_rate)
            if r.get("nats") and None not in r["nats"]
            else math.nan
            for r in records
        ]

    references = [Reference("stored plainly", "plain", info.bitrate)]
    if unigram:
        references.append(
            Reference(
                "unigram: frequencies only", "unigram", bits_per_second(unigram, info.frame_rate)
            )
        )
    return chart(
        [
            Series("train", "train", _axis(run.train), bits(run.train)),
            Series("held out", "valid", _axis(run.valid), bits(run.valid)),
        ],
        references,
        x_label="minutes of training",
        y_label="bits per second of audio",
    )


def level_charts(run: Run, info: CodecInfo, unigram: list[float] | None) -> list[dict]:
    """One chart a level, all with the same scale."""
    panels, values = [], [math.log(info.codebook_size)]
    for level in range(info.num_codebooks):
        train, valid = _levels(run.train, level), _levels(run.valid, level)
        panels.append((train, valid))
        values += [v for v in (*train, *valid) if math.isfinite(v)]
    low, high = min(values), math.log(info.codebook_size) * 1.02
    limits = (low - 0.05 * (high - low), high)
    charts = []
    for level, (train, valid) in enumerate(panels):
        references = [Reference("unigram", "unigram", unigram[level])] if unigram else []
        series = [
            Series("train", "train", _axis(run.train), train),
            Series("held out", "valid", _axis(run.valid), valid),
        ]
        charts.append(chart(series, references, limits=limits, ticks=3))
    return charts


def speed_chart(run: Run) -> dict:
    rows = [r for r in run.train if r.get("frames_per_second")]
    speeds = [r["frames_per_second"] for r in rows]
    top = max(speeds, default=1.0)
    return chart(
        [Series("frames per second", "train", _axis(rows), speeds)],
        x_label="minutes of training",
        y_label="frames per second",
        limits=(0.0, top * 1.08),
    )


# ---------------------------------------------------------------- numbers


def _median(values: list[float]) -> float | None:
    values = sorted(v for v in values if v is not None and math.isfinite(v))
    return values[len(values) // 2] if values else None


def _mean_of_last(records: list[dict], key: str, share: float = 0.1) -> float | None:
    tail = [r[key] for r in records[-max(1, int(len(records) * share)) :] if r.get(key) is not None]
    return sum(tail) / len(tail) if tail else None


def clock(seconds: float | None) -> str:
    """For people.

    >>> clock(42), clock(431), clock(7500)
    ('42 s', '7.2 min', '2.1 h')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def extent(hours: float | None) -> tuple[str, str]:
    """Length of a corpus as number and unit.

    >>> extent(0.299), extent(6.04), extent(None)
    (('18', 'minutes'), ('6', 'hours'), ('–', 'hours'))
    """
    if hours is None or hours >= 1:
        return number(hours, 2), "hours"
    return number(60 * hours, 2), "minutes"


def date(started: str | None) -> str | None:
    """ISO time -> day and time for people; left as it is when it is none."""
    try:
        return datetime.fromisoformat(started).strftime("%-d %B %Y, %H:%M %Z")
    except (TypeError, ValueError):
        return started


def clip_table(kinds: dict[str, list[clips.Clip]]) -> list[dict]:
    """Number of clips, mean silence and mean repetition per kind."""

    def mean(values: list[float | None]) -> float | None:
        values = [v for v in values if v is not None]
        return sum(values) / len(values) if values else None

    return [
        {
            "kind": kind,
            "clips": len(of_kind),
            "seconds": sum(c.seconds - c.prompt_seconds for c in of_kind),
            "silence": mean([c.silence for c in of_kind]),
            "repetition": mean([c.repetition for c in of_kind]),
        }
        for kind, of_kind in kinds.items()
        if of_kind
    ]


def headline(run: Run, info: CodecInfo, tokens: dict, split: str) -> dict:
    """The numbers at the top of the page."""
    evaluation = run.evaluations.get(split)
    best = min(run.valid, key=lambda r: r.get("bits_per_second") or math.inf, default=None)
    held_out = evaluation or best or {}
    train_eval = run.evaluations.get("train")
    bits = held_out.get("bits_per_second")
    train_bits = (
        train_eval["bits_per_second"] if train_eval else _mean_of_last(run.train, "bits_per_second")
    )
    unigram = evaluation.get("unigram_bits_per_second") if evaluation else None
    speed = _median([r.get("frames_per_second") for r in run.train])
    last = (run.train or run.valid or [{}])[-1]
    bars = [
        ("codes stored plainly", "plain", info.bitrate),
        ("unigram: how often each code occurs", "unigram", unigram),
        ("model, held-out recordings", "valid", bits),
        ("model, training recordings", "train", train_bits),
    ]
    return {
        "bits": bits,
        "train_bits": train_bits,
        "unigram": unigram,
        "plain": info.bitrate,
        "saved": 1 - bits / unigram if bits and unigram else None,
        "source": f"split “{split}”" if evaluation else "best validation during training",
        "bound": bool(evaluation.get("bound")) if evaluation else False,
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
        "realtime": speed / float(info.frame_rate) if speed else None,
        "padding": _mean_of_last(run.train, "padding", 1.0),
        "memory_mb": last.get("memory_mb"),
        "hours_seen": last["total_frames"] / float(info.frame_rate) / 3600
        if last.get("total_frames")
        else None,
    }


def level_table(evaluation: dict, info: CodecInfo) -> list[dict]:
    """One row a level of a `rvqlm evaluate` result."""
    top = math.log(info.codebook_size)
    unigram = evaluation.get("unigram_nats") or [None] * len(evaluation["nats"])
    rows = []
    for level, (nats, chance) in enumerate(zip(evaluation["nats"], unigram)):
        accuracy = evaluation.get("accuracy") or []
        rows.append(
            {
                "level": level,
                "nats": nats,
                "unigram": chance,
                "saved": 1 - nats / chance if chance else None,
                "accuracy": accuracy[level] if level < len(accuracy) else None,
                "choices": math.exp(nats),
                "width": 100 * nats / top,
                "mark": 100 * chance / top if chance else None,
            }
        )
    return rows


def flat(values: dict) -> list[tuple[str, str]]:
    """A dict as (name, value) rows of text; what is empty is left out."""
    rows = []
    for key, value in values.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            rows.append((key.replace("_", " "), str(value)))
    return rows


def commands(run: Run, samples: dict[str, list[clips.Clip]], own: str | None) -> list[str]:
    """Command lines behind the page, in the order of the work, each once."""
    lines = list(run.about.get("commands", []))
    lines += [e["command"] for e in run.evaluations.values() if e.get("command")]
    lines += [c.command for of_kind in samples.values() for c in of_kind if c.command]
    lines += [own] if own else []
    return list(dict.fromkeys(lines))


# ---------------------------------------------------------------- the page


def collect(
    exp_dir: str | Path,
    manifest_dir: str | Path,
    split: str = "test",
    num_samples: int = 4,
    max_seconds: float = 12.0,
    title: str | None = None,
    command: str | None = None,
) -> dict:
    """Everything that the page shows, from what the other commands left.

    Args:
        exp_dir: experiment directory of `rvqlm trainer`; metrics.jsonl is required.
        manifest_dir: token directory it was trained on; tokens.json is required.
        split: held-out split whose evaluation and recordings are shown.
        num_samples: recordings, and samples of each kind, at most.
        max_seconds: originals and reconstructions are cut to this length.
        title: heading; None: one sentence made from the numbers.
        command: command line of the report itself, shown with the others.

    Raises `UserError` for directories that are not what they should be and for damaged files.
    """
    exp_dir, manifest_dir = Path(exp_dir), Path(manifest_dir)
    run = Run.read(exp_dir)
    sidecar = manifest_dir / "tokens.json"
    if not sidecar.exists():
        raise UserError(
            f"{manifest_dir} is not a token directory (no tokens.json); "
            "give the one that training used with --manifest-dir"
        )
    tokens = read_json(sidecar)
    info = CodecInfo.from_dict(tokens["codec"])
    trained_on = run.about.get("data", {}).get("codec")
    if trained_on:
        CodecInfo.from_dict(trained_on).require_same(info, str(exp_dir), str(manifest_dir))

    remarks = []
    evaluation = run.evaluations.get(split)
    if evaluation is None:
        remarks.append(
            f"The held-out numbers are validation figures of the training; for the “{split}” split "
            f"run: rvqlm evaluate --exp-dir {exp_dir} --split {split}"
        )
    samples = clips.sample_clips(exp_dir / "samples", num_samples)
    if not samples:
        remarks.append(
            f"No samples of the model; make some: rvqlm generate --exp-dir {exp_dir} --seconds 8"
        )
    continuations = samples.pop("continuation", [])
    prompts = [c.prompt for c in continuations if c.prompt]
    rows, missing = read_held_out(manifest_dir, split, info, prompts, num_samples, max_seconds)
    remarks += missing
    shown = [clips.held_out_clips(row, info.sampling_rate) for row in rows]
    kinds = {
        **{
            kind: [c for of in shown for c in of if c.kind == kind]
            for kind in ("original", "codec")
        },
        "continuation": continuations,
        **samples,
    }
    for row, of_row in zip(rows, shown):
        of_row += [c for c in continuations if row.is_prompt(c.prompt)]
    alone = [c for c in continuations if not any(row.is_prompt(c.prompt) for row in rows)]
    if alone:
        samples = {"continuation": alone, **samples}

    unigram = (evaluation or next(iter(run.evaluations.values()), {})).get("unigram_nats")
    stats = manifest_dir / "stats.json"
    return {
        "title": title,
        "name": exp_dir.resolve().name,
        "info": info,
        "head": headline(run, info, tokens, split),
        "remarks": remarks,
        "rows": [
            {"id": r.id, "speaker": r.speaker, "text": r.text, "cards": [c.card() for c in of_row]}
            for r, of_row in zip(rows, shown)
        ],
        "samples": {kind: [c.card() for c in of_kind] for kind, of_kind in samples.items()},
        "clip_table": clip_table(kinds),
        "total": total_chart(run, info, unigram),
        "panels": level_charts(run, info, unigram),
        "speed": speed_chart(run),
        "levels": level_table(evaluation, info) if evaluation else [],
        "split": split,
        "evaluation": evaluation,
        "stats": read_json(stats) if stats.exists() else None,
        "tokens": tokens,
        "stages": stage_bars(run.stages),
        "commands": commands(run, kinds, command),
        "machine": flat(run.about.get("machine") or {}),
        "commit": run.about.get("commit") or (run.about.get("machine") or {}).get("commit"),
        "started": date(next(iter(run.about.get("started", [])), None)),
        "config": run.config,
        "level_ceiling": math.log(info.codebook_size),
        "version": __version__,
    }


def render(content: dict) -> str:
    """HTML with everything embedded, from `collect`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "clock": clock}
    environment.globals["clock"] = clock
    return environment.get_template("report.html").render(content)


def summary(content: dict) -> list[str]:
    """The page in a few lines for a terminal."""
    head, lines = content["head"], []
    if head["bits"]:
        unigram = f", unigram {number(head['unigram'])}" if head["unigram"] else ""
        lines.append(
            f"held out ({head['source']}): {number(head['bits'])} bits/s{unigram}, "
            f"stored plainly {number(head['plain'])}"
        )
    for row in content["clip_table"]:
        shares = [
            f"{name} {100 * row[key]:.0f} %"
            for name, key in (("silent", "silence"), ("repeating", "repetition"))
            if row[key] is not None
        ]
        lines.append(f"{row['kind']}: {row['clips']} clips, {', '.join(shares)}")
    return lines + [f"missing: {remark}" for remark in content["remarks"]]


def stage_bars(stages: list[tuple[str, float]]) -> list[dict]:
    total = sum(seconds for _, seconds in stages) or 1
    return [{"title": t, "seconds": s, "width": 100 * s / total} for t, s in stages]


def write_report(page: str, out: str | Path) -> Path:
    """Write the page atomically and return its absolute path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    return out.resolve()
