"""What trainings came to, and where others stand against it."""

import json

import pytest
from experiments import add_training, write

from rvqlm.bin import monitor
from rvqlm.errors import UserError
from rvqlm.reports import expected as module
from rvqlm.reports.expected import (
    RECIPES,
    at_step,
    differences,
    expected_files,
    identity,
    read_expected,
    write_expected,
)
from rvqlm.reports.experiment import Training

FLAGS = {"max-minutes": 8.0, "pattern": "delay"}


def train(exp, losses, steps=100, **flags):
    """A training with a validation for each loss, evenly over so many steps and 8 minutes."""
    add_training(exp, **FLAGS | {"valid-every-minutes": 2.0} | flags)
    lines = []
    for number, loss in enumerate(losses, 1):
        step = number * steps // len(losses)
        record = {"step": step, "epoch": 0, "loss": loss, "nats": [loss - 1, loss + 1]}
        record["elapsed"] = 480 * number / len(losses)
        lines += [{"kind": kind, **record} for kind in ("train", "valid")]
    (exp / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return exp


@pytest.fixture
def known(tmp_path, monkeypatch):
    """Of two runs of one config, as a recipe has it."""
    runs = [
        train(tmp_path / "a", [4.0, 3.0, 2.5, 2.4]),
        train(tmp_path / "b", [4.1, 3.1, 2.6, 2.5]),
    ]
    rate = {"error_rate": 0.035, "interval": [0.026, 0.044], "items": 33}
    write(runs[0] / "samples" / "recognition.json", rate)
    path = tmp_path / "egs" / "mini" / "conf" / "tts.expected.json"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "RECIPES", tmp_path / "egs")
    monkeypatch.setattr("rvqlm.reports.monitor.RECIPES", tmp_path / "egs")
    argv = [str(runs[0]), "--compare", str(runs[1]), "--write-expected", str(path)]
    assert monitor.main(argv) == 0
    return path


def said(capsys, *argv) -> list[str]:
    capsys.readouterr()
    assert monitor.main([*map(str, argv)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("  expected ") for line in lines if line.startswith("  expected ")]


def test_a_training_as_expected(known, tmp_path, capsys):
    path, first, *rest = said(capsys, train(tmp_path / "c", [4.05, 3.05], steps=50, seed=7))
    assert path == "by egs/mini/conf/tts.expected.json"
    assert first == "step 50: train 3.05, expected 2.94 to 3.16"  # 2 % beyond the two runs
    assert rest[0] == "step 50: validation 3.05, expected 2.94 to 3.16"
    assert "at the end: validation 2.40 to 2.50, errors of samples 3.5%" in rest


def test_a_training_that_is_worse_and_what_is_audible(known, tmp_path, capsys):
    values = json.loads(known.read_text())
    values["heard"] = [{"loss": 3.4, "what": "words"}, {"loss": 2.4, "what": "sentences"}]
    known.write_text(json.dumps(values))
    lines = said(capsys, train(tmp_path / "c", [4.05, 3.3], steps=50))
    assert lines[2].startswith("step 50: validation 3.30, expected 2.94 to 3.16: worse by 0.14 (")
    assert "level 0 2.30, expected 1.96 to 2.14" in lines[2] and "level 1 4.30" in lines[2]
    assert lines[-1] == "audible: words"
    better = said(capsys, train(tmp_path / "c", [4.05, 2.0], steps=50))
    assert "better by 0.94" in better[2] and better[-1] == "audible: sentences"
    write_expected(known, [Training.read(tmp_path / "a")])
    assert len(read_expected(known)["runs"]) == 1 and read_expected(known)["heard"]


def test_before_and_beyond_what_was_run(known, tmp_path, capsys):
    early = said(capsys, train(tmp_path / "c", [5.0], steps=10))
    assert early[1] == "step 10: train 5.00; nothing is known before step 25"
    late = said(capsys, train(tmp_path / "c", [2.3], steps=400))
    assert late[1] == "step 400: train 2.30; beyond what was run"
    assert "100 % of the budget are used, where those before had used 400 %" in late[3]
    assert "lower than theirs" not in late[3] and "higher than theirs was" in late[3]


def test_another_config_or_other_data_expects_nothing(known, tmp_path, capsys):
    other = train(tmp_path / "c", [4.0], **{"base-lr": 0.01})
    assert said(capsys, other) == []
    (line,) = said(capsys, other, "--expected", known)
    assert line == "nothing, as it is of another config: base-lr 0.01 instead of 0.004"
    run = json.loads((train(tmp_path / "d", [4.0]) / "run.json").read_text())
    run["data"]["train"]["frames"] = 5
    write(tmp_path / "d" / "run.json", run)
    (line,) = said(capsys, tmp_path / "d", "--expected", known)
    assert "train_frames 5 instead of 900" in line
    # a flag of a later version at its default is no difference
    assert said(capsys, train(tmp_path / "e", [4.0], **{"accum": 1}))[0].startswith("by egs/")
    with pytest.raises(UserError, match="are no two runs of one config: base-lr"):
        write_expected(known, [Training.read(tmp_path / n) for n in "ac"])
    assert monitor.main([str(other), "--write-expected", "x.json"]) == 2
    assert "ends .expected.json" in capsys.readouterr().err


def test_between_points_a_loss_falls_with_the_logarithm_of_the_step():
    points = [{"step": 10, "loss": 4.0, "nats": [1.0]}, {"step": 1000, "loss": 2.0, "nats": [None]}]
    assert at_step(points, 100) == pytest.approx(3.0)
    assert at_step(points, 9) is None and at_step(points, 1101) is None
    assert at_step(points, 1100) == 2.0
    assert at_step(points, 10, level=0) == 1.0 and at_step(points, 500, level=0) is None


def test_the_files_of_the_recipes():
    files = expected_files()
    assert RECIPES / "mini" / "conf" / "tts.expected.json" in files
    assert RECIPES / "mini" / "conf" / "compare" / "delay.expected.json" in files
    for path in files:
        found = read_expected(path)
        assert path.with_name(path.name.replace(".expected.json", ".yaml")).exists()
        losses = [entry["loss"] for entry in found["heard"]]
        assert losses == sorted(losses, reverse=True) and found["note"]
        for run in found["runs"]:
            assert run["commit"] and run["machine"] and len(run["valid"]) > 1
            assert [p["step"] for p in run["train"]] == sorted({p["step"] for p in run["train"]})


def test_differences_are_named():
    one = {"flags": {"a": 1, "b": 2}, "data": {"codec": "x", "train_frames": 3}}
    assert differences(one, one) == ""
    other = {"flags": {"a": 2, "c": 3}, "data": {"codec": "y", "train_frames": 3}}
    words = differences(one, other)
    assert words == (
        "a 2 instead of 1, b the default instead of 2, c 3 instead of the default, "
        "codec y instead of x"
    )


def test_flags_that_change_no_loss_are_no_part_of_a_config(tmp_path):
    a = train(
        tmp_path / "a", [3.0], **{"save-every-minutes": 1.0, "num-threads": 2, "device": "cpu"}
    )
    b = train(tmp_path / "b", [3.0])
    assert identity(Training.read(a)) == identity(Training.read(b))
