"""The table of `rvqlm compare`: rows of `rvqlm.reports.compare` as Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.reports.compare import (
    KINDS,
    SHAPE,
    Row,
    Samples,
    describe_codec,
    distinguish,
    grouped,
    held_out,
)
from rvqlm.reports.figures import number

NONE = "-"
KIND_WORDS = {
    "continuation": "continuations of held-out recordings",
    "conditioned": "made from a text or other condition, without a beginning",
    "unprompted": "made from nothing",
}


IDLE = {"top_k": 0, "top_p": 1.0, "cfg_scale": 1.0}
"""Settings of samples that change nothing at these values."""


def shown_kind(rows: list[Row]) -> str | None:
    """The kind of samples that most rows have, the first of `KINDS` where several do."""
    counts = {kind: sum(kind in r.samples for r in rows) for kind in KINDS}
    best = max(counts, key=lambda kind: counts[kind])  # the first of equals
    return best if counts[best] else None


def render(rows: list[Row], title: str = "", base: Path | None = None, num_samples: int = 4) -> str:
    """Markdown: a table, and under it what its figures mean and where they come from.

    :param base: folder of the file that it goes into; links to samples are relative to it.
    :param num_samples: links in a row, at most; 0: none.
    """
    kind = shown_kind(rows)
    parts = [f"## {title}"] if title else []
    parts += [table(rows, kind, base or Path(), num_samples), reference(rows)]
    parts += ["\n".join(f"- {line}" for line in notes(rows, kind))]
    commands = [line for row in rows for line in commands_of(row, kind)]
    if commands:
        body = "\n".join(dict.fromkeys(commands))
        parts.append(f"<details><summary>Commands</summary>\n\n```sh\n{body}\n```\n\n</details>")
    return "\n\n".join(p for p in parts if p) + "\n"


def commands_of(row: Row, kind: str | None) -> list[str]:
    return row.commands + (row.samples[kind].commands if kind in row.samples else [])


# ---------------------------------------------------------------- the table


def table(rows: list[Row], kind: str | None, base: Path, num_samples: int) -> str:
    def of_samples(show: Callable[[Samples], str]) -> Callable[[Row], str]:
        return lambda row: show(row.samples[kind]) if kind in row.samples else NONE

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("experiment", lambda r: escape(r.name)),
        ("model", lambda r: escape(model_words(r)) or NONE),
        ("parameters", lambda r: f"{r.parameters / 1e6:.2f} M" if r.parameters else NONE),
        ("training, min", lambda r: number_cell(r.minutes)),
        ("steps", lambda r: f"{r.steps:,}" if r.steps else NONE),
        ("frames seen", lambda r: f"{r.frames_seen:,}" if r.frames_seen else NONE),
        ("bits/s", bits_cell),
        ("nats per level", nats_cell),
        ("passes per s", of_samples(lambda s: number_cell(s.passes_per_second))),
        ("s per s", of_samples(lambda s: number_cell(s.seconds_per_second))),
        ("padding", lambda r: NONE if r.padding is None else f"{100 * r.padding:.2f} %"),
        ("memory, MB", lambda r: f"{r.memory_mb:,.0f}" if r.memory_mb else NONE),
        ("silent", of_samples(lambda s: percent_cell(s.silence))),
        ("repeating", of_samples(lambda s: percent_cell(s.repetition))),
    ]
    if num_samples:
        columns.append(("samples", of_samples(lambda s: links(s.wavs[:num_samples], base))))
    left = ("experiment", "model", "samples")
    lines = [
        [name for name, _ in columns],
        [":--" if name in left else "--:" for name, _ in columns],
        *([cell(row) for _, cell in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    return re.sub(r"([|\\`*_<\[\]])", r"\\\1", text)


def model_words(row: Row) -> str:
    """Family and what tells it from the other rows: ``codec-lm, pattern delay, d192 x 6``."""
    options = dict(row.options)
    shape = [options.pop(key) for key in SHAPE if key in options]
    words = [row.family] if row.family else []
    words += [option_words(k, v) for k, v in options.items() if in_use(v)]
    words += [f"d{shape[0]} x {shape[1]}"] if len(shape) == 2 else []
    return ", ".join(words)


def in_use(value) -> bool:
    """Whether an option is more than "none" or "unset"; switches always are."""
    return isinstance(value, bool) or value not in (0, "", None, [])


def option_words(name: str, value) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {value}"


def bits_cell(row: Row) -> str:
    if row.evaluation is None or row.evaluation["bits_per_second"] is None:
        return NONE
    sign = "<=" if row.evaluation["bound"] else "="
    return f"{sign} {row.evaluation['bits_per_second']:,.0f}"


def nats_cell(row: Row) -> str:
    if row.evaluation is None:
        return NONE
    return " ".join(NONE if n is None else f"{n:.2f}" for n in row.evaluation["nats"])


def number_cell(value: float | None) -> str:
    return NONE if value is None else number(value)


def percent_cell(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def links(wavs: list[str], base: Path) -> str:
    def target(wav: str) -> str:
        return quote(Path(os.path.relpath(wav, base)).as_posix())

    return " ".join(f"[{i}]({target(wav)})" for i, wav in enumerate(wavs, 1)) or NONE


# ---------------------------------------------------------------- what stands under it


def reference(rows: list[Row]) -> str:
    """The unigram of the training codes, the yardstick of all rows."""
    found = [
        (
            r.name,
            f"{r.evaluation['unigram_bits_per_second']:,.0f} bits/s, nats per level "
            + " ".join(f"{n:.2f}" for n in r.evaluation["unigram_nats"]),
        )
        for r in rows
        if r.evaluation and r.evaluation.get("unigram_nats")
    ]
    return (
        f"Unigram, which knows how often each code occurs and no more: {grouped(found)}."
        if found
        else ""
    )


def notes(rows: list[Row], kind: str | None) -> list[str]:
    evaluated = [r for r in rows if r.evaluation]
    found = [
        f"Evaluated on {held_out(evaluated[0].evaluation)}: the same frames for every row.",
        "Bits per second of audio are what writing down the codes costs by the model's guesses.",
    ]
    if not all(r.evaluation["bound"] for r in evaluated):
        found[-1] += " `=`: each code is guessed from all codes before it."
    if any(r.evaluation["bound"] for r in evaluated):
        found[-1] += (
            " `<=`: codes that are made in one step count as independent of each other, or the"
            " figure is an average over orders of making them; however well trained, such a model"
            " can only overstate what the codes need, so the figure is an upper bound."
        )
    found.append(
        "Minutes are those of the training loop, validation included; memory is the highest of the "
        "training process; padding is the share of filler in its batches."
    )
    found += sample_notes(rows, kind) if kind else []
    codecs = [CodecInfo.from_dict(r.codec) for r in rows if r.codec]
    data = [(r.name, r.data) for r in rows if r.data]
    if codecs:
        words = f"Codec: {codecs[0].name}, {describe_codec(codecs[0].to_dict())}, "
        found.append(f"{words}{codecs[0].bitrate:,.0f} bits/s stored plainly.")
    found += [f"Data: {grouped(data)}."] if data else []
    machines = [(r.name, r.machine) for r in rows if r.machine]
    if machines:
        found.append(f"Machine: {grouped(machines)}.")
        if len({m for _, m in machines}) > 1:
            found[-1] += " Minutes and speeds of different machines are not to be compared."
    commits = [(r.name, ", ".join(f"`{c}`" for c in r.commits)) for r in rows if r.commits]
    found += [f"Commit: {grouped(commits)}."] if commits else []
    return found


def sample_notes(rows: list[Row], kind: str) -> list[str]:
    having = [(r.name, r.samples[kind]) for r in rows if kind in r.samples]
    counts = grouped((name, s.count) for name, s in having)
    found = [
        f"Samples: {KIND_WORDS[kind]}; number: {counts}. `passes per s` and `s per s` are passes "
        "of the networks (those of a depth head not counted) and seconds of work for a second of "
        "new audio, made one at a time; "
        "`silent` is the share of 20 ms windows below -50 dB, `repeating` that of frames in runs "
        "of 8 or more coarse codes that occurred before in the sample; both of the new part."
    ]
    settings = [{k: v for k, v in s.settings.items() if IDLE.get(k) != v} for _, s in having]
    differing = distinguish(settings)
    common = {k: v for k, v in settings[0].items() if not any(k in d for d in differing)}
    words = [f"{_settings(d)} ({name})" for (name, _), d in zip(having, differing) if d]
    line = f"Drawn with {_settings(common)}" if common else "Drawn with different settings"
    found.append(f"{line}; besides: {'; '.join(words)}." if words else f"{line}.")
    if len({tuple(s.beginnings) for _, s in having}) > 1:
        found.append(
            "The rows' samples were NOT made from the same beginnings: their silence, repetition "
            "and speed are of different material."
        )
    return found


def _settings(values: dict) -> str:
    return ", ".join(option_words(k.replace("_", "-"), v) for k, v in values.items())


# ---------------------------------------------------------------- into a file


def place(text: str, page: str, name: str, where: str = "the file") -> str:
    """`page` with `text` between its marker comments of that name, or appended with new ones.

    :raises UserError: markers that are not a pair, once each and in order.
    """
    begin, end = f"<!-- compare:begin {name} -->", f"<!-- compare:end {name} -->"
    counts = page.count(begin), page.count(end)
    block = f"{begin}\n{text.strip()}\n{end}"
    if counts == (0, 0):
        before = page.rstrip("\n")
        return f"{before}\n\n{block}\n" if before else f"{block}\n"
    start, stop = page.find(begin), page.find(end)
    if counts != (1, 1) or stop < start:
        raise UserError(
            f"{where}: {counts[0]} x {begin} and {counts[1]} x {end}; there must be one of each, "
            "in this order"
        )
    return page[:start] + block + page[stop + len(end) :]
