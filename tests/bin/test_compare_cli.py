"""`rvqlm compare` as a user runs it: printed, into a page, as JSON; mistakes in one line."""

import json

import pytest
from experiments import add_evaluation, add_sample, add_training

from rvqlm.bin.compare import main


@pytest.fixture
def exps(tmp_path):
    for name, pattern, bound in (("first one", "delay", True), ("second", "flatten", False)):
        add_training(tmp_path / name, pattern=pattern)
        add_evaluation(tmp_path / name, bound=bound)
    add_sample(tmp_path / "first one", "a|b")
    return ["--exp-dirs", str(tmp_path / "first one"), str(tmp_path / "second")]


def test_on_the_terminal(exps, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(exps) == 0
    out, err = capsys.readouterr()
    assert "| first one | codec-lm, pattern delay |" in out and "| second | codec-lm, " in out
    assert "[1](first%20one/samples/a%7Cb.wav)" in out
    assert err.count("\n") == 1 and "second: no samples" in err


def test_into_a_page_that_keeps_its_text(exps, tmp_path, capsys):
    page = tmp_path / "docs" / "RESULTS.md"
    page.parent.mkdir()
    page.write_text("# Results\n\nBy hand.\n")
    args = [*exps, "--out", str(page), "--title", "Patterns"]
    assert main(args) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    once = page.read_text()
    assert once.startswith("# Results\n\nBy hand.\n\n<!-- compare:begin main -->\n## Patterns\n")
    assert "](../first%20one/samples/" in once
    assert main(args) == 0 and page.read_text() == once
    assert main([*args, "--name", "more", "--num-samples", "0"]) == 0
    both = page.read_text()
    assert both.startswith(once) and both.count("## Patterns") == 2
    assert both.count("](../first%20one/") == 1
    assert sorted(p.name for p in page.parent.iterdir()) == ["RESULTS.md"]


def test_as_json(exps, capsys):
    assert main([*exps, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["options"] == {"pattern": "delay"} and first["evaluation"]["bound"]
    assert first["samples"]["continuation"]["passes_per_second"] == 50
    assert second["samples"] == {} and "no samples" in second["remarks"][0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split", "dev"], "no eval_dev.json in"),
        (["--out", "nowhere/page.md"], "no folder nowhere"),
        (["--num-samples", "-1"], "--num-samples -1: at least 0"),
        (["--name", "a -->"], "--name"),
        (["--name", "a--b"], "--name"),
    ],
)
def test_mistakes_are_one_line_and_status_2(exps, capsys, flags, message):
    assert main([*exps, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm compare: error:") and message in error
    assert error.count("\n") == 1


def test_a_page_that_is_no_text(exps, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_bytes(b"\xff\xfe\x00")
    assert main([*exps, "--out", str(page)]) == 2
    assert "not a text file" in capsys.readouterr().err
    assert page.read_bytes() == b"\xff\xfe\x00"
