"""--packing from the command line: a run that was interrupted is the one that never was, and what
has no rows is refused in one line."""

import pytest
import torch
from condition_fixtures import make_steps
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.data.index import TokenDataset
from rvqlm.training.memory import Memory

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


@pytest.mark.parametrize(
    ("name", "fusion"), [("codec-lm", "cross"), ("masked", "prefix"), ("valle", "spread")]
)
def test_a_resumed_run_is_the_one_that_never_stopped(tokens, tmp_path, name, fusion):
    def train(exp, steps):
        argv = ["--exp-dir", str(exp), "--manifest-dir", str(tokens), "--model-name", name, *SMALL]
        argv += ["--conditions", "text", "--fusion", fusion]
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
        (("--model-name", "recognizer", "--conditions", "text"), "recognizer has no rows"),
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


def test_the_largest_max_duration_is_found_of_whole_rows(tokens, tmp_path, capfd, monkeypatch):
    tried = []

    def need(memory, batch):
        tried.append(batch)
        return 1e6 * len(batch.codes)

    monkeypatch.setattr(Memory, "need", need)
    monkeypatch.setattr(Memory, "room", lambda memory: 3.5e6)
    argv = ["--exp-dir", str(tmp_path), "--manifest-dir", str(tokens), *SMALL, "--max-steps", "1"]
    argv = [word for word in argv if word != "--quiet"]
    argv += ["--max-duration", "auto", "--conditions", "text", "--no-memory-check"]
    assert trainer.main(argv) == 0
    assert {batch.codes.shape[1] for batch in tried} == {60}
    rate = TokenDataset.open(tokens, "train").info.frame_rate
    (line,) = [s for s in capfd.readouterr().err.splitlines() if s.startswith("--max-duration")]
    assert 3 * 60 / rate <= float(line.split()[-1]) < 4 * 60 / rate
    chosen = load_checkpoint(tmp_path / "latest.pt")["loader"]["plan"]["max_duration"]
    assert chosen == float(line.split()[-1])
