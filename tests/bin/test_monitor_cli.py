import json
import os
import time

import pytest

from rvqlm.bin import monitor
from rvqlm.reports.monitor import Watched, sparkline


def write_experiment(exp_dir, lines, ended=(), age=0.0, flags=None):
    exp_dir.mkdir(parents=True, exist_ok=True)
    log = exp_dir / "metrics.jsonl"
    log.write_text("".join(json.dumps(x) + "\n" for x in lines))
    run = {
        "commands": ["a"], "started": ["2026-01-01"], "ended": list(ended), "ranks": 2,
        "model": "codec-lm", "parameters": 1234567, "commit": "abc",
        "data": {"batches_per_epoch": 100},
    }  # fmt: skip
    (exp_dir / "run.json").write_text(json.dumps(run))
    when = time.time() - age
    for path in (log, exp_dir / "run.json"):
        os.utime(path, (when, when))
    flags = flags or {"max-steps": 100, "num-epochs": 0, "max-minutes": 0.0, "accum": 1}
    (exp_dir / "config.yaml").write_text(json.dumps({"model-name": "codec-lm", **flags}))
    return exp_dir


def train(step, loss, **values):
    return {
        "kind": "train", "step": step, "epoch": 0, "loss": loss,
        "nats": [loss or 0.0, 1 + (loss or 0.0)],
        "lr": 1e-3, "grad_norm": 0.5, "frames_per_second": 1000.0, "mfu": 0.4, "padding": 0.02,
        "memory_mb": 900.0, "elapsed": float(step), "skipped_nonfinite": 0, "skipped_outlier": 0,
        "skipped_overflow": 0, "rollbacks": 0, "time_forward": 0.3, "time_backward": 0.6, **values,
    }  # fmt: skip


LINES = [train(s, 5 - s / 20) for s in range(10, 51, 10)]
LINES[2]["skipped_outlier"] = 2
LINES.append(
    {"kind": "valid", "step": 50, "epoch": 0, "loss": 2.25, "nats": [2.0, 2.5], "elapsed": 50.0,
     "perplexity": 9.5, "bits_per_second": 800.0}
)  # fmt: skip


def test_a_running_training(tmp_path, capfd):
    assert monitor.main([str(write_experiment(tmp_path / "x", LINES))]) == 0
    out = capfd.readouterr().out
    for part in (
        *("running", "step 50", "50 % of the budget", "0:50 left", "1,234,567 parameters"),
        *("train 2.5000, valid 2.2500 (best 2.2500 at step 50)", "800 bits/s", "2.00 2.50 nats"),
        *("2 outlier", "1,000 frames/s, MFU 40 %", "forward 30 %, backward 60 %, rest 10 %"),
    ):
        assert part in out, part
    assert "█" in out and "▁" in out


def test_all_frames_over_all_time_and_a_machine_that_was_shared(tmp_path, capfd):
    lines = [train(s, 4.0, total_frames=100 * s, other_cores=0.1) for s in (10, 20, 30)]
    exp = write_experiment(tmp_path / "x", lines)
    assert monitor.main([str(exp)]) == 0
    out = capfd.readouterr().out
    assert "100 frames/s, pauses included; median of the lines 1,000" in out
    assert "shared" not in out
    lines[1]["other_cores"], lines[2]["other_cores"] = 1.5, 0.5
    write_experiment(exp, lines)
    about = json.loads((exp / "run.json").read_text())
    (exp / "run.json").write_text(json.dumps(about | {"machine": {"cores": 2}}))
    assert monitor.main([str(exp)]) == 0
    out = capfd.readouterr().out
    assert "shared in 2 of 3 lines of the log (steps 20 to 30): others used 1.0 of 2 cores" in out


@pytest.mark.parametrize(
    ("ended", "age", "state"),
    [
        ([{"outcome": "finished"}], 1e6, "finished"),
        ([{"outcome": "SIGTERM"}], 1e6, "stopped (SIGTERM)"),
        ([], 500.0, "no line for 8.3 min: stalled or killed"),
        ([], 50.0, "running"),
    ],
)
def test_states(tmp_path, ended, age, state):
    assert Watched(write_experiment(tmp_path, LINES, ended, age)).state() == state


def test_long_validations_are_no_stall(tmp_path):
    lines = [*LINES[:-1], {**LINES[-1], "seconds": 300.0}]
    assert Watched(write_experiment(tmp_path, lines, age=850.0)).state() == "running"
    assert "stalled" in Watched(write_experiment(tmp_path, lines, age=950.0)).state()
    os.utime(tmp_path / "run.json")  # started again, no line yet
    assert Watched(tmp_path).state() == "running"


def test_where_the_ranks_hang(tmp_path):
    exp_dir = write_experiment(tmp_path, LINES, age=7200.0)
    (exp_dir / "ranks").mkdir()
    (exp_dir / "ranks/rank-1.json").write_text(json.dumps({"rank": 1, "where": "data"}))
    assert Watched(exp_dir).state().endswith("stalled or killed (rank 1 in data)")


