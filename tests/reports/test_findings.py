"""What evaluate, check, grid, judge and listeners found, on the pages: all of it, "not run" with
the command where it is not there, and names as text."""

import json
from urllib.parse import unquote

import pytest
from experiments import write
from findings import (
    HEBREW,
    MARKUP,
    add_checks,
    add_grid,
    add_listening_test,
    evaluated,
)
from report_page import Page, audio_of, build_report, change

from rvqlm.bin import report as command
from rvqlm.errors import UserError
from rvqlm.reports.release import Checks, Grid
from rvqlm.reports.report import ReportArgs, collect, summary

JUDGED = {
    "summary": {"samples": {"dnsmos.overall": {"mean": 2.51, "interval": [2.4, 2.6]}},
                "recordings": {"dnsmos.overall": {"mean": 3.21}}},
    "figures": {"dnsmos.overall": {"better": "higher", "meaning": "predicted quality"}},
    "not_run": {"utmos": f"no weights {MARKUP}"}, "command": "rvqlm judge X",
}  # fmt: skip


@pytest.fixture
def full(exp):
    change(exp / "eval_test.json", **evaluated(3))
    add_checks(exp)
    add_grid(exp)
    add_listening_test(exp, (HEBREW, MARKUP), answers=1)
    write(exp / "samples" / "judged_test.json", JUDGED)
    return exp


def test_everything_that_was_found(full, tokens, toy_codec):
    html = build_report(full, tokens, max_seconds=3)
    page = Page(html)
    assert page.open == [] and len(page.find("script")) == 1 and MARKUP not in html
    # but for a judge, a check, and the number of such checks
    assert page.text.count("not run") == 3 and not page.find("div", **{"class": "not-run-yet"})
    for words in (
        # references, intervals, calibration
        "previous frame: which codes follow each other 678 bits/s",
        "And 59.5 bits (51.5 to 67.5) fewer than knowing which codes follow each other",
        "0 3.200 3.141 2.500 (2.41 to 2.59) 21.9 % 31.0 % 1.2 % +0.0 % 12.2",
        # listening to itself
        "8 recordings continued behind their first 1 s",
        "1 frame (0.02 s) 62.5 % 50.0 %",
        "within 1 frame (0.02 s), 2 of 8 never",
        "0 1.26 0.93 +0.33 (+0.21 to +0.45) 49 % (49 %) 4.57 (4.57) 0.75 (0.50)",
        "2 – 0.93 –",
        f"Continued by the model 16 frames of {MARKUP} 12.6",
        # judges
        "dnsmos.overall 2.51 (2.40 to 2.60) 3.21",
        f"utmos not run: no weights {MARKUP}",
        # checks
        "2 of 3 checks failed, 1 not run. Recordings pass",
        "no stutter fail 28.1% do at most 10.0% hear",
        f"silence fail 99.0% at most 39.9% ../{HEBREW}.wav",
        f"voice does not drift not run no codec {MARKUP} – –",
        "The worst samples to hear",
        "long (the first 3 of 20 s)",
        # settings
        "Best: best.pt (step 490), temperature 0.5: symbols wrong 3.1 % (2.0 to 4.2 %) .",
        "11 of the 11 others may be as good: 2 recordings of the split “valid”",
        "best.pt (step 490), temperature 0.6 4.1 % (3.0 to 5.2 %) 2.5 -0.1 to +2.0 %",
        "2 more are in grid.csv",
        # listeners
        f"“ Which? {MARKUP} ” 6 pairs of",
        "preferred",
        "items 0 to 6, p = 0.031",
    ):
        assert words in page.text, words
    for line in ("rvqlm check exp", "rvqlm grid --exp-dir exp", "rvqlm judge X"):
        assert line in page.text.split("Do it again")[-1]
    # the sample of two checks is there once, cut; the one outside of the folder is not looked at
    sounds = [sound for sound, _ in audio_of(page)]
    assert max(map(len, sounds)) == 3 * 8000
    assert [a["href"] for a in page.find("a") if a["href"].startswith("#check-")] == [
        "#check-0"
    ] * 2
    assert len(page.find("div", id="check-0")) == 1
    (link,) = (a["href"] for a in page.find("a") if not a["href"].startswith("#"))
    assert unquote(link) == f"a test {HEBREW}.html" and ":" not in link and " " not in link
    lines = summary(collect(ReportArgs(full, tokens)))
    assert "release: 2 of 3 checks failed, 1 not run" in lines
    assert any(line.startswith("best settings: best.pt (step 490), temp") for line in lines)


