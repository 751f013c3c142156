"""What raters said, summed up; results that do not belong to a test are not."""

import json

import pytest

from rvqlm.bin import listen as command
from rvqlm.errors import UserError
from rvqlm.files import write_json
from rvqlm.reports.listening_results import (
    compare_systems,
    describe,
    grade_systems,
    left_share,
    read_results,
)

TEST = "a" * 64


@pytest.fixture
def test_of(tmp_path):
    """A key beside the results: 8 items, the better system at the left of every second one; and who
    answers."""

    def make(kind: str):
        def clips(n):
            pair = [{"system": "good", "name": "x"}, {"system": "bad", "name": "x"}]
            return pair if n % 2 else pair[::-1]

        if kind == "preference":
            trials = [{"id": f"t{n}", "item": f"i{n}", "clips": clips(n)} for n in range(8)]
        else:
            trials = [
                {"id": f"t{n}{c['system']}", "item": f"i{n}", "clips": [c]}
                for n in range(8)
                for c in clips(n)
            ]
        key = {"test": TEST, "kind": kind, "question": "Which?", "trials": trials}
        write_json(tmp_path / "test.key.json", key, checksum=True)

        def answer(name: str, choose, most: int = 99, **changes):
            given = {t["id"]: {"answer": choose(t)} for t in trials[:most]}
            result = {"test": TEST, "rater": name, "session": name, "saved": "2026", "trials": 8}
            path = tmp_path / "results" / f"{len(list(tmp_path.rglob('*.json')))}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result | {"answers": given} | changes))
            return path

        return answer

    return make


def side(trial, system):
    return "left" if trial["clips"][0]["system"] == system else "right"


def test_preferences(test_of):
    answer = test_of("preference")
    ann = answer("Ann", lambda t: side(t, "good"))
    bob = answer("Bob", lambda t: "same" if t["id"] in ("t0", "t1") else side(t, "good"))
    results = read_results([ann, bob])
    assert results.remarks == [] and [r.name for r in results.raters] == ["Ann", "Bob"]
    (one,) = compare_systems(results)
    assert (one.first, one.second, one.answers) == ("bad", "good", 16)
    assert one.wins == (0, 14) and one.items == (0, 8)
    assert one.value == pytest.approx(1 / 16)
    assert one.interval[0] == 0 and 1 / 16 < one.interval[1] < 0.5
    assert one.p == pytest.approx(2 / 2**8)
    left, right = left_share(results)
    assert (left, right) == (7, 7)
    lines = describe(results)
    assert "8 trials, 2 raters" in lines[0] and "p = 0.0078" in lines[1]
    # two raters of one opinion about three items say nothing about other items
    few = read_results([answer(n, lambda t: side(t, "good"), 3) for n in ("C", "D")])
    assert compare_systems(few)[0].p == 0.25 and "not significant" in describe(few)[1]
    assert [remark.split(":")[0] for remark in few.remarks] == ["incomplete", "incomplete"]
    assert "C (" in few.remarks[0] and "3 of 8 answers" in few.remarks[0]


def test_grades(test_of):
    answer = test_of("rating")

    def grade(trial):
        return 4 if trial["clips"][0]["system"] == "good" else 2 + trial["item"].endswith("7")

    results = read_results([answer("Ann", grade), answer("Bob", lambda t: grade(t) + 1)])
    grades = {g.system: g for g in grade_systems(results)}
    assert grades["good"].mean == 4.5 and grades["bad"].mean == pytest.approx(2.625)
    assert grades["good"].interval == [4.0, 5.0]  # of raters: all items are alike
    (one,) = compare_systems(results)
    assert one.value == pytest.approx(-1.875) and one.wins == (0, 16) and one.items == (0, 8)
    assert one.interval[0] == -2 and -2 < one.interval[1] <= -1.5  # raters differ, not in this
    assert "good: 4.50 (95 %: 4.00 to 5.00) of 5" in describe(results)[1]


def test_results_that_do_not_belong(test_of, tmp_path):
    answer = test_of("preference")
    good = answer("Ann", lambda t: side(t, "good"))
    early = answer("Ann", lambda t: side(t, "good"), 5)
    foreign = answer("Eve", lambda t: "left", test="b" * 64)
    strange = answer(
        "Eve", lambda t: "left", answers={"t0": {"answer": "left"}, "no": {"answer": "left"}}
    )
    graded = answer("Eve", lambda t: 3)
    wrong = answer("Eve", lambda t: "better")
    torn = tmp_path / "results" / "torn.json"
    torn.write_text('{"test": ')
    results = read_results([early, foreign, strange, graded, wrong, torn, good])
    assert [r.name for r in results.raters] == ["Ann"] and len(results.raters[0].answers) == 8
    remarks = "\n".join(results.remarks)
    for path, words in (
        (foreign, "of another test (bbbbbbbb)"),
        (strange, "1 answer to what the test doesn't ask"),
        (graded, "answers that are none of this test"),
        (wrong, "is damaged"),
        (torn, "is damaged"),
        (early, "is a later save of the same rater"),
    ):
        assert any(str(path) in line and words in line for line in results.remarks), remarks
    assert len(results.remarks) == 6
    with pytest.raises(UserError, match="of another test"):
        read_results([foreign], tmp_path / "test.key.json")
    with pytest.raises(UserError, match="no key of this test beside the results"):
        read_results([foreign])
    (tmp_path / "test.key.json").write_text(
        (tmp_path / "test.key.json").read_text().replace('"t3"', '"t9"')
    )
    with pytest.raises(UserError, match="checksum"):
        read_results([good])


def test_the_command(test_of, tmp_path, capsys):
    answer = test_of("preference")
    path = answer("An\x1b[31mn", lambda t: side(t, "good"), 6)
    out = tmp_path / "sum.json"
    assert command.main([str(path), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "incomplete: An?[31mn" in printed.err and "\x1b" not in printed.err + printed.out
    assert "bad against good: preferred 0%" in printed.out
    found = json.loads(out.read_text())
    assert found["comparisons"][0]["items"] == [0, 6] and found["raters"][0]["answers"] == 6
    assert command.main([]) == 2
