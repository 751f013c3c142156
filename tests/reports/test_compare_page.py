"""The page of several experiments: what stands beside what, what is said to be missing."""

import json
from shlex import quote

import numpy as np
import pytest
import soundfile
from experiments import CODEC, add_evaluation, add_sample, add_training, write
from findings import HEBREW, MARKUP, add_checks, add_grid, add_listening_test, evaluated
from report_page import INFO, Page, audio_of, change

from rvqlm.bin import compare as command
from rvqlm.errors import UserError
from rvqlm.reports.aligned import Aligned, align
from rvqlm.reports.compare import compare
from rvqlm.reports.compare_page import compare_page
from rvqlm.reports.formatting import render_template


def say(exp, name: str, errors: int = 0, **about) -> None:
    """A sample of a text, a second long, with its transcript."""
    wav = add_sample(exp, name, **{"kind": "conditioned", "prompt_seconds": 0.0} | about)
    soundfile.write(wav, 0.1 * np.sin(np.arange(4000)), 8000)
    path = exp / "samples" / "recognition.json"
    found = json.loads(path.read_text()) if path.exists() else {"rows": []}
    heard = "x" * errors + "abcdefghij"[errors:]
    row = {"name": f"{name}.wav", "errors": errors, "symbols": 10, "recognized": heard}
    rows = [*found["rows"], row | {"reference": "abcdefghij"}]
    rate = {"error_rate": 0.25, "interval": [0.2, 0.3]}
    write(path, {**rate, "items": len(rows), "rows": rows, "identified": [1, 2], "chance": 0.9,
                 "sounds": {"error_rate": 0.125, "interval": [0.1, 0.15]}})  # fmt: skip


@pytest.fixture
def two(tmp_path):
    """Two experiments of which the second was given the text of the first's recording."""
    exps = [tmp_path / "alpha", tmp_path / MARKUP.replace("/", "\u2215")]
    for exp in exps:
        add_training(exp)
        add_evaluation(exp)
    say(exps[0], "one", 1, prompt="cut0", conditions={"text": "good day"})
    say(exps[0], "two", 5, prompt=None, conditions={"text": MARKUP})
    say(exps[0], "three", 0, prompt=HEBREW, conditions={"phonemes": "ʃ a"})
    say(exps[1], "a", 3, prompt=None, conditions={"text": "good day"})
    say(exps[1], "b", 4, prompt=None, conditions={"text": MARKUP})
    add_sample(exps[1], "free", kind="unprompted", prompt=None, prompt_seconds=0.0)
    return exps


def page_of(exps, manifest_dir=None, number=9, **args) -> tuple[dict, Page]:
    aligned = Aligned.read(compare(exps, evaluated=False), manifest_dir, "test")
    aligned.listen(number, 10.0)
    content = compare_page(aligned, "test", **args)
    return content, Page(render_template("compare.html", **content))


def test_samples_of_one_prompt_are_beside_each_other(two):
    content, page = page_of(two, title=MARKUP)
    assert page.open == [] and len(page.find("script")) == 1  # of the page itself
    found = [(p["text"], [len(of) for of in p["clips"]], p["errors"]) for p in content["prompts"]]
    assert found == [
        ("good day", [1, 1], [0.1, 0.3]),
        (MARKUP, [1, 1], [0.5, 0.4]),
        ("ʃ a", [1, 0], [0.0, None]),
        (None, [0, 1], [None, None]),
    ]
    articles = page.find("article")
    assert [json.loads(a["data-errors"]) for a in articles] == [p[2] for p in found]
    assert [a["data-kind"] for a in articles] == ["conditioned"] * 3 + ["unprompted"]
    assert articles[1]["data-find"].split() == [MARKUP]  # the text is its only name
    assert MARKUP in page.text and HEBREW in page.text and "not made" in page.text
    assert len(audio_of(page)) == 6
    options = {a["value"] for a in page.find("option")}
    assert {"conditioned", "unprompted", "worst", "apart", "0", "1"} <= options
    for tag in ("script", "link", "img", "audio"):
        assert all(a.get("src", "data:").startswith("data:") for a in page.find(tag))


def test_figures_have_intervals_and_what_is_missing_its_command(two):
    judged = {
        "summary": {"samples": {"dnsmos.overall": {"mean": 2.51, "interval": [2.4, 2.6]}},
                    "codec": {"dnsmos.overall": {"mean": 2.95}}},
        "figures": {"dnsmos.overall": {"better": "higher", "meaning": "predicted quality"}},
        "not_run": {"utmos": "no weights; --weights utmos=PATH"}, "command": "rvqlm judge X",
    }  # fmt: skip
    write(two[0] / "samples" / "judged_test.json", judged)
    (two[1] / "eval_test.json").unlink()
    (two[1] / "samples" / "recognition.json").unlink()
    content, page = page_of(two)
    lines = {line.name: line for line in content["figures"]}
    cells = {name: [(c.text, c.within) for c in line.cells] for name, line in lines.items()}
    assert cells["symbols wrong"][0] == ("25.0 %", "20.0 to 30.0 %")
    assert cells["without word boundaries"][0] == ("12.5 %", "10.0 to 15.0 %")
    assert cells["nearest to its own text"][0] == ("1 of 2", "")
    assert cells["throughput"][0][0] == f"{3900 / 180:.1f} frames/s"  # all frames, all seconds
    assert cells["dnsmos.overall"][0] == ("2.51", "2.40 to 2.60")
    assert lines["dnsmos.overall"].references == "recordings through the codec 2.95"
    commands = {name: line.cells[1].command for name, line in lines.items()}
    name = quote(str(two[1]))  # to be pasted into a shell
    assert commands["bits per second"].startswith(f"rvqlm evaluate --exp-dir {name}")
    assert f"--samples {quote(str(two[1] / 'samples'))}" in commands["symbols wrong"]
    assert commands["dnsmos.overall"].startswith("rvqlm judge --samples")
    assert "not run" in page.text and commands["bits per second"] in page.text
    assert "not judged by utmos: no weights" in page.text and "rvqlm judge X" in page.text