def test_what_was_not_run_has_its_command(exp, tokens, toy_codec):
    page = Page(build_report(exp, tokens))
    assert page.open == [] and page.text.count("not run") == 5
    name = str(exp)
    for words in (
        f"rvqlm evaluate --exp-dir {name} --manifest-dir {tokens} --split test --free-running 16",
        f"rvqlm judge --samples {name} --references {tokens} --split test",
        f"rvqlm check {name} --manifest-dir {tokens} --split test",
        f"rvqlm grid --exp-dir {name} --manifest-dir {tokens} --temperature",
        f"rvqlm listen make --exp-dirs {name} --manifest-dir {tokens} --split test --recordings",
    ):
        assert words in page.text, words
    assert "calibration error" not in page.text and "previous frame" not in page.text
    # a model that says something is heard by the recogniser of its experiment
    change(exp / "eval_test.json", conditions=["text and its times"], prompt_fraction=0.4)
    text = Page(build_report(exp, tokens)).text
    assert "--free-running 16 --prompt-fraction 0.4" in text
    assert f"rvqlm check {name} --manifest-dir {tokens} --split test --recognizer RECOGN" in text
    (exp / "recognizer").mkdir()
    assert f"--recognizer {exp / 'recognizer'}" in Page(build_report(exp, tokens)).text


def test_parts_that_an_evaluation_has_not(exp, tokens, toy_codec):
    """Of one recording, of a masked model, of large codebooks."""
    found = evaluated(3) | {
        "uncertainty": {"plus_minus": None, "nats_intervals": [None] * 3}, "gain": None,
        "previous_frame_nats": None, "previous_frame_bits_per_second": None,
        "calibration_error": [None] * 3, "overconfidence": [None] * 3,
    }  # fmt: skip
    free = found["free_running"]
    free["agreement"]["teacher_forced"] = free["likelihood"]["interval"] = None
    change(exp / "eval_test.json", **found)
    page = Page(build_report(exp, tokens))
    assert page.open == []
    assert "told the truth" not in page.text and "1 frame (0.02 s) 50.0 %" in page.text
    assert "0 3.200 2.500 21.9 % 31.0 % 12.2" in page.text
    assert "0 1.26 0.93 +0.33 49 %" in page.text
    change(exp / "eval_test.json", gain={"bits_per_second": 1.0, "interval": [-5.0, 7.0]})
    assert "has learned nothing of time" in Page(build_report(exp, tokens)).text


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("check/check.json", lambda found: found | {"checks": [{"name": "x", "verdict": "good"}]}),
        ("grid/grid.json", lambda found: found | {"settings": []}),
        ("grid/grid.json", lambda found: found | {"judge": "nats"}),
        ("eval_test.json", lambda found: found | {"free_running": {"recordings": 8}}),
        (f"a test {HEBREW}.key.json", lambda found: found | {"trials": []}),
    ],
)
def test_damaged_findings_are_one_line(full, tokens, toy_codec, capsys, name, spoil):
    path = full / name
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert command.main(["--exp-dir", str(full), "--manifest-dir", str(tokens)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{name} is damaged" in line


def test_a_damaged_result_of_a_rater_is_named(full, tokens, toy_codec):
    (full / "listening-abababab-0.json").write_text("{")
    text = Page(build_report(full, tokens)).text
    assert "left out:" in text and "listening-abababab-0.json is damaged" in text
    assert "No answers beside it yet" in text


def test_the_best_setting(exp):
    assert Checks.read([exp]) is None and Grid.read([exp]) is None
    add_grid(exp, 2, certain=True)
    grid = Grid.read([exp / "elsewhere", exp])
    assert grid.best == "best.pt (step 490), temperature 0.5: symbols wrong 3.1 % (2.0 to 4.2 %)"
    assert list(grid.judges) == ["errors", "kl"] and grid.not_apart == 1
    add_checks(exp)
    checks = Checks.read([exp])
    (exp / "check" / "long.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"long\.wav"):
        checks.listen(1)
