"""The page of several experiments: their figures, and their samples beside each other, prompt by
prompt."""

from __future__ import annotations

from pathlib import Path, PurePath
from string import ascii_uppercase

from rvqlm.cli import command_line
from rvqlm.errors import UserError
from rvqlm.reports.aligned import Aligned, Prompt
from rvqlm.reports.clips import Clip
from rvqlm.reports.compare import evaluated_on
from rvqlm.reports.compare_table import KINDS
from rvqlm.reports.evaluation import given_words
from rvqlm.reports.figures_table import figures_table
from rvqlm.reports.formatting import mean
from rvqlm.reports.listening_results import linked, tests_in
from rvqlm.reports.listening_test import RECORDINGS
from rvqlm.version import __version__


def compare_page(
    aligned: Aligned,
    split: str,
    title: str = "",
    command: str | None = None,
    folder: Path = Path(),
) -> dict:
    """What the template ``compare.html`` draws.

    :param aligned: after `Aligned.listen`.
    :param folder: where the page goes; listening tests of these experiments are looked for there.
    :param command: command line of the page itself.
    :raises UserError: more experiments than there are letters.
    """
    rows = aligned.rows
    if len(rows) > len(ascii_uppercase):
        raise UserError(f"--exp-dirs: a page has room for {len(ascii_uppercase)} experiments")
    evaluations = [row.evaluation for row in rows if row.evaluation]
    made = [c for row in rows for of_kind in row.samples.values() for c in of_kind.commands]
    commands = [c for row in rows for c in row.commands]
    commands += made + [r.recognition.command for r in rows if r.recognition]
    commands += [c for row in rows for c in row.judged.commands]
    prompts = [_card(prompt) for prompt in aligned.prompts]
    remarks = [*aligned.remarks, *(remark for row in rows for remark in row.remarks)]
    if aligned.split is None:
        remarks.insert(0, "No recordings beside the samples; --manifest-dir TOKENS adds them.")
    exp_dirs = [row.exp_dir for row in rows]
    known = {*(Path(exp_dir).resolve().name for exp_dir in exp_dirs), *RECORDINGS.values()}
    tests = tests_in([*map(Path, exp_dirs), folder])
    tests = [test for test in tests if {PurePath(s).name for s in test.systems} <= known]
    make = ["make", "--exp-dirs", *exp_dirs, "--out", str(folder / "listening.html")]
    given = {given_words(row.given) for row in rows if row.given is not None}
    return {
        "title": title or f"{len(rows)} experiments side by side",
        "names": list(zip(ascii_uppercase, [row.name for row in rows])),
        "kinds": {p["kind"]: KINDS.get(p["kind"], p["kind"]) for p in prompts},
        "speakers": sorted({p["speaker"] for p in prompts if p["speaker"]}),
        "recognized": any(e is not None for p in prompts for e in p["errors"]),
        "figures": figures_table(rows, split),
        "evaluated_on": evaluated_on(evaluations[0]) if evaluations else None,
        "given_differently": len(given) > 1,
        "tests": linked(tests, folder),
        "make_test": command_line("listen", make),
        "prompts": prompts,
        "remarks": remarks,
        "machines": sorted({row.machine for row in rows if row.machine}),
        "commands": list(dict.fromkeys(c for c in [*commands, command] if c)),
        "version": __version__,
    }


def _card(prompt: Prompt) -> dict:
    """What the template draws of a prompt."""
    return {
        "kind": prompt.kind,
        "source": prompt.source if prompt.source != prompt.text else None,
        "text": prompt.text,
        "speaker": prompt.speaker,
        "errors": [_errors(of) for of in prompt.clips],
        "references": [clip.card() for clip in prompt.references],
        "clips": [[clip.card() for clip in of] for of in prompt.clips],
    }


def _errors(clips: list[Clip]) -> float | None:
    """Share of wrong symbols, by which prompts are ordered."""
    return mean(clip.heard and round(clip.heard.rate, 4) for clip in clips)
