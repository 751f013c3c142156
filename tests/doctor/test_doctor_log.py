"""Logs of trainings that went well, spiked, diverged: what is found, and where."""

import json
import math
import random
import re

import pytest

from rvqlm.doctor.checkpoint import CheckpointUnderTest
from rvqlm.doctor.examine import RULES
from rvqlm.doctor.log import Log
from rvqlm.doctor.series import judge

V, K = 1024, 9
LINES, EVERY = 8, 50
"""Train lines of an epoch, steps of a line."""


def run(epochs, change=None, seed=0, noise=0.05):
    """Log lines of a training of nine levels that goes down to 4.5 nats; `change` may change a
    line before it is written."""
    rng = random.Random(seed)
    lines = []
    for n in range(epochs * LINES):
        share = n / (epochs * LINES)
        loss = 4.5 + 2.4 * math.exp(-12 * share) + rng.gauss(0, noise)
        line = {"kind": "train", "step": (n + 1) * EVERY, "epoch": n // LINES, "loss": loss}
        line["nats"] = [loss - 0.8 + 0.2 * k for k in range(K)]
        line |= dict.fromkeys(("skipped_nonfinite", "skipped_outlier", "skipped_overflow"), 0)
        line["rollbacks"] = 0
        if change is not None:
            change(line, n)
        lines.append(line)
        if n % LINES == LINES - 1:
            valid = {k: line[k] for k in ("step", "epoch", "nats")}
            lines.append({"kind": "valid", **valid, "loss": line["loss"] + 0.02})
            lines.append({"kind": "epoch", **valid, "loss": line["loss"]})
    return lines


def check(folder, lines):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return examined(path)


def examined(path):
    """Summary and findings of a log."""
    state = {"step": 0, "codec": {"codebook_size": V}, "best": {"step": 40_000}}
    folder = path.parent
    checkpoint = CheckpointUnderTest(folder / "latest.pt", state, log=Log(path))
    rules = [rule for rule in RULES if rule.subject == "log"]
    return checkpoint.log.summary, [f for rule in rules for f in rule.findings(checkpoint)]


def found_by(findings, rule):
    return [f for f in findings if f.rule == rule]


def of_concern(findings) -> list[str]:
    return [f"{f.where} | {f.what}" for f in findings if f.severity != "note"]


@pytest.mark.parametrize("epochs", [1, 5, 400])
def test_a_training_that_goes_well(tmp_path, epochs):
    out, findings = check(tmp_path, run(epochs, noise=0.1))
    assert of_concern(findings) == []
    assert out["train"]["last_step"] == epochs * LINES * EVERY
    assert out["train_lines"] == epochs * LINES
    assert "diverged" not in out["train"] and "diverged" not in out["valid"]


def test_the_run_that_diverged_at_epoch_355(tmp_path):
    # sane for 354 epochs but for a spike, then the fine levels explode
    begin = 355 * LINES + 3

    def change(line, n):
        if n == 120 * LINES:
            line["loss"] += 3
        if n >= begin:
            rise = min(0.1 * math.exp(0.4 * (n - begin)), 1e5)
            rise = [rise * (k - 3) for k in range(4, K)]
            line["nats"][4:] = [a + b for a, b in zip(line["nats"][4:], rise)]
            line["loss"] = sum(line["nats"]) / K

    for step in (100_000, 140_000, 150_000):
        path = tmp_path / f"archive/step-{step:08d}-20261125-084500.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    out, findings = check(tmp_path, run(400, change))
    diverged = out["train"]["diverged"]
    assert diverged["epoch"] == 355
    assert abs(diverged["step"] - (begin + 1) * EVERY) <= 4 * EVERY
    assert diverged["last_good_step"] == diverged["step"] - EVERY
    assert set(diverged["levels"]) == set(range(4, K)) and diverged["levels"][0] == K - 1
    assert out["valid"]["diverged"]["epoch"] in (355, 356)
    found = of_concern(findings)
    where = f"step {diverged['step']:,}, epoch 355 | the training diverged: the training loss began"
    assert any(x.startswith(where) and "level 8, 7, 6" in x for x in found), found
    # the last archive before it, not one after
    remedy = found_by(findings, "diverged")[0].remedy
    assert "archive/step-00140000" in remedy and "--base-lr" in remedy
    spikes = [(s["step"], s["epoch"]) for s in out["train"]["spikes"]]
    assert spikes == [((120 * LINES + 1) * EVERY, 120)]


def test_a_spike_that_came_back_is_a_note_one_that_doubles_the_loss_is_not(tmp_path):
    def change(height):
        def at(line, n):
            line["loss"] += height if n == 200 else 0.0

        return at

    _, findings = check(tmp_path, run(60, change(2.0)))
    assert of_concern(findings) == []
    (note,) = found_by(findings, "loss_spikes")
    assert note.where == "step 10,050, epoch 25"
    assert note.what.startswith("spikes of the training loss: 6.")
    _, findings = check(tmp_path, run(60, change(8.0)))
    assert of_concern(findings)[0].startswith("step 10,050, epoch 25 | spikes")


def test_a_loss_that_is_not_finite(tmp_path):
    def change(line, n):
        if n >= 300:
            line["loss"] = float("nan")

    out, findings = check(tmp_path, run(40, change))
    assert abs(out["train"]["diverged"]["step"] - 301 * EVERY) <= 3 * EVERY
    assert re.search(r"began to rise here, from 4\.\d+ to nan", of_concern(findings)[0])


def test_a_slow_rise_is_found_at_its_beginning():
    rng = random.Random(3)
    values = [4.0 + rng.gauss(0, 0.02) for _ in range(300)]
    values += [4.0 + 0.01 * i + rng.gauss(0, 0.02) for i in range(200)]
    judged = judge(values, least=0.05)
    assert judged.creeping and not judged.spikes
    assert 280 <= judged.divergence.first <= 310


def test_a_new_level_is_no_divergence(tmp_path):
    rng = random.Random(3)
    values = [4.0 + rng.gauss(0, 0.01) for _ in range(200)]
    values += [4.4 + rng.gauss(0, 0.01) for _ in range(200)]
    judged = judge(values, least=0.05)
    assert judged.divergence is None and not judged.spikes

    def change(line, n):
        if n > 200:
            line["loss"] += 0.4

    _, findings = check(tmp_path, run(60, change, noise=0.01))
    assert of_concern(findings) == []


def test_a_slow_rise_whose_last_value_is_low():
    # the last value was taken for the end of the usual level: a beginning past the end
    values = [4.0 + 0.01 * (i % 5) for i in range(100)]
    values += [4.0 + 0.02 * i for i in range(100)] + [3.9]
    judged = judge(values, least=0.05)
    assert judged.creeping and judged.divergence.first == len(values) - 1


def test_heavy_tails_are_usual():
    # Student's t with 5 degrees of freedom: batches of unequal recordings
    rng = random.Random(0)
    for _ in range(5):
        values = [
            4 + 0.05 * rng.gauss(0, 1) / math.sqrt(sum(rng.gauss(0, 1) ** 2 for _ in range(5)) / 5)
            for _ in range(1000)
        ]
        judged = judge(values, least=0.05)
        assert judged.divergence is None and len(judged.spikes) <= 2


def test_overfitting_is_a_note(tmp_path):
    lines = run(100)
    for line in lines:
        if line["kind"] == "valid":
            line["loss"] += max(0, line["epoch"] - 60) * 0.04
    out, findings = check(tmp_path, lines)
    assert of_concern(findings) == [] and 55 <= out["valid"]["overfitted"]["epoch"] <= 66
    assert [f.severity for f in found_by(findings, "overfitted")] == ["note"]


def test_no_better_validation_since(tmp_path):
    lines = run(60)
    for line in lines:
        if line["kind"] == "valid":
            line["loss"] = 4.2 if line["epoch"] == 12 else 4.21 + 0.001 * (line["epoch"] % 3)
    _, findings = check(tmp_path, lines)
    (found,) = found_by(findings, "plateau")
    assert found.where == "step 5,200, epoch 12" and "in the 47 validations" in found.what


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("skipped_nonfinite", 1, "2 steps skipped as nonfinite (0.0% of all steps)"),
        ("skipped_outlier", 40, "80 steps skipped as outlier (1.2% of all steps)"),
        ("skipped_outlier", 5, None),
        ("skipped_overflow", 40, None),
        ("rollbacks", 1, "2 rollbacks (0.0% of all steps)"),
    ],
)
def test_skipped_steps(tmp_path, name, count, found):
    def change(line, n):
        if n in (56, 70):
            line[name] = count
            if name != "rollbacks" and count == 40:  # none was taken: a line without a loss
                line["loss"] = float("nan")

    out, findings = check(tmp_path, run(16, change))
    assert out["skipped"][name] == 2 * count and "diverged" not in out["train"]
    if found is None:
        assert of_concern(findings) == []
        assert any(f.where.startswith("from step 2,850, epoch 7") for f in findings)
    else:
        where = "from step 2,850, epoch 7 to step 3,550, epoch 8 | "
        assert [x[: len(where) + len(found)] for x in of_concern(findings)] == [where + found]
        assert {f.rule for f in findings if f.severity != "note"} == {"skipped_steps"}