def test_recordings_stand_beside_their_samples(two, tokens, toy_codec):
    for exp in two:
        about = json.loads((exp / "run.json").read_text())
        about["data"]["codec"] = INFO.to_dict()
        (exp / "run.json").write_text(json.dumps(about))
    change(two[1] / "samples" / "a.json", conditions={"text": "<words> 0"})  # of cut0
    content, page = page_of(two, tokens, number=2)
    assert [p["source"] for p in content["prompts"]] == ["cut0", None]
    assert [len(p["references"]) for p in content["prompts"]] == [2, 0]
    assert content["prompts"][0]["speaker"] == "ann"
    assert [len(of) for of in content["prompts"][0]["clips"]] == [1, 1]
    assert "2 more prompts have no room on this page" in page.text
    about["data"]["codec"] = CODEC
    for exp in two:
        (exp / "run.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="codec mismatch"):
        page_of(two, tokens)


def test_several_samples_and_paths_of_prompts():
    def made(kind, **about):
        return {"kind": kind, **about}

    continued = made("continuation", prompt="x.wav")
    of = [
        [("a", continued), ("b", continued)],
        [("c", made("continuation", prompt="cut7")), ("d", made("unprompted"))],
        [("e", made("unprompted")), ("f", made("conditioned", conditions={"midi": "a.mid"}))],
    ]
    found = align(of, lambda prompt, text: {"x.wav": "cut7", "cut7": "cut7"}.get(prompt))
    places = [[[wav for wav, _ in s] for s in p.samples] for p in found]
    assert places == [[["a", "b"], ["c"], []], [[], [], ["f"]], [[], ["d"], ["e"]]]
    assert [p.source for p in found] == ["cut7", "a.mid", ""]


def test_the_command(two, tmp_path, capsys):
    out = tmp_path / "page.html"
    argv = ["--exp-dirs", *map(str, two), "--page", str(out)]
    assert command.main(argv) == 0
    printed = capsys.readouterr().out
    assert "missing: No recordings beside the samples; --manifest-dir" in printed
    assert "rvqlm compare --exp-dirs" in Page(out.read_text()).text
    for more, words in (
        (["--out", "x.md"], "--page is written instead"),
        (["--num-prompts", "0"], "at least 1"),
    ):
        assert command.main([*argv, *more]) == 2 and words in capsys.readouterr().err
    assert command.main([*argv[:3], "--num-prompts", "3"]) == 2
    assert "no effect without --page" in capsys.readouterr().err


def test_findings_side_by_side(two, tmp_path):
    add_evaluation(two[0], **evaluated(2))
    add_checks(two[0])
    add_grid(two[0])
    for systems in (("alpha", MARKUP.replace("/", "\u2215")), ("alpha", "another")):
        add_listening_test(tmp_path, systems)  # the second takes the place of the first
        content, page = page_of(two, folder=tmp_path)
        assert len(content["tests"]) == ("another" not in systems)
    assert page.open == [] and len(page.find("script")) == 1
    lines = {line.name: line.cells for line in content["figures"]}
    first = {name: (cells[0].text, cells[0].within) for name, cells in lines.items()}
    for name, found in {
        "saved of the previous frame": ("59.5", "51.5 to 67.5"),
        "calibration error": ("1.2 %", ""),
        "parts from the recording": ("0.02 s", "2 of 8 never"),
        "own samples, nats": ("+0.33", "+0.21 to +0.45"),
        "divergence of codes": ("0.75", "recordings 0.50"),
        "shared with training": ("12.6 frames", "recordings 12.6, shuffled 12.6"),
        "release checks": ("2 of 3 checks failed, 1 not run", "no stutter, silence"),
        "best settings": (
            "best.pt (step 490), temperature 0.5: symbols wrong 3.1 % (2.0 to 4.2 %)",
            "not certain",
        ),
    }.items():
        assert first[name] == found, name
        assert lines[name][1].command.split()[1] in ("evaluate", "check", "grid")
        assert quote(str(two[1])) in lines[name][1].command
    assert lines["divergence of codes"][1].command.endswith("--free-running 16")
    # what a masked model or a single recording cannot have is no figure to be run
    add_evaluation(two[1], **evaluated(2) | {"gain": None, "calibration_error": [None, None]})
    lines = {line.name: line.cells[1] for line in page_of(two)[0]["figures"]}
    for name in ("saved of the previous frame", "calibration error"):
        assert (lines[name].text, lines[name].command) == ("–", None)