def test_reads_on_and_starts_anew_after_a_resume(tmp_path):
    exp_dir = write_experiment(tmp_path, LINES)
    watched = Watched(exp_dir)
    with open(exp_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(train(60, 2.0))[:30])  # a line that is being written
        file.flush()
        watched.read()
        assert watched.newest["step"] == 50
        file.write(json.dumps(train(60, 2.0))[30:] + "\n")
    watched.read()
    assert watched.newest["step"] == 60 and watched.curve("train", "loss")[0][-1] == 60
    write_experiment(tmp_path, LINES[:2])
    watched.read()
    assert watched.newest["step"] == 20 and len(watched.curve("train", "loss")[0]) == 2


def test_before_the_first_line(tmp_path, capfd):
    exp_dir = write_experiment(tmp_path / "x", LINES)
    watched = Watched(exp_dir)
    (exp_dir / "metrics.jsonl").unlink()
    assert monitor.main([str(exp_dir)]) == 0
    assert capfd.readouterr().out == f"{exp_dir}: running, nothing logged yet\n"
    watched.read()
    assert watched.newest == {} and watched.curve("train", "loss") == ([], [])


def test_watching_continues_while_a_run_is_moved_aside(tmp_path, capfd, monkeypatch):
    exp_dir = write_experiment(tmp_path / "x", LINES[:2])
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            exp_dir.rename(tmp_path / "old")
        elif len(looks) == 2:
            write_experiment(exp_dir, LINES[:1])
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", sleep)
    assert monitor.main([str(exp_dir), "--watch", "--every", "7"]) == 130
    assert looks == [7.0] * 3
    looks = capfd.readouterr().out.split(f"{exp_dir}: ")[1:]
    shown = [("step 20," in x, "step 10," in x, "no log there" in x) for x in looks]
    assert shown == [(True, False, False), (True, False, True), (False, True, False)]


def test_stages_and_comparison_and_picture(tmp_path, capfd):
    write_experiment(tmp_path / "a" / "stage1", LINES[:2])
    write_experiment(tmp_path / "a" / "stage2", LINES)
    write_experiment(tmp_path / "b", LINES[:3])
    picture = tmp_path / "curves.png"
    argv = [str(tmp_path / "a"), "--compare", str(tmp_path / "b"), "--plot", str(picture)]
    assert monitor.main(argv) == 0
    out = capfd.readouterr().out
    row = next(x for x in out.splitlines() if x.startswith("step"))
    assert row.split() == ["step", "50", "30"]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_time_left_where_samples_are_the_newest_line(tmp_path, capfd):
    sample = {"kind": "sample", "step": 55, "epoch": 0, "frames": 9, "seconds": 2.0}
    flags = {"max-steps": 0, "num-epochs": 0, "max-minutes": 2.0, "accum": 1}
    assert monitor.main([str(write_experiment(tmp_path, [*LINES, sample], flags=flags))]) == 0
    out = capfd.readouterr().out
    assert "step 55, epoch 1, 0:50 of training, 42 % of the budget, 1:10 left" in out
    assert "samples/step-00000055" in out


def test_losses_that_are_no_numbers(tmp_path, capfd):
    lines = [train(10, 3.0), train(20, float("nan")), train(30, float("inf")), train(40, 1.0)]
    assert monitor.main([str(write_experiment(tmp_path, lines))]) == 0
    assert "█▁" in capfd.readouterr().out


def test_interval_without_a_loss(tmp_path, capfd):
    lines = [train(10, None, nats=[None, None], grad_norm=None)]
    assert monitor.main([str(write_experiment(tmp_path, lines))]) == 0
    assert "train -" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere/metrics.jsonl: no log there"),
        (["x", "--plot", "a.txt"], "--plot a.txt"),
        (["x", "--every", "3"], "--every has no effect without --watch"),
        (["x", "--live", "--watch"], "--live is a window"),
    ],
)
def test_mistakes(flags, message, capfd):
    assert monitor.main(flags) == 2
    assert message in capfd.readouterr().err


@pytest.fixture
def pyplot():
    """Figures without windows."""
    import matplotlib.pyplot as plt

    before = plt.get_backend()
    plt.switch_backend("agg")
    yield plt
    plt.close("all")
    plt.switch_backend(before)


def test_a_window_follows_the_training(tmp_path, pyplot, monkeypatch):
    """Agg in the place of a toolkit: the curves are drawn again with what was logged meanwhile."""
    exp_dir = write_experiment(tmp_path / "x", LINES[:2])
    seen = []

    def pause(seconds):
        figure = pyplot.gcf()
        figure.canvas.draw()
        loss, *others = figure.axes
        shown = [line.get_xdata()[-1] for line in loss.lines if len(line.get_xdata())]
        seen.append((seconds, len(others), shown, figure.get_suptitle().split(":")[-1]))
        write_experiment(exp_dir, LINES)
        if len(seen) == 2:
            pyplot.close(figure)  # by hand

    monkeypatch.setattr(pyplot, "pause", pause)
    canvas = pyplot.figure().canvas.__class__
    monkeypatch.setattr(canvas, "required_interactive_framework", "tk")
    assert monitor.main([str(exp_dir), "--live", "--every", "2"]) == 0
    assert seen == [(2.0, 5, [20], " running"), (2.0, 5, [50, 50], " running")]


def test_without_a_display_a_window_is_refused(tmp_path, pyplot, capfd):
    exp_dir = write_experiment(tmp_path / "x", LINES)
    assert monitor.main([str(exp_dir), "--live"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "no window can be opened" in err and "--plot FILE" in err


def test_sparkline():
    assert sparkline([]) == "" and sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1000)), 60)) == 60
