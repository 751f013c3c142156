"""Kill -9 at random moments and resume: equal to never having stopped, bit for bit."""

import gzip
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from condition_fixtures import make_steps, make_times
from forked import fork, same_experiment, train_with_kills, wait
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.data.index import build_index
from rvqlm.runtime import has_fast_bf16

SMALL = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--seed", "3"),
    *("--max-duration", "3", "--num-threads", "1", "--max-steps", "24", "--warmup-steps", "3"),
    *("--log-every-steps", "3", "--save-every-steps", "2", "--valid-every-steps", "7"),
    *("--valid-max-batches", "2", "--precision", "fp32", "--no-mfu"),
]
TABLE = {
    "adamw, cosine, dropout": "--dropout 0.2",
    "adamw, linear, no average, accum": "--schedule linear --ema-decay 0 --accum 3",
    "muon, step, embedding rate": "--optimizer muon --schedule step --lr-step-epochs 1 "
    "--embedding-lr 0.003 --accum 2",
    "scaled_adam, eden, no warm-up of the average": "--optimizer scaled_adam --base-lr 0.02 "
    "--schedule eden --lr-batches 9 --no-ema-warmup",
    "plateau": "--schedule plateau --plateau-patience 1 --base-lr 0.1 --valid-every-steps 2",
    "constant, smoothing, checkpointing": "--schedule constant --label-smoothing 0.1 "
    "--activation-checkpointing --dropout 0.1",
    "bf16": "--precision bf16 --optimizer muon",
    "fp16": "--precision fp16 --base-lr 0.01",
    "random crops, auto weights": "--crop-frames 30 --level-weights auto --optimizer muon",
    "random levels, later all": "--levels-per-batch-schedule 0:1 2:0 --accum 2 "
    "--level-weights-schedule 0:normal 2:auto",
    "curriculum, scheduled sampling": "--window-schedule 0:12 1:20 --epoch-hours 0.0012 "
    "--scheduled-sampling 0.5 --max-seconds-schedule 0:2 1:9",
    "outliers and returns": "--outlier-deviations 2 --outlier-warmup-steps 3 --base-lr 0.05 "
    "--max-skips 2 --max-rollbacks 99 --rollback-lr 0.9",
    "valle": "--model-name valle --dropout 0.1",
    "masked, text with times": "--model-name masked --level-training-schedule 0:random 2:parallel "
    "--conditions text "
    "--fusion spread --condition-dropout 0.3",
    "masked, both ways": "--model-name masked --ar-share 0.4 --masking frame --dropout 0.1 "
    "--level-training-schedule 0:random 1:parallel --level-distribution normal",
    "residual head, overlapping windows": "--head residual --pattern parallel --window-frames 24 "
    "--hop-frames 9 --dropout 0.1",
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(0)
    make_tokens(folder, [rng.randint(10, 60) for _ in range(30)])
    with gzip.open(folder / "cuts_train.jsonl.gz") as file:
        lines = file.readlines()
    with gzip.open(folder / "cuts_valid.jsonl.gz", "wb") as file:
        file.writelines(lines[:5])
    build_index(folder, "valid")
    for split in ("train", "valid"):
        make_steps(folder, "text", split)
        make_times(folder, split)
    return folder


def command(exp_dir, tokens, flags: str) -> list[str]:
    return ["--exp-dir", str(exp_dir), "--manifest-dir", str(tokens), *SMALL, *flags.split()]


@pytest.mark.parametrize("name", TABLE)
def test_killed_at_random_moments(tokens, tmp_path, name):
    if name == "bf16" and not has_fast_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16 units")
    began = time.monotonic()
    assert wait(fork(lambda: trainer.main(command(tmp_path / "whole", tokens, TABLE[name])))) == 0
    seconds = time.monotonic() - began
    kills = [random.uniform(0.1, 0.9) * seconds for _ in range(2)]
    print("kills after", kills)
    train_with_kills(command(tmp_path / "killed", tokens, TABLE[name]), kills)
    same_experiment(tmp_path / "killed", tmp_path / "whole")


WRITES = ["before the file is complete", "before it is renamed", "between its two names"]


@pytest.mark.parametrize("moment", WRITES)
def test_killed_while_a_checkpoint_is_written(tokens, tmp_path, moment):
    """The process ends itself at the worst moment of its third checkpoint."""
    argv = command(tmp_path / "killed", tokens, "--valid-every-steps 2")

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> int:
        save, replace, count = torch.save, os.replace, {"saves": 0, "replaced": 0}

        def half_saved(state, file, *rest):
            count["saves"] += 1
            if count["saves"] == 3 and moment == WRITES[0]:
                file.write(b"PK" * 5000)
                file.flush()
                die()
            save(state, file, *rest)

        def replaced(source, target):
            if Path(target).suffix == ".pt" and count["saves"] == 3:
                count["replaced"] += 1
                if moment == WRITES[1] or (moment == WRITES[2] and count["replaced"] == 2):
                    die()
            replace(source, target)

        torch.save, os.replace = half_saved, replaced
        return trainer.main(argv)

    assert wait(fork(run)) == -signal.SIGKILL
    left = [p for p in (tmp_path / "killed").glob("*.pt")]
    assert left and all(load_checkpoint(p)["step"] for p in left)
    assert wait(fork(lambda: trainer.main(argv))) == 0
    whole = command(tmp_path / "whole", tokens, "--valid-every-steps 2")
    assert wait(fork(lambda: trainer.main(whole))) == 0
    same_experiment(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_fifty_kills(tokens, tmp_path):
    """A training that is killed again and again, ever so often before it saved anything new."""
    flags = "--dropout 0.1 --accum 2 --optimizer muon --crop-frames 30"
    assert wait(fork(lambda: trainer.main(command(tmp_path / "whole", tokens, flags)))) == 0
    argv, kills = command(tmp_path / "killed", tokens, flags), 0
    while kills < 50:
        # the same process may be killed in its set-up, in a step, in a validation, in a write
        pid = fork(lambda: trainer.main(argv))
        time.sleep(random.uniform(0.0, 0.25))
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        if status == 0:  # it came to its end before the fifty were full: begin anew
            same_experiment(tmp_path / "killed", tmp_path / "whole")
            (tmp_path / "killed").rename(tmp_path / f"done-{kills}")
        kills += status == -signal.SIGKILL
    assert wait(fork(lambda: trainer.main(argv))) == 0
    same_experiment(tmp_path / "killed", tmp_path / "whole")