def test_a_level_that_is_guessed(tmp_path):
    def change(line, n):
        line["nats"][6] = math.log(V) - 1e-3

    _, findings = check(tmp_path, run(20, change))
    assert [f.where for f in found_by(findings, "level_not_learned")] == ["level 6"]
    assert len(of_concern(findings)) == 1


def test_damaged_lines_and_an_empty_log(tmp_path):
    out, _ = check(tmp_path, run(5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 3\n[1]\n\x00\x00\n')
    again, _ = examined(tmp_path / "metrics.jsonl")
    assert again["train"] == out["train"] and again["damaged_lines"] == 3
    (tmp_path / "metrics.jsonl").write_text("")
    out, findings = examined(tmp_path / "metrics.jsonl")
    assert out["train_lines"] == 0 and findings == []


def test_jumps_of_the_gradient_norm(tmp_path):
    rng = random.Random(3)

    def norms(line, n):  # 0.3 as usual, once forty times that
        line["grad_norm"] = 0.3 * math.exp(rng.gauss(0, 0.3)) * (40 if n == 90 else 1)

    _, findings = check(tmp_path, run(30, norms))
    (jump,) = found_by(findings, "gradient_spikes")
    assert jump.severity == "note" and jump.where == f"step {91 * EVERY:,}, epoch {90 // LINES}"

    def growing(line, n):  # explodes and stays
        norms(line, n)
        line["grad_norm"] *= 100 if n > 200 else 1

    (_, findings) = check(tmp_path, run(30, growing))
    assert [f.severity for f in found_by(findings, "gradient_spikes")] == ["concern"]
