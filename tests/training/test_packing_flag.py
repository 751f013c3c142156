"""--packing from the command line: a run that was interrupted is the one that never was, and what
has no rows is refused in one line."""

import pytest
import torch
from condition_fixtures import make_steps
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint

SMALL = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--max-duration", "3"),
    *("--precision", "fp32", "--no-mfu", "--quiet", "--valid-split", "train"),
    *("--num-threads", "1", "--packing", "60"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing") / "tokens"
    make_tokens(folder, [30, 40, 20, 35, 10, 25, 12, 44, 31, 28])
    make_steps(folder, "text", "train")
    return folder


@pytest.mark.parametrize("name", ["codec-lm", "masked", "valle"])
def test_a_resumed_run_is_the_one_that_never_stopped(tokens, tmp_path, name):
    def train(exp, steps):
        argv = ["--exp-dir", str(exp), "--manifest-dir", str(tokens), "--model-name", name, *SMALL]
        schedule = ["--schedule", "constant", "--warmup-steps", "0", "--max-steps", str(steps)]
        assert trainer.main([*argv, *schedule]) == 0
        return load_checkpoint(exp / "latest.pt")

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 3)
    parts = train(tmp_path / "parts", 6)
    assert whole["loader"] == parts["loader"]
    for part in ("model", "ema"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--conditions", "text"), "rows of several cuts have no --conditions (text)"),
        (("--model-name", "recognizer", "--conditions", "text"), "recognizer has no rows"),
        (("--model-name", "masked", "--ar-share", "0.5"), "--ar-share has no rows"),
        (("--compile",), "are not for --compile"),
        (("--max-duration", "auto"), "not auto"),
        (("--max-cuts", "2"), "--max-cuts mean nothing with it"),
        (("--packing", "40"), "more than a row of --packing 40"),
    ],
)
def test_refused_in_one_line(tokens, tmp_path, capfd, words, why):
    argv = ["--exp-dir", str(tmp_path), "--manifest-dir", str(tokens), *SMALL, "--max-steps", "1"]
    assert trainer.main([*argv, *words]) == 2
    said = capfd.readouterr().err.strip()
    assert why in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "latest.pt").exists()
