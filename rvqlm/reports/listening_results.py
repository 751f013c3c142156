"""What raters said in a listening test (`rvqlm.reports.listening_test`), summed up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, TypedDict
from urllib.parse import quote

import numpy as np
from msgspec import Meta

from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.files import Count, Digest, read_json
from rvqlm.metrics.opinions import holm, mean_with_interval, sign_test, signs_of_items
from rvqlm.reports.listening_test import Key

REMEDY = "save it again from the page of the test"
KEY_REMEDY = "make the test again, or find the key that was written with its page"
GRADES = ("bad", "poor", "fair", "good", "excellent")
"""From 1 to 5, as in ITU-T P.800."""
SIDES = {"left": 1.0, "same": 0.0, "right": -1.0}


class _Given(TypedDict):
    answer: Literal["left", "same", "right"] | Annotated[int, Meta(ge=1, le=len(GRADES))]


class Result(TypedDict):
    """What the page saves."""

    test: Digest
    rater: str
    session: str
    saved: str
    trials: Count
    answers: dict[str, _Given]


@dataclass
class Rater:
    name: str
    path: Path
    answers: dict[str, str | int]
    """By trial."""


@dataclass
class Results:
    """All that was said in one test."""

    key: Key
    raters: list[Rater]
    remarks: list[str] = field(default_factory=list)
    """Results that were left out, and raters who did not come to the end."""


def read_results(paths: Sequence[Path], key_path: Path | None = None) -> Results:
    """Results of one test; those that cannot be read, or are of another one, are left out with a
    remark.

    :param key_path: None: the ``*.key.json`` beside the results that is of their test.
    :raises UserError: no key, or no results of its test.
    """
    read, remarks = [], []
    for path in paths:
        try:
            read.append((path, read_json(path, REMEDY, type=Result)))
        except UserError as e:
            remarks.append(f"left out: {e}")
    key = _key_of([path for path, _ in read], {r["test"] for _, r in read}, key_path)
    trials = {trial["id"] for trial in key["trials"]}
    answer = {"preference": str, "rating": int}[key["kind"]]
    newest: dict[str, tuple[Path, Result]] = {}
    for path, result in read:
        answers = {trial: given["answer"] for trial, given in result["answers"].items()}
        if result["test"] != key["test"]:
            remarks.append(f"left out: {path}: of another test ({result['test'][:8]})")
        elif strange := answers.keys() - trials:
            remarks.append(
                f"left out: {path}: {counted(len(strange), 'answer')} to what the test doesn't ask"
            )
        elif not all(isinstance(given, answer) for given in answers.values()):
            remarks.append(f"left out: {path}: answers that are none of this test")
        else:
            session = result["session"]
            kept = newest.get(session)
            if kept and _order(kept[1]) >= _order(result):
                path, result, kept = *kept, (path, result)
            if kept:
                remarks.append(f"left out: {kept[0]}: {path} is a later save of the same rater")
            newest[session] = path, result
    if not newest:
        raise UserError("; ".join(remarks) or "no results; give the files that raters saved")
    raters = []
    for path, result in newest.values():
        answers = {trial: given["answer"] for trial, given in result["answers"].items()}
        name = "".join(c if c.isprintable() else "?" for c in result["rater"]) or path.name
        if len(answers) < len(trials):
            remarks.append(f"incomplete: {name} ({path}): {len(answers)} of {len(trials)} answers")
        raters.append(Rater(name, path, answers))
    return Results(key, raters, remarks)


@dataclass
class Test:
    """A listening test that was made: its page, and what raters said."""

    page: Path
    key: Key
    lines: list[str] = field(default_factory=list)
    """Of `describe`; none without results."""
    remarks: list[str] = field(default_factory=list)

    @property
    def systems(self) -> list[str]:
        return _systems(self.key)


def tests_in(folders: Iterable[Path]) -> list[Test]:
    """The pages of listening tests with their keys beside them, and results that lie there too.

    :raises UserError: a damaged key.
    """
    found = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        for path in sorted(folder.glob("*.key.json")):
            page = path.with_name(path.name.removesuffix(".key.json") + ".html")
            if not page.exists():
                continue
            test = Test(page, read_json(path, KEY_REMEDY, convert=_checked, type=Key))
            results = sorted(folder.glob(f"listening-{test.key['test'][:8]}-*.json"))
            try:
                said = read_results(results, path) if results else None
            except UserError as e:  # all of them damaged
                test.remarks.append(str(e))
            else:
                test.lines = describe(said) if said else []
                test.remarks += said.remarks if said else []
            found.append(test)
    return found


def linked(tests: Iterable[Test], folder: Path) -> list[tuple[str, Test]]:
    """Each with its address on a page in that folder."""
    folder = folder.resolve()
    paths = ((os.path.relpath(test.page.resolve(), folder), test) for test in tests)
    return [(quote(os.fsencode(Path(path).as_posix())), test) for path, test in paths]


def _order(result: Result) -> tuple:
    return len(result["answers"]), result["saved"]


def _key_of(results: list[Path], tests: set[str], key_path: Path | None) -> Key:
    if key_path is not None:
        return read_json(key_path, KEY_REMEDY, convert=_checked, type=Key)
    for folder in dict.fromkeys(path.resolve().parent for path in results):
        for path in sorted({*folder.glob("*.key.json"), *folder.parent.glob("*.key.json")}):
            key = read_json(path, KEY_REMEDY, convert=_checked, type=Key)
            if key["test"] in tests:
                return key
    raise UserError(
        "no key of this test beside the results; give --key PAGE.key.json, which rvqlm listen make "
        "wrote beside the page"
    )


def _checked(key: Key) -> Key:
    """:raises ValueError: trials that are none of their kind of test, or several of one id."""
    clips = {"preference": 2, "rating": 1}[key["kind"]]
    for trial in key["trials"]:
        if len(trial["clips"]) != clips:
            raise ValueError(f"trial {trial['id']}: not {counted(clips, 'clip')}")
    if len({trial["id"] for trial in key["trials"]}) < len(key["trials"]):
        raise ValueError("two trials of one id")
    return key


# ---------------------------------------------------------------- figures


@dataclass
class Comparison:
    """Two systems on the same items."""

    first: str
    second: str
    value: float
    """Preference for the first (1: always, 0.5: neither), or mean grade of the first less that of
    the second."""
    interval: list[float] | None
    answers: int
    wins: tuple[int, int]
    """Answers for the first and for the second; of grades, higher ones."""
    items: tuple[int, int]
    """Items, all answers together, for the first and for the second."""
    p: float = 1.0
    """Of the sign test over items, raised for the number of comparisons (Holm)."""


@dataclass
class Grade:
    """A system by itself."""

    system: str
    mean: float
    interval: list[float] | None
    answers: int


def compare_systems(results: Results) -> list[Comparison]:
    """Each pair of systems of which something was said."""
    graded = results.key["kind"] == "rating"
    tables = _grades(results) if graded else _preferences(results)
    found = []
    for first, second in combinations(_systems(results.key), 2):
        if graded:
            table = tables[first] - tables[second]  # of the same rater about the same item
        else:
            table = tables.get((first, second), np.zeros((0, 0)))
        if not np.isfinite(table).any():
            continue
        mean, interval = mean_with_interval(table)
        if not graded:  # from -1 to 1 to a share
            mean, interval = (mean + 1) / 2, interval and [(x + 1) / 2 for x in interval]
        wins = int((table > 0).sum()), int((table < 0).sum())
        answers = int(np.isfinite(table).sum())
        items = signs_of_items(table)
        found.append(Comparison(first, second, mean, interval, answers, wins, items))
    for one, p in zip(found, holm([sign_test(*one.items) for one in found])):
        one.p = p
    return found


def grade_systems(results: Results) -> list[Grade]:
    """Mean grade of each system of a rating test."""
    return [
        Grade(system, *mean_with_interval(table), int(np.isfinite(table).sum()))
        for system, table in _grades(results).items()
        if np.isfinite(table).any()
    ]


def left_share(results: Results) -> tuple[int, int]:
    """Answers for the left and for the right clip."""
    given = [answer for rater in results.raters for answer in rater.answers.values()]
    return given.count("left"), given.count("right")


def _systems(key: Key) -> list[str]:
    return sorted({clip["system"] for trial in key["trials"] for clip in trial["clips"]})


def _preferences(results: Results) -> dict[tuple[str, str], np.ndarray]:
    """(items, raters) by pair of systems in the order of their names: 1 for the first of them, -1
    for the second, 0 for neither."""
    entries: dict[tuple[str, str], list] = {}
    for trial, rater, answer in _given(results):
        left, right = (clip["system"] for clip in trial["clips"])
        value = SIDES[answer] * (1 if left < right else -1)
        pair = (left, right) if left < right else (right, left)
        entries.setdefault(pair, []).append((trial["item"], rater, value))
    items = [trial["item"] for trial in results.key["trials"]]
    return {pair: _table(of, items, len(results.raters)) for pair, of in entries.items()}


def _grades(results: Results) -> dict[str, np.ndarray]:
    """(items, raters) by system."""
    entries: dict[str, list] = {system: [] for system in _systems(results.key)}
    for trial, rater, answer in _given(results):
        entries[trial["clips"][0]["system"]].append((trial["item"], rater, float(answer)))
    items = [trial["item"] for trial in results.key["trials"]]
    return {system: _table(of, items, len(results.raters)) for system, of in entries.items()}


def _given(results: Results) -> Iterable[tuple[dict, int, str | int]]:
    """(trial, number of the rater, answer)"""
    trials = {trial["id"]: trial for trial in results.key["trials"]}
    for number, rater in enumerate(results.raters):
        for trial, answer in rater.answers.items():
            yield trials[trial], number, answer


def _table(entries: Iterable[tuple[str, int, float]], items: list[str], raters: int) -> np.ndarray:
    rows = {item: row for row, item in enumerate(dict.fromkeys(items))}
    table = np.full((len(rows), raters), np.nan)
    for item, rater, value in entries:
        table[rows[item], rater] = value
    return table


# ---------------------------------------------------------------- in words


def describe(results: Results) -> list[str]:
    """The test in lines."""
    key = results.key
    trials, raters = counted(len(key["trials"]), "trial"), counted(len(results.raters), "rater")
    lines = [f"listening test {key['test'][:8]}: {key['question']} {trials}, {raters}"]
    if key["kind"] == "rating":
        lines += [
            f"  {g.system}: {g.mean:.2f}{_interval(g.interval, '{:.2f}')} of 5, "
            f"{counted(g.answers, 'answer')}"
            for g in sorted(grade_systems(results), key=lambda g: -g.mean)
        ]
    for one in compare_systems(results):
        forms = ("{:+.2f}", "{:+.2f}") if key["kind"] == "rating" else ("{:.0%}", "{:.0%}")
        what = "grades higher by" if key["kind"] == "rating" else "preferred"
        value = forms[0].format(one.value) + _interval(one.interval, forms[1])
        ties = one.answers - sum(one.wins)
        certain = "" if one.p < 0.05 else ", not significant"
        lines.append(
            f"  {one.first} against {one.second}: {what} {value}; {one.wins[0]} to {one.wins[1]} "
            f"answers, {ties} equal; items {one.items[0]} to {one.items[1]}, p = {one.p:.2g}"
            f"{certain}"
        )
    if key["kind"] == "preference":
        left, right = left_share(results)
        lines.append(f"  left against right: {left} to {right}, p = {sign_test(left, right):.2g}")
    return lines


def _interval(interval: list[float] | None, form: str) -> str:
    if interval is None:
        return ""
    low, high = map(form.format, interval)
    return f" (95 %: {low} to {high})"
