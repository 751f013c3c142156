"""The table of `rvqlm compare`: rows of `rvqlm.reports.compare` as Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from math import nan
from pathlib import Path
from urllib.parse import quote

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.reports.compare import (
    SHAPE,
    Row,
    Samples,
    describe_codec,
    distinguish,
    evaluated_on,
    grouped,
)
from rvqlm.reports.evaluation import given_words
from rvqlm.reports.formatting import mean, number, percent, render_template, shown
from rvqlm.reports.recognition import Recognition

KINDS = {
    "continuation": "continuations of held-out recordings",
    "conditioned": "made from a text or other condition, without a beginning",
    "infilling": "recordings with a part made anew",
    "unprompted": "unprompted",
}
IDLE = {"top_k": 0, "top_p": 1.0, "cfg_scale": 1.0}
"""Settings of samples that change nothing at these values."""
LEFT = ("experiment", "model", "given", "samples")
"""Columns of text; numbers stand at the right."""
FRECHET, KERNEL = "codec-latents.frechet", "codec-latents.kernel"
"""Of the judges, what is there without weights of others."""
NOT_ALWAYS = (
    *("errors", "sounds alone", "Fréchet", "kernel", "own - real, nats", "KL (recordings)"),
)
"""Columns that are left out where no row has them."""


def render(rows: list[Row], title: str = "", base: Path | None = None, num_samples: int = 4) -> str:
    """Markdown: a table, and under it what its figures mean and where they come from.

    :param base: folder of the file that it goes into; links to samples are relative to it.
    :param num_samples: links in a row, at most; 0: none.
    """
    # the kind of samples that most rows have, the first of equals
    kind = max(KINDS, key=lambda kind: sum(kind in r.samples for r in rows))
    made = {r.name: r.samples[kind] for r in rows if kind in r.samples}
    evaluated = [(r.name, r.evaluation) for r in rows if r.evaluation]
    codecs = [CodecInfo.from_dict(r.codec) for r in rows if r.codec]
    machines = [(r.name, r.machine) for r in rows if r.machine]
    commands = [[*r.commands, *(made[r.name].commands if r.name in made else ())] for r in rows]
    return render_template(
        "compare.md",
        title=title,
        table=table(rows, kind, base or Path(), num_samples),
        unigram=grouped(
            (
                name,
                f"{e.get('unigram_bits_per_second', nan):,.0f} bits/s, "
                f"nats per level {nats_words(e['unigram_nats'])}",
            )
            for name, e in evaluated
            if e.get("unigram_nats")
        ),
        evaluated_on=evaluated_on(evaluated[0][1]),
        given=sorted({given_words(r.given) for r in rows if r.given is not None}),
        given_by_row=grouped((r.name, given_words(r.given)) for r in rows if r.given is not None),
        uncertain=any(uncertainty(e) is not None for _, e in evaluated),
        draws=grouped((name, e["eval_draws"]) for name, e in evaluated if e.get("eval_draws")),
        chance=grouped(
            (r.name, f"{100 * r.recognition.chance:.1f} %")
            for r in rows
            if r.recognition and r.recognition.chance is not None
        ),
        recognized=any(r.recognition for r in rows),
        sounds=any(r.recognition and r.recognition.sounds for r in rows),
        exact=not all(e["bound"] for _, e in evaluated),
        bounds=any(e["bound"] for _, e in evaluated),
        samples=describe_samples(kind, made) if made else None,
        floors=[
            (name, through, grouped((r.name, judged_cell(r, name, "recordings")) for r in rows))
            for name in (FRECHET, KERNEL)
            if (through := grouped((r.name, judged_cell(r, name, "codec")) for r in rows)) != "-"
        ],
        freely=sorted({f["recordings"] for r in rows if (f := free_running(r))}),
        codec=codecs and f"{codecs[0].name}, {describe_codec(codecs[0])}, {codecs[0].bitrate:,.0f}",
        data=grouped((r.name, r.data) for r in rows if r.data),
        machine=grouped(machines),
        several_machines=len({m for _, m in machines}) > 1,
        commit=grouped((r.name, ", ".join(f"`{c}`" for c in r.commits)) for r in rows if r.commits),
        commands=list(dict.fromkeys(c for of_row in commands for c in of_row)),
    )


# ---------------------------------------------------------------- the table


def table(rows: list[Row], kind: str, base: Path, num_samples: int) -> str:
    def of_samples(show: Callable[[Samples], str]) -> Callable[[Row], str]:
        return lambda row: shown(row.samples.get(kind), show)

    def of_free(show: Callable[[dict], str]) -> Callable[[Row], str]:
        return lambda row: shown(free_running(row), show)

    columns: dict[str, Callable[[Row], str]] = {
        "experiment": lambda r: escape(r.name),
        "model": lambda r: escape(model_words(r)) or "-",
        "parameters": lambda r: shown(r.parameters, lambda n: f"{n / 1e6:.2f} M"),
        "training, min": lambda r: shown(r.minutes, number),
        "steps": lambda r: shown(r.steps, "{:,}"),
        "frames seen": lambda r: shown(r.frames_seen, "{:,}"),
        "given": lambda r: shown(r.given, given_words),
        "bits/s": bits_cell,
        "nats per level": lambda r: shown(r.evaluation, lambda e: nats_words(e["nats"])),
        "passes per s": of_samples(lambda s: shown(s.passes_per_second, number)),
        "s per s": of_samples(lambda s: shown(s.seconds_per_second, number)),
        "padding": lambda r: shown(r.padding, lambda share: f"{100 * share:.2f} %"),
        "memory, MB": lambda r: shown(r.memory_mb, "{:,.0f}"),
        "silent": of_samples(lambda s: shown(s.silence, percent)),
        "repeating": of_samples(lambda s: shown(s.repetition, percent)),
        "Fréchet": lambda r: judged_cell(r, FRECHET, "samples"),
        "kernel": lambda r: judged_cell(r, KERNEL, "samples"),
        "own - real, nats": of_free(
            lambda f: shown(mean(f["likelihood"]["difference"]), "{:+.2f}")
        ),
        "KL (recordings)": of_free(
            lambda f: "{} ({})".format(
                *(shown(mean(f["codes"][of]["kl"]), "{:.2f}") for of in ("samples", "recordings"))
            )
        ),
        "errors": lambda r: shown(r.recognition, error_cell),
        "sounds alone": lambda r: shown(
            r.recognition and r.recognition.sounds, lambda rate: rate_words(**rate)
        ),
    }
    if not any(r.given for r in rows):
        del columns["given"]
    for name in NOT_ALWAYS:
        if all(columns[name](r) == "-" for r in rows):
            del columns[name]
    if num_samples:
        columns["samples"] = of_samples(
            lambda s: " ".join(
                f"[{i}]({quote(Path(os.path.relpath(wav, base)).as_posix())})"
                for i, wav in enumerate(s.wavs[:num_samples], 1)
            )
        )
    lines = [
        list(columns),
        [":--" if name in LEFT else "--:" for name in columns],
        *([cell(row) for cell in columns.values()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def judged_cell(row: Row, name: str, view: str) -> str:
    """A figure of a judge of one view, with its interval."""
    figure = row.judged.figures.get(name)
    if figure is None or view not in figure.means:
        return "-"
    within = figure.within(view)
    return figure.text(view) + (f" ({within})" if within else "")


def free_running(row: Row) -> dict | None:
    return (row.evaluation or {}).get("free_running")


def escape(text: str) -> str:
    return re.sub(r"([|\\`*_<\[\]])", r"\\\1", text)


def model_words(row: Row) -> str:
    """Family and what tells it from the other rows: ``codec-lm, pattern delay, d192 x 6``."""
    options = dict(row.options)
    shape = [options.pop(key) for key in SHAPE if key in options]
    words = [row.family] if row.family else []
    # switches are told apart when off too, other options only where they are set
    told = {k: v for k, v in options.items() if isinstance(v, bool) or v not in (0, "", None, [])}
    words += [option_words(k, v) for k, v in told.items()]
    words += [f"d{shape[0]} x {shape[1]}"] if len(shape) == 2 else []
    return ", ".join(words)


def option_words(name: str, value) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def bits_cell(row: Row) -> str:
    evaluation = row.evaluation or {}
    bits = evaluation.get("bits_per_second")
    within = shown(uncertainty(evaluation), " ± {:,.0f}").strip("-")
    return shown(bits, ("<= " if bits and evaluation["bound"] else "= ") + "{:,.0f}" + within)


def uncertainty(evaluation: dict) -> float | None:
    return (evaluation.get("uncertainty") or {}).get("plus_minus")


def error_cell(recognition: Recognition) -> str:
    return rate_words(recognition.error_rate, recognition.interval)


def rate_words(error_rate: float, interval: list[float] | None) -> str:
    """In per cent, with its interval.

    >>> rate_words(0.0347, [0.0259, 0.0444])
    '3.5 % (2.6 to 4.4)'
    """
    text = f"{100 * error_rate:.1f} %"
    if interval:
        low, high = (100 * share for share in interval)
        text += f" ({low:.1f} to {high:.1f})"
    return text


def nats_words(nats: list[float | None]) -> str:
    return " ".join(shown(n, "{:.2f}") for n in nats)


# ---------------------------------------------------------------- what stands under it


def describe_samples(kind: str, made: dict[str, Samples]) -> dict:
    """How the samples of rows, by name, were made."""
    settings = [{k: v for k, v in s.settings.items() if IDLE.get(k) != v} for s in made.values()]
    differing = distinguish(settings)
    common = {k: v for k, v in settings[0].items() if not any(k in d for d in differing)}
    return {
        "kind": KINDS[kind],
        "count": grouped((name, s.count) for name, s in made.items()),
        "common": _settings(common),
        "differing": "; ".join(f"{_settings(d)} ({n})" for n, d in zip(made, differing) if d),
        "same_beginnings": len({tuple(s.beginnings) for s in made.values()}) == 1,
    }


def _settings(values: dict) -> str:
    return ", ".join(option_words(k.replace("_", "-"), v) for k, v in values.items())


# ---------------------------------------------------------------- into a file


def place(text: str, page: str, name: str, where: str = "the file") -> str:
    """`page` with `text` between its marker comments of that name, or appended with new ones.

    :raises UserError: markers that are not a pair, once each and in order.
    """
    begin, end = f"<!-- compare:begin {name} -->", f"<!-- compare:end {name} -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    if begin not in page and end not in page:
        before = page.rstrip("\n")
        return f"{before}\n\n{block}\n" if before else f"{block}\n"
    before, _, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed or page.count(begin) + page.count(end) > 2:
        raise UserError(f"{where}: {begin} and {end}: there must be one of each, in this order")
    return before + block + after
