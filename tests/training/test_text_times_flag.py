"""--text-times auto: as the run, or the stage, that is continued; else where the times are."""

import shutil

import pytest
from condition_fixtures import make_steps, make_times
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.data.index import build_index
from rvqlm.data.text_times import TextTimes

SMALL = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--num-threads", "1"),
    *("--max-duration", "3", "--precision", "fp32", "--no-mfu", "--no-memory-check"),
    *("--conditions", "text"),
]
SPLITS = ("train", "valid")


@pytest.fixture
def run(tmp_path, capfd):
    """Train for so many steps in all; whether the model was told times, and what was printed."""
    tokens = tmp_path / "tokens"
    make_tokens(tokens, [20, 30, 15, 25])
    shutil.copy(tokens / "cuts_train.jsonl.gz", tokens / "cuts_valid.jsonl.gz")
    build_index(tokens, "valid")
    for split in SPLITS:
        make_steps(tokens, "text", split)

    def train(name: str, steps: int, flags: str = "", status: int = 0):
        exp = tmp_path / name
        argv = ["--exp-dir", str(exp), "--manifest-dir", str(tokens), *SMALL]
        assert trainer.main([*argv, "--max-steps", str(steps), *flags.split()]) == status
        said = "".join(capfd.readouterr())
        stages = [exp, exp / "stage2", exp / "stage1"]
        path = next((d / "latest.pt" for d in stages if (d / "latest.pt").exists()), None)
        told = path and load_checkpoint(path)["conditions"]["text"].get("aligned", False)
        return told, said

    return tokens, train


def test_a_run_goes_on_as_it_began(run):
    tokens, train = run
    assert train("before", 1)[0] is False
    make_times(tokens)
    told, said = train("half", 1)
    assert not told and "valid.bin is not there; run rvqlm align on every split and folder" in said
    make_times(tokens, "valid")
    told, said = train("before", 2)
    assert not told and "latest.pt, though rvqlm align was run" in said and "resumed" in said
    told, said = train("before", 3, "--text-times yes", 2)
    assert not told and "--text-times was no, is yes" in said
    # a new one is told; of the four one has no text of known place, which is counted
    told, said = train("after", 1)
    assert told and "text: each symbol when rvqlm align says" in said
    told, said = train("after", 2, "--text-times no", 2)
    assert "--text-times was yes, is no" in said
    assert train("after", 2)[0]
    make_times(tokens, seed=1)
    told, said = train("after", 3, status=2)
    assert "rvqlm align was run again: the times of the texts in" in said
    TextTimes.path(tokens, "train").unlink()
    told, said = train("after", 3, status=2)
    assert "text-times_train.bin not found; run rvqlm align" in said


def test_stages_agree_and_recognisers_need_none(run):
    tokens, train = run
    valle = "--model-name valle --train-stage"
    assert train("staged", 1, f"{valle} 1")[0] is False
    for split in SPLITS:
        make_times(tokens, split)
    told, said = train("staged", 1, f"{valle} 2 --text-times yes", 2)
    assert "--text-times was no, is yes" in said
    told, said = train("staged", 1, f"{valle} 2")
    assert told is False and "stage1/best.pt, though rvqlm align was run" in said
    recognizer = "--model-name recognizer --nhead 2 --text-times"
    assert train("heard", 1, f"{recognizer} auto")[0] is False
    assert "a recognizer is given no text" in train("heard", 2, f"{recognizer} yes", 2)[1]
