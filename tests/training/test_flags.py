"""Every flag of the trainer, those of models apart, does something: other weights, another log,
other files, other words on the terminal, or it is refused with a reason."""

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from condition_fixtures import make_steps, make_times
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.cli import class_flags
from rvqlm.data.index import build_index
from rvqlm.models.factory import model_entry
from rvqlm.training.config import flags_class
from rvqlm.training.logger import TIMINGS

BASE = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--num-threads", "1"),
    *("--max-duration", "3", "--max-steps", "4", "--log-every-steps", "2", "--precision", "fp32"),
    *("--no-mfu",),
]
WILD = "--base-lr 1.0 --warmup-steps 0 --max-steps 12 --ema-decay 0"
STRICT = "--outlier-deviations 2 --outlier-warmup-steps 2 --save-every-steps 1"
# flag: (what else is given in both runs, what is given in one of them)
TRAINER = {
    "exp-dir": None,  # tests/bin/test_trainer_cli.py: all files are there
    "resume": None,  # the same: auto, no, a path
    "tag": ("", "--tag other"),
    "start-epoch": ("", "--start-epoch 2"),
    "manifest-dir": ("", "--manifest-dir {other}"),
    "mix-dirs": ("", "--mix-dirs {other}"),
    "model-name": ("", "--model-name masked"),
    "size": ("", "--size tiny"),
    "num-quantizers": ("", "--num-quantizers 2"),
    "condition-prompt-seconds": (
        "--conditions prompt --condition-dropout 0",
        "--condition-prompt-seconds 0.2",
    ),
    "text-times": ("--conditions text --condition-dropout 0", "--text-times no"),
    "train-split": ("", "--train-split valid"),
    "valid-split": ("", "--valid-split train"),
    "num-epochs": ("--max-steps 0 --num-epochs 2", "--num-epochs 1"),
    "max-steps": ("", "--max-steps 3"),
    "max-minutes": ("", "--max-minutes 0.00001"),
    "init-from": ("", "--init-from {exp}"),
    "code-vectors": None,  # tests/bin/test_trainer_cli.py: needs a codec
    "seed": ("", "--seed 1"),
    "device": ("", "--device cuda:99"),
    "precision": ("", "--precision fp16"),
    "kernels": ("", "--kernels native"),
    "tf32": ("", "--no-tf32"),
    "compile": None,  # tests/training/test_compiling.py
    "cuda-graphs": ("", "--cuda-graphs"),
    "parallel": ("", "--parallel fsdp"),
    "num-threads": ("", "--num-threads -1"),
    "quiet": ("", "--quiet"),
    "dry-run": ("", "--dry-run"),
    # data
    "max-duration": ("", "--max-duration 2"),
    "max-cuts": ("", "--max-cuts 1"),
    "filter-min-duration": ("", "--filter-min-duration 0.5"),
    "filter-max-duration": ("", "--filter-max-duration 0.9"),
    "window-frames": ("", "--window-frames 10"),
    "hop-frames": ("--window-frames 10", "--hop-frames 5"),
    "crop-frames": ("", "--crop-frames 10"),
    "shuffle-window": ("", "--shuffle-window 3"),
    "quadratic-frames": ("", "--quadratic-frames 70"),
    "packing": ("", "--packing 70"),
    "length-multiple": ("", "--length-multiple 16"),
    "window-schedule": ("", "--window-schedule 0:10 1:20"),
    "crop-schedule": ("", "--crop-schedule 0:10 1:20"),
    "max-seconds-schedule": ("", "--max-seconds-schedule 0:0.9"),
    "epoch-hours": ("", "--epoch-hours 0.002"),
    "mix-weights": ("--mix-dirs {other}", "--mix-weights 0:1,3"),
    # optim
    "optimizer": ("", "--optimizer muon"),
    "base-lr": ("", "--base-lr 0.02"),
    "embedding-lr": ("", "--embedding-lr 0.02"),
    "schedule": ("", "--schedule constant"),
    "warmup-steps": ("", "--warmup-steps 3"),
    "warmup-ratio": ("", "--warmup-ratio 0.7"),
    "eta-min-ratio": ("", "--eta-min-ratio 0.5"),
    "lr-gamma": ("--schedule step --lr-step-epochs 0.1", "--lr-gamma 0.3"),
    "lr-step-epochs": ("--schedule step", "--lr-step-epochs 0.1"),
    "plateau-patience": (
        "--schedule plateau --valid-every-steps 1 --base-lr 1.0 --warmup-steps 0 --max-steps 6",
        "--plateau-patience 0",
    ),
    "lr-batches": ("--schedule eden", "--lr-batches 2"),
    "lr-epochs": ("--schedule eden", "--lr-epochs 0.2"),
    "betas": ("", "--betas 0.5 0.6"),
    "eps": ("", "--eps 0.01"),
    "momentum": ("--optimizer muon", "--momentum 0.2"),
    "weight-decay": ("", "--weight-decay 0.9"),
    "clip-grad-norm": ("", "--clip-grad-norm 0.01"),
    "accum": ("", "--accum 2"),
    "ema-decay": ("--max-steps 12", "--ema-decay 0.1"),
    "ema-warmup": ("", "--no-ema-warmup"),
    # loss
    "label-smoothing": ("", "--label-smoothing 0.3"),
    "level-weights": ("", "--level-weights 1 2 3"),
    "level-weights-alpha": ("--level-weights auto --max-steps 6", "--level-weights-alpha 3"),
    "level-weights-schedule": ("", "--level-weights-schedule 0:1,2,3"),
    "levels-per-batch": ("", "--levels-per-batch 1"),
    "levels-per-batch-schedule": ("", "--levels-per-batch-schedule 0:1"),
    # guard; a rate that is far too high makes outliers
    "outlier-deviations": (f"{WILD} --outlier-warmup-steps 2", "--outlier-deviations 2"),
    "outlier-warmup-steps": (f"{WILD} --outlier-deviations 2", "--outlier-warmup-steps 2"),
    "max-skips": (f"{WILD} {STRICT}", "--max-skips 1"),
    "rollback-lr": (f"{WILD} {STRICT} --max-skips 1", "--rollback-lr 0.3"),
    "max-rollbacks": (f"{WILD} {STRICT} --max-skips 1", "--max-rollbacks 0"),
    "keep-bad-batches": (f"{WILD} {STRICT}", "--keep-bad-batches 0"),
    "hang-minutes": None,  # tests/training/test_watchdog.py
    "memory-check": ("", "--no-memory-check"),
    # save
    "lock-minutes": None,  # tests/bin/test_locked_cli.py
    "save-every-steps": None,  # tests/training/test_trainer.py: when each is done
    "save-every-minutes": None,
    "archive-every": ("", "--archive-every 1 --num-epochs 2 --max-steps 0"),
    "archive-every-steps": ("", "--archive-every-steps 2"),
    "keep-archived": ("--archive-every-steps 1 --no-archive-best", "--keep-archived 2"),
    "archive-best": ("", "--archive-best"),
    # log
    "log-every-steps": ("", "--log-every-steps 1"),
    "valid-every-steps": ("", "--valid-every-steps 2"),
    "valid-every-minutes": ("", "--valid-every-minutes 0.000001"),
    "valid-max-batches": ("", "--valid-max-batches 1"),
    "mfu": ("", "--mfu"),
    "sample-every-epochs": None,  # tests/inference/test_training_samples.py
    "sample-every-steps": None,
    "sample-every-minutes": None,
    "sample-count": None,
    "sample-seconds": None,
    "sample-prompt-seconds": None,
    "sample-temperature": None,
    "sample-top-k": None,
    "sample-device": None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("flags")
    for name, seed in (("tokens", 0), ("other", 1)):
        rng = random.Random(seed)
        frames = [rng.randint(10, 60) for _ in range(16)]
        make_tokens(root / name, frames, seed=seed, speakers=3)
        with gzip.open(root / name / "cuts_train.jsonl.gz") as file:
            lines = file.readlines()
        with gzip.open(root / name / "cuts_valid.jsonl.gz", "wb") as file:
            file.writelines(lines[:6])
        build_index(root / name, "valid")
        for split in ("train", "valid"):
            make_steps(root / name, "text", split)
            make_times(root / name, split)
    return root


class Runs:
    """What a run leaves behind, by its flags; each is made once."""

    made: dict[tuple[Path, str], tuple] = {}

    def __init__(self, root: Path, capfd):
        self.root, self.capfd = root, capfd

    def __call__(self, flags: str) -> tuple:
        if (self.root, flags) not in self.made:
            self.made[self.root, flags] = self.make(flags)
        return self.made[self.root, flags]

    def make(self, flags: str) -> tuple:
        name = hashlib.sha1(flags.encode()).hexdigest()[:12]
        exp_dir = self.root / "exp" / name
        words = flags.format(other=self.root / "other", exp=self.root / "exp" / "begin").split()
        argv = ["--exp-dir", str(exp_dir), "--manifest-dir", str(self.root / "tokens"), *BASE]
        status = trainer.main([*argv, *words])
        out = "".join(self.capfd.readouterr())
        if status:
            assert "error" in out and "Traceback" not in out
            return ("refused", out)
        if not (exp_dir / "latest.pt").exists():
            return ("dry", out)
        state, seen = load_checkpoint(exp_dir / "latest.pt"), hashlib.sha1()
        for part in (state["model"], state["ema"] or {}):
            for key, tensor in part.items():
                seen.update(key.encode() + tensor.to(torch.float32).numpy().tobytes())
        lines = map(json.loads, (exp_dir / "metrics.jsonl").read_text().splitlines())
        lines = list(lines)
        marks = ("learning rate" in out, "largest batch" in out, any(x.get("mfu") for x in lines))
        log = [{k: v for k, v in x.items() if k not in TIMINGS} for x in lines]
        files = {p.relative_to(exp_dir).as_posix().split("-2026")[0] for p in exp_dir.rglob("*.pt")}
        files = sorted(files)
        number = len(list(exp_dir.rglob("archive/*.pt")))
        return (seen.hexdigest(), json.dumps(log), files, number, marks)


@pytest.fixture
def runs(place, capfd):
    run = Runs(place, capfd)
    if not (place / "exp" / "begin").exists():
        run("--seed 9")
        name = hashlib.sha1(b"--seed 9").hexdigest()[:12]
        (place / "exp" / name).rename(place / "exp" / "begin")
    return run


def flags_of(model: str) -> set[str]:
    return set(class_flags(flags_class(model_entry(model)[0]))[0])


def model_flags(model: str) -> set[str]:
    return set(class_flags(model_entry(model)[0])[0])


def test_every_flag_is_here():
    shared = flags_of("codec-lm") - model_flags("codec-lm")
    assert shared == TRAINER.keys()


@pytest.mark.parametrize("flag", [f for f, given in TRAINER.items() if given is not None])
def test_flag(runs, flag):
    beside, given = TRAINER[flag]
    assert f"-{flag}" in given
    assert runs(f"{beside} {given}") != runs(beside), f"{given} changes nothing"
