"""--num-threads auto: measured once and kept where sums must not change, again and again where
minutes are the budget."""

import json

import pytest
import torch
import yaml
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.training import run

SMALL = [
    *("--decoder-dim", "16", "--nhead", "2", "--num-decoder-layers", "1", "--max-duration", "3"),
    *("--precision", "fp32", "--no-mfu", "--log-every-steps", "1", "--quiet"),
    *("--valid-split", "train"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("threads") / "tokens"
    make_tokens(folder, [30, 40, 20, 35])
    return folder


def train(tokens, exp, *words: str) -> tuple[dict, dict]:
    """The checkpoint and config.yaml."""
    argv = ["--exp-dir", str(exp), "--manifest-dir", str(tokens), *SMALL, *words]
    assert trainer.main(argv) == 0
    return load_checkpoint(exp / "latest.pt"), yaml.safe_load((exp / "config.yaml").read_text())


def never(*_):
    raise AssertionError


@pytest.mark.parametrize("budget", [("--max-steps", "2"), ("--num-epochs", "1")])
def test_a_budget_of_steps_or_epochs_has_one_number_from_start_to_end(
    tokens, tmp_path, monkeypatch, budget
):
    def measured(step):
        before = torch.get_rng_state()
        step()
        assert torch.equal(before, torch.get_rng_state())
        return 1

    monkeypatch.setattr(run, "FasterThreads", never)
    monkeypatch.setattr(run, "fastest", measured)
    state, flags = train(tokens, tmp_path / "auto", *budget, "--max-minutes", "5")
    assert flags["num-threads"] == state["config"]["num-threads"] == 1
    monkeypatch.setattr(run, "fastest", never)
    given, _ = train(tokens, tmp_path / "given", *budget, "--num-threads", "1")
    assert all(torch.equal(value, given["model"][name]) for name, value in state["model"].items())
    for words in ((), ("--num-threads", "auto")):
        number = str(2 * int(budget[1]) + len(words))
        state, flags = train(tokens, tmp_path / "auto", budget[0], number, *words)
        assert flags["num-threads"] == state["config"]["num-threads"] == 1


def test_a_budget_of_minutes_goes_on_measuring(tokens, tmp_path, monkeypatch):
    steps = []

    class Recorder:
        def took(self, seconds: float, work: float) -> None:
            steps.append((seconds, work))

    monkeypatch.setattr(run, "fastest", never)
    monkeypatch.setattr(run, "FasterThreads", Recorder)
    state, flags = train(tokens, tmp_path / "exp", "--max-minutes", "0.005")
    assert flags["num-threads"] == state["config"]["num-threads"] == "auto"
    assert len(steps) == state["step"]
    assert all(seconds > 0 and work >= 20 for seconds, work in steps)
    lines = map(json.loads, (tmp_path / "exp" / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if line["kind"] == "train"]
    assert {line["threads"] for line in lines} == {torch.get_num_threads()}
