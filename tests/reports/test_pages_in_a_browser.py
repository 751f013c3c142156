"""The pages in a real browser: a listening test from its first to its last pair, by the keyboard;
the filters of a comparison. Without a browser there is nothing to try."""

import json

import numpy as np
import pytest
import soundfile
from browser import PROGRAM, Browser
from experiments import add_sample, add_training, write
from findings import HEBREW, MARKUP, add_checks, add_grid, add_listening_test, evaluated
from report_page import build_report, change

from rvqlm.bin import compare as compare_command
from rvqlm.bin import listen as listen_command

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def two(tmp_path) -> list[str]:
    exps = [tmp_path / name for name in ("zephyr", "quorum")]
    for place, exp in enumerate(exps):
        add_training(exp)
        rows = []
        for n in range(3):
            about = {"prompt": f"cut{n}", "conditions": {"text": f"text {n} <i>"}}
            wav = add_sample(exp, f"s{n}", kind="conditioned", **about)
            soundfile.write(wav, 0.1 * np.sin(np.arange(800)), 8000)
            row = {"name": wav.name, "symbols": 9, "errors": n + 3 * place * (n == 0)}
            rows.append(row | {"recognized": "x", "reference": "y"})
        rate = {"error_rate": 0.1, "interval": None, "items": 3, "rows": rows}
        write(exp / "samples" / "recognition.json", rate)
    return [str(exp) for exp in exps]


def test_a_listening_test_to_its_end(browser, tmp_path, capsys):
    page, results = tmp_path / "test.html", tmp_path / "results"
    assert listen_command.main(["make", "--exp-dirs", *two(tmp_path), "--out", str(page)]) == 0
    results.mkdir()
    browser.open(page)
    browser.run("document.querySelector('[name=rater]').value = 'Анна <b>'")
    browser.run("document.querySelector('form .main').click()")
    key = json.loads(page.with_suffix(".key.json").read_text())
    better = {t["id"]: t["clips"][0]["system"] == "quorum" for t in key["trials"]}
    for n in range(3):
        browser.press("ArrowLeft")  # nothing was heard yet
        assert browser.run("answered()") == n
        for number in range(2):
            browser.press(" ")
            browser.wait(f"players[{number}].plays > 0")
        if n == 1:  # closed in between
            browser.open(page, width=390)
            assert "1 of 3 answered" in browser.run("form.innerText")
            assert browser.run("document.documentElement.scrollWidth <= 390")
            browser.run("document.querySelector('form .main').click()")
        trial = browser.run("state.order[state.at]")
        browser.press("ArrowLeft" if better[trial] else "ArrowRight")
    browser.wait("!end.hidden")
    (results / browser.run("fileName()")).write_text(browser.run("result()"))
    assert [p.name for p in results.iterdir()] == [f"listening-{key['test'][:8]}-Анна-b.json"]
    assert browser.errors == [] and browser.requests == []
    capsys.readouterr()
    assert listen_command.main([str(*results.iterdir())]) == 0
    printed = capsys.readouterr()
    assert "quorum against zephyr: preferred 100%" in printed.out and printed.err == ""

    # the filters of a comparison
    assert compare_command.main(["--exp-dirs", *two(tmp_path), "--page", str(page)]) == 0
    browser.open(page)
    shown = "[...document.querySelectorAll('.prompt:not([hidden]) bdi:first-child')]"
    shown = f"{shown}.filter(e => e.closest('blockquote')).map(e => e.textContent).join()"
    change = "filters.dispatchEvent(new Event('input'))"
    assert browser.run(shown) == "cut0,cut1,cut2"
    for order, wanted in (
        ("worst", "cut0,cut2,cut1"),
        ("0", "cut2,cut1,cut0"),
        ("", "cut0,cut1,cut2"),
    ):
        browser.run(f"filters.order.value = '{order}'; {change}")
        assert browser.run(shown) == wanted
    browser.run(f"filters.find.value = 'TEXT 1'; {change}")
    assert browser.run(shown) == "cut1" and browser.run("filters.innerText").endswith("1 of 3")
    assert browser.errors == [] and browser.requests == []


def test_the_page_of_an_experiment(browser, exp, tokens, toy_codec):
    """What was found, names of any script and all: on a phone and on a screen; the samples of
    checks are heard from their table."""
    change(exp / "eval_test.json", **evaluated(3))
    add_checks(exp)
    add_grid(exp)
    add_listening_test(exp, (HEBREW, MARKUP), answers=1)
    page = exp / "report.html"
    page.write_text(build_report(exp, tokens, max_seconds=3))
    for width in (390, 1280):
        browser.open(page, width)
        assert browser.run("document.documentElement.scrollWidth") <= width
    shown = "document.querySelector('#check-0').checkVisibility()"
    assert not browser.run(shown)
    browser.run("document.querySelector('[href=\"#check-0\"]').click()")
    assert browser.run(shown)
    browser.wait("document.querySelector('#check-0 audio').currentTime > 0")
    link = browser.run("[...document.querySelectorAll('#test a')].map(a => a.href)")
    assert link == [(exp / f"a test {HEBREW}.html").as_uri()]
    assert browser.errors == [] and browser.requests == []
