import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from token_fixtures import INFO, make_tokens

from rvqlm.bin import evaluate, trainer
from rvqlm.bin import main as rvqlm_main
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.loading import load_model
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.vectors import vectors_like
from rvqlm.data.index import build_index
from rvqlm.training.logger import TIMINGS

SMALL = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1"),
    *("--max-duration", "4", "--num-threads", "1"),
]
HARD = [  # everything random or stateful at once
    *("--max-steps", "40", "--crop-frames", "30", "--dropout", "0.2", "--accum", "2"),
    *("--optimizer", "muon", "--warmup-steps", "4", "--label-smoothing", "0.1"),
    *("--log-every-steps", "3", "--save-every-steps", "2", "--valid-every-steps", "7"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(0)
    make_tokens(folder, [rng.randint(10, 60) for _ in range(30)])
    with gzip.open(folder / "cuts_train.jsonl.gz") as file:
        lines = file.readlines()
    for split in ("valid", "test"):
        with gzip.open(folder / f"cuts_{split}.jsonl.gz", "wb") as file:
            file.writelines(lines[:5])
        build_index(folder, split)
    return folder


def command(exp_dir, tokens, *flags) -> list[str]:
    return ["--exp-dir", str(exp_dir), "--manifest-dir", str(tokens), *SMALL, *flags]


def cuts_of(tokens, split) -> list[str]:
    with gzip.open(tokens / f"cuts_{split}.jsonl.gz", "rt") as file:
        return file.readlines()


def same(a, b, path="") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a.keys() - {*TIMINGS, "config", "since"}:
            same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for n, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{n}]")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


def log_of(exp_dir) -> list[dict]:
    lines = map(json.loads, (Path(exp_dir) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in lines]


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    """An uninterrupted run."""
    exp_dir = tmp_path_factory.mktemp("whole")
    assert trainer.main(command(exp_dir, tokens, *HARD)) == 0
    return exp_dir


def test_kill_9_and_resume_equals_the_uninterrupted_run(tokens, whole, tmp_path):
    exp_dir = tmp_path / "killed"
    step, delay = random.randrange(3, 30, 3), random.random() * 0.05
    print(f"killing {delay:.3f} s after step {step}")
    process = subprocess.Popen(
        [sys.executable, trainer.__file__, *command(exp_dir, tokens, *HARD)],
        stderr=subprocess.DEVNULL,
    )
    log, deadline = exp_dir / "metrics.jsonl", time.monotonic() + 100
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert trainer.main(command(exp_dir, tokens, *HARD)) == 0
    for name in ("latest.pt", "best.pt"):
        same(load_checkpoint(exp_dir / name), load_checkpoint(whole / name))
    assert log_of(exp_dir) == log_of(whole)
    assert len(json.loads((exp_dir / "run.json").read_text())["commands"]) == 2


def test_sigterm_saves_and_a_second_start_continues(tokens, tmp_path, capfd):
    flags = command(tmp_path, tokens, "--max-steps", "100000", "--log-every-steps", "1")
    process = subprocess.Popen(
        [sys.executable, trainer.__file__, *flags], stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 100
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "saved" in err and "Traceback" not in err
    step = load_checkpoint(tmp_path / "latest.pt")["step"]
    torn = tmp_path / f".latest.pt.{2**22 + 1}.tmp"
    torn.write_text("half a checkpoint of a killed process")
    assert trainer.main([*flags, "--max-steps", str(step + 2)]) == 0
    assert not torn.exists()
    assert f"resumed {tmp_path}/latest.pt: step {step}" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == step + 2


def test_experiment_directory(whole, tokens):
    assert {p.name for p in whole.iterdir()} == {
        *("config.yaml", "run.json", "metrics.jsonl", "tensorboard", "latest.pt", "best.pt")
    }
    flags = yaml.safe_load((whole / "config.yaml").read_text())
    assert flags["accum"] == 2 and flags["decoder-dim"] == 16 and flags["crop-frames"] == 30
    assert "resume" not in flags
    run = json.loads((whole / "run.json").read_text())
    assert run["commands"][0].startswith("rvqlm trainer --exp-dir") and run["parameters"] > 1000
    assert run["data"]["train"]["cuts"] == 30 and run["machine"]["torch"]
    lines = log_of(whole)
    assert {x["kind"] for x in lines} == {"train", "valid", "epoch"}
    train = [x for x in lines if x["kind"] == "train"]
    assert all(len(x["nats"]) == len(x["accuracy"]) == 3 for x in train)
    assert {"loss", "bits_per_second", "lr", "grad_norm", "frames", "padding"} <= train[0].keys()
    assert train[-1]["total_frames"] == sum(x["frames"] for x in train)


def test_a_finished_run_says_so(whole, tokens, capfd):
    before = (whole / "latest.pt").stat().st_mtime_ns
    assert trainer.main(command(whole, tokens, *HARD)) == 0
    assert "training is finished (step 40" in capfd.readouterr().err
    assert (whole / "latest.pt").stat().st_mtime_ns == before


def test_the_saved_flags_are_a_config_file(whole, tokens, tmp_path):
    # the same run elsewhere, from its config.yaml alone
    saved = str(whole / "config.yaml")
    assert trainer.main(["--config", saved, "--exp-dir", str(tmp_path)]) == 0
    same(load_checkpoint(tmp_path / "latest.pt"), load_checkpoint(whole / "latest.pt"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoder-dim", "32"], "--decoder-dim was 16, is 32"),
        (["--pattern", "parallel"], "--pattern was delay, is parallel"),
        (["--max-duration", "5"], "--max-duration was 4.0, is 5.0"),
        (["--seed", "1"], "--seed was 0, is 1"),
    ],
)
def test_resume_refuses_another_run(whole, tokens, capfd, flags, message):
    assert trainer.main(command(whole, tokens, *HARD, *flags)) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1


def test_resume_refuses_other_data(whole, tmp_path, capfd):
    make_tokens(tmp_path, [20] * 10)
    (tmp_path / "cuts_valid.jsonl.gz").write_bytes((tmp_path / "cuts_train.jsonl.gz").read_bytes())
    build_index(tmp_path, "valid")
    assert trainer.main(command(whole, tmp_path, *HARD)) == 2
    assert "fingerprint" in capfd.readouterr().err


def test_resume_no_moves_the_earlier_run_aside(tokens, tmp_path, capfd):
    flags = command(tmp_path, tokens, "--max-steps", "2")
    assert trainer.main(flags) == 0
    assert trainer.main([*flags, "--resume", "no"]) == 0
    assert "moved the earlier run" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "previous-1/latest.pt")["step"] == 2
    # from the path of a checkpoint
    assert trainer.main([*flags, "--resume", str(tmp_path / "previous-1"), "--max-steps", "3"]) == 0
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 3


def test_bad_flags_are_reported_together_before_anything_is_written(tokens, tmp_path, capfd):
    exp_dir = tmp_path / "exp"
    assert trainer.main(command(exp_dir, tokens, "--accum", "0", "--ema-decay", "2")) == 2
    err = capfd.readouterr().err
    assert all(x in err for x in ("no budget", "--accum 0", "--ema-decay 2")), err
    assert trainer.main(command(exp_dir, tokens, "--model-name", "what")) == 2
    assert "unknown model 'what' (--model-name): choose one of codec-lm" in capfd.readouterr().err
    assert trainer.main(command(exp_dir, tmp_path, "--max-steps", "1")) == 2
    assert trainer.main(command(exp_dir, tokens, "--max-steps", "1", "--nhead", "3")) == 2
    assert not exp_dir.exists()


def test_unknown_yaml_key(tokens, tmp_path, capfd):
    (tmp_path / "c.yaml").write_text("decoder_dimm: 8\n")
    flags = command(tmp_path, tokens, "--max-steps", "1", "--config", str(tmp_path / "c.yaml"))
    assert trainer.main(flags) == 2
    assert "'decoder_dimm'; did you mean 'decoder-dim'" in capfd.readouterr().err


def test_what_a_training_begins_with_and_quiet(tokens, tmp_path, capfd):
    loud, quiet = (tmp_path / name for name in ("loud", "quiet"))
    assert trainer.main(command(loud, tokens, "--max-steps", "2")) == 0
    said = capfd.readouterr().err
    for words in ("parameters on cpu", "optimizer steps an epoch", "learning rate", "valid: "):
        assert words in said
    assert trainer.main(command(quiet, tokens, "--max-steps", "2", "--quiet")) == 0
    assert "".join(capfd.readouterr()) == ""
    assert "quiet:" not in (quiet / "config.yaml").read_text()
    assert trainer.main(command(quiet, tokens, "--max-steps", "3")) == 0
    assert "resumed" in capfd.readouterr().err  # said again where that is not asked for


def test_lines_say_rate_and_steps(tokens, tmp_path, capfd):
    flags = ["--num-epochs", "2", "--window-frames", "20", "--hop-frames", "10"]
    assert trainer.main(command(tmp_path / "x", tokens, *flags)) == 0
    err = capfd.readouterr().err
    windows = re.search(
        r"train: 30 cuts, .*; (\d+) windows of 20 frames \(0.4 s\), one every 10 ", err
    )
    lengths = [json.loads(line)["duration"] for line in cuts_of(tokens, "train")]
    frames = [round(50 * seconds) for seconds in lengths]
    naive = sum(1 + max(0, -(-(n - 20) // 10)) for n in frames)
    assert int(windows[1]) == naive
    steps = int(re.search(r"(\d+) optimizer steps an epoch", err)[1])
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all(f"{steps} steps | " in line for line in lines)
    rates = [float(re.search(r"\| lr (\S+), ", line)[1]) for line in lines]
    assert rates[0] > rates[1] > 0


def test_tags_and_start_epoch(tokens, tmp_path, capfd):
    exp = tmp_path / "exp"
    flags = ["--num-epochs", "1", "--max-duration", "20", "--valid-max-batches", "1", "--no-mfu"]
    for tag in ("one", "two"):  # the second does not resume the first
        assert trainer.main(command(exp, tokens, *flags, "--tag", tag, "--start-epoch", "1")) == 0
        assert load_checkpoint(exp / tag / "latest.pt")["epoch"] == 0
    assert {p.name for p in exp.iterdir()} == {"one", "two"}
    saved = yaml.safe_load((exp / "one" / "config.yaml").read_text())
    assert saved["exp-dir"] == str(exp / "one") and not {"tag", "start-epoch"} & saved.keys()
    capfd.readouterr()
    on = ["--exp-dir", str(exp), "--tag", "one", "--num-epochs", "2", "--start-epoch"]
    assert trainer.main([*on, "3"]) == 2
    assert f"--start-epoch 3: {exp}/one/latest.pt goes on with epoch 2;" in capfd.readouterr().err
    assert trainer.main([*on, "2"]) == 0
    assert load_checkpoint(exp / "one" / "latest.pt")["epoch"] == 1
    for wrong in ("a/b", "stage1", "samples", ".."):
        assert trainer.main(command(exp, tokens, *flags, "--tag", wrong)) == 2
    assert trainer.main(command(exp / "new", tokens, *flags, "--start-epoch", "2")) == 2
    assert f"{exp}/new begins with epoch 1" in capfd.readouterr().err


def test_phases_may_change_on_resume(tokens, tmp_path, capfd):
    flags = ["--model-name", "masked", "--num-epochs", "1", "--max-duration", "20", "--no-mfu"]
    schedule = ["--level-training-schedule", "0:random", "1:parallel"]
    assert trainer.main(command(tmp_path, tokens, *flags, *schedule[:2])) == 0
    on = ["--exp-dir", str(tmp_path), "--num-epochs", "2"]
    assert trainer.main([*on, "--level-training-schedule", "0:random", "1:all"]) == 2
    assert "--level-training-schedule 1:all: expected EPOCH:VALUE" in capfd.readouterr().err
    assert trainer.main([*on, "--masking", "frame"]) == 2
    assert "is of another run: --masking was level, is frame;" in capfd.readouterr().err
    assert trainer.main([*on, *schedule]) == 0
    saved = load_checkpoint(tmp_path / "latest.pt")
    assert saved["model_config"]["level_training_schedule"] == ("0:random", "1:parallel")
    assert saved["epoch"] == 1


def test_start_epoch_of_a_second_stage(tokens, tmp_path):
    flags = ["--model-name", "valle", "--num-epochs", "2", "--max-duration", "20", "--no-mfu"]
    flags += ["--train-stage"]
    assert trainer.main(command(tmp_path, tokens, *flags, "1")) == 0
    assert trainer.main(command(tmp_path, tokens, *flags, "2", "--start-epoch", "9")) == 2
    assert trainer.main(command(tmp_path, tokens, *flags, "2", "--start-epoch", "3")) == 0


def test_embeddings_begin_as_the_vectors_of_the_codec(tokens, tmp_path, capfd):
    """Where there is a codec; otherwise that is said, and they begin at random."""
    codec = load_codec("spectral", num_codebooks=2)
    place = tmp_path / "tokens"
    make_tokens(place, [20, 30], codec.info)
    flags = ("--max-steps", "1", "--embedding-lr", "1e-9", "--ema-decay", "0", "--quiet")
    flags = (*flags, "--valid-split", "train")
    assert trainer.main(command(tmp_path / "with", place, *flags, "--code-vectors")) == 0
    assert trainer.main(command(tmp_path / "without", place, *flags)) == 0
    vectors = vectors_like(codec.info)[:, :50].flatten(0, 1)
    alike = {}
    for name in ("with", "without"):
        weight = load_checkpoint(tmp_path / name / "latest.pt")["model"]["embedding.weight"]
        rows = weight.view(2, 1025, 16)[:, :50].flatten(0, 1)
        pairs = torch.stack([torch.pdist(rows), torch.pdist(vectors)])
        alike[name] = float(torch.corrcoef(pairs)[0, 1])
    assert alike["with"] > 0.8 and abs(alike["without"]) < 0.2
    assert "--code-vectors" not in capfd.readouterr().err
    argv = command(tmp_path / "unknown", tokens, "--max-steps", "1", "--quiet", "--code-vectors")
    assert trainer.main(argv) == 0
    said = capfd.readouterr().err
    assert f"--code-vectors: codec {INFO.name}" in said and "begin at random" in said


def test_dry_run_writes_nothing(tokens, tmp_path, capfd):
    exp_dir = tmp_path / "exp"
    assert trainer.main(command(exp_dir, tokens, "--num-epochs", "3", "--dry-run")) == 0
    out = capfd.readouterr().out
    for word in (
        "parameters",
        "7 batches, 7 optimizer steps an epoch",
        "3 epochs",
        "memory",
        "activations",
    ):
        assert word in out
    assert not exp_dir.exists()


def test_train_and_trainer_are_one_command(tokens, tmp_path, capfd):
    said = []
    for name in ("train", "trainer"):
        argv = command(tmp_path / "exp", tokens, "--max-steps", "2", "--dry-run")
        assert rvqlm_main.main([name, *argv]) == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1] and "budget      2 steps" in said[0]
    assert rvqlm_main.main(["--help"]) == 0
    assert "\n  train " in capfd.readouterr().out


def test_what_a_run_began_with_is_said(whole, tokens, tmp_path, capfd):
    argv = command(tmp_path, tokens, "--max-steps", "1", "--init-from", str(whole))
    assert trainer.main(argv) == 0
    assert f"began with the weights of {whole}/best.pt" in capfd.readouterr().err


def test_read_only_place(tokens, tmp_path, capfd):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert trainer.main(command(blocked / "exp", tokens, "--max-steps", "1")) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_evaluate(whole, tokens, capfd):
    argv = ["--exp-dir", str(whole), "--manifest-dir", str(tokens), "--split", "test"]
    assert evaluate.main(argv) == 0
    result = json.loads((whole / "eval_test.json").read_text())
    assert {
        *("split", "checkpoint", "step", "cuts", "frames", "loss", "nats", "accuracy", "command"),
        *("bits_per_second", "bound", "unigram_nats", "unigram_bits_per_second"),
    } <= result.keys()
    assert result["cuts"] == 5 and result["bound"] is True and len(result["nats"]) == 3
    # the test split has the cuts of the validation split, so it scores as the trainer did
    best = load_checkpoint(whole / "best.pt")["best"]
    assert result["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert abs(result["unigram_nats"][0] - 4.16) < 0.2  # uniform codes: ln 64
    assert "unigram" in capfd.readouterr().out


def test_evaluate_refuses_another_codec(whole, tmp_path, capfd):
    other = type(INFO)(**{**INFO.to_dict(), "fingerprint": "f" * 16})
    make_tokens(tmp_path, [20] * 4, info=other)
    argv = ["--exp-dir", str(whole), "--manifest-dir", str(tmp_path), "--split", "train"]
    assert evaluate.main(argv) == 2
    assert "codec mismatch" in capfd.readouterr().err
    assert evaluate.main(["--exp-dir", str(tmp_path / "x"), "--manifest-dir", "y"]) == 2


def test_load_model(whole):
    model, info, state = load_model(whole)
    assert info == INFO and not model.training
    assert torch.equal(
        model.state_dict()["end_head.linear.bias"], state["ema"]["end_head.linear.bias"]
    )
    raw, _, state = load_model(whole, "latest", use_ema=False)
    assert torch.equal(
        raw.state_dict()["end_head.linear.bias"], state["model"]["end_head.linear.bias"]
    )


def test_runs_as_a_script():
    env = os.environ | {"COLUMNS": "100"}
    for module in (trainer, evaluate):
        out = subprocess.run(
            [sys.executable, module.__file__, "--help"],
            capture_output=True, text=True, timeout=100, env=env,
        )  # fmt: skip
        assert out.returncode == 0 and "--exp-dir" in out.stdout, out.stderr
        assert os.access(module.__file__, os.X_OK)  # bin/trainer.py --max-duration 150
