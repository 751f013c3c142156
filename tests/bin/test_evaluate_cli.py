"""rvqlm evaluate of masked models: how many maskings, how sure the figures are, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from condition_fixtures import make_steps, make_times
from saved_models import save_model
from token_fixtures import INFO, make_tokens

from rvqlm.bin import evaluate
from rvqlm.data.conditions import ConditionSet, load_info
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.metrics.losses import evaluate_batches
from rvqlm.models.factory import build_model

SHAPE = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}


@pytest.fixture
def tokens(tmp_path):
    make_tokens(tmp_path / "tokens", [20, 9, 14, 11, 30, 16], split="test")
    return tmp_path / "tokens"


def run(exp, tokens, *more) -> int:
    words = ["--exp-dir", exp, "--manifest-dir", tokens, "--unigram-split", "test"]
    return evaluate.main([*map(str, words), "--num-threads", "1", "--device", "cpu", *more])


def save(folder, name, **flags):
    torch.manual_seed(0)
    model = build_model(name, {**SHAPE, **flags}, INFO)
    save_model(model, folder / "best.pt")
    return folder


def test_a_masked_model_has_at_least_four_maskings(tokens, tmp_path, capsys):
    exp = save(tmp_path / "exp", "masked", masking="coarse_first", eval_draws=1)
    assert run(exp, tokens) == 0
    found, out = json.loads((exp / "eval_test.json").read_text()), capsys.readouterr().out
    assert found["eval_draws"] == 4 and found["conditions"] == [] and found["bound"]
    assert "6 cuts, 100 frames" in out and "4 maskings of each" in out
    # an untrained model: every level costs ln V, however often it was masked
    assert found["nats"] == pytest.approx([math.log(64)] * 3, rel=0.02)
    assert found["loss"] == pytest.approx(sum(found["nats"]) / 3)
    assert found["bits_per_second"] == pytest.approx(sum(found["nats"]) / math.log(2) * 50)
    unsure = found["uncertainty"]
    assert unsure["recordings"] == 6 and len(unsure["nats"]) == 3
    assert f"+- {unsure['plus_minus']:,.0f} bits/s" in out
    assert run(exp, tokens, "--eval-draws", "6") == 0
    assert json.loads((exp / "eval_test.json").read_text())["eval_draws"] == 6


def test_told_times_are_said(tokens, tmp_path, capsys):
    exp = tmp_path / "exp"
    make_steps(tokens, "text", "test")
    info = replace(load_info(tokens, "text", ""), aligned=True)
    shape = {**SHAPE, "conditions": ("text",), "fusion": "spread"}
    save_model(build_model("codec-lm", shape, INFO, {"text": info}), exp / "best.pt")
    assert run(exp, tokens) == 2
    assert "text-times_test.bin not found; run rvqlm align" in capsys.readouterr().err
    assert run(exp, tokens, "--without", "text") == 0  # needs none
    found = json.loads((exp / "eval_test_without_text.json").read_text())
    assert found["conditions"] == [] and "duration_nats" not in found
    make_times(tokens, "test")
    assert run(exp, tokens) == 0
    found = json.loads((exp / "eval_test.json").read_text())
    assert found["conditions"] == ["text and its times"] and found["texts_without_times"] == 1
    assert found["duration_nats"] == pytest.approx(math.log(49), rel=1e-4)  # untrained
    assert ", given text and its times (not known of 1 text)\n" in capsys.readouterr().out


def test_levels_that_no_masking_drew_are_named(tmp_path, capsys):
    make_tokens(tmp_path / "one", [20], split="test")
    exp = save(tmp_path / "exp", "masked", masking="coarse_first", eval_draws=1)
    assert run(exp, tmp_path / "one", "--eval-draws", "1") == 2
    error = capsys.readouterr().err
    assert "did not score level 1, 2; give --eval-draws 3" in error
    assert run(exp, tmp_path / "one", "--eval-draws", "3") == 0
    found = json.loads((exp / "eval_test.json").read_text())
    assert found["uncertainty"]["plus_minus"] is None  # one recording says nothing of others
    assert "+-: 95" not in capsys.readouterr().out


def test_other_families_have_no_maskings(tokens, tmp_path, capsys):
    exp = save(tmp_path / "exp", "codec-lm")
    assert run(exp, tokens, "--eval-draws", "4") == 2
    assert "only masked models draw; this is codec-lm" in capsys.readouterr().err
    assert run(exp, tokens, "--eval-draws", "-1") == 2
    assert run(exp, tokens) == 0
    found = json.loads((exp / "eval_test.json").read_text())
    assert found["eval_draws"] is None and found["uncertainty"]["plus_minus"] > 0
    exp = save(tmp_path / "coarse", "valle", train_stage=1)
    assert run(exp, tokens) == 2
    assert "level 1, 2 is not trained" in capsys.readouterr().err


def test_what_8_bits_cost(tokens, tmp_path, capsys):
    """In a file of its own, which no report takes for the model's."""
    torch.manual_seed(0)
    model = build_model("codec-lm", {**SHAPE, "decoder_dim": 128, "head": "mlp"}, INFO, {})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    exp = tmp_path / "exp"
    save_model(model, exp / "best.pt", ema=False)
    assert run(exp, tokens, "--precision", "fp32") == 0
    assert "weights in 8 bits" not in capsys.readouterr().out
    assert run(exp, tokens, "--precision", "fp32", "--weights", "int8") == 0
    assert "weights in 8 bits\n" in capsys.readouterr().out
    found = [json.loads((exp / f"eval_test{end}.json").read_text()) for end in ("", "_int8")]
    assert [made["weights"] for made in found] == ["float", "int8"]
    plain, rounded = (made["loss"] for made in found)
    assert plain != rounded and plain == pytest.approx(rounded, rel=0.02)


@pytest.mark.parametrize("name", ["masked", "codec-lm"])
def test_as_if_it_were_not_given_a_text(tokens, tmp_path, name, capsys):
    """The same as of batches whose text is dropped, in a file of its own."""
    make_steps(tokens, "text", "test")
    make_steps(tokens, "midi", "test")
    infos = {kind: load_info(tokens, kind, "") for kind in ("text", "midi")}
    torch.manual_seed(0)
    model = build_model(name, {**SHAPE, "conditions": ("text", "midi")}, INFO, infos)
    for parameter in model.parameters():  # so that a text has an effect
        torch.nn.init.normal_(parameter, std=0.5)
    save_model(model, tmp_path / "exp/best.pt", ema=False)
    exp = tmp_path / "exp"
    assert run(exp, tokens, "--precision", "fp32") == 0
    whole = (exp / "eval_test.json").read_bytes()
    capsys.readouterr()
    assert run(exp, tokens, "--precision", "fp32", "--without", "text") == 0
    assert "given midi, without text" in capsys.readouterr().out
    assert (exp / "eval_test.json").read_bytes() == whole
    found = json.loads((exp / "eval_test_without_text.json").read_text())
    assert found["without"] == ["text"] and found["conditions"] == ["midi"]
    assert json.loads(whole)["without"] == []

    dataset = TokenDataset.open(tokens, "test")
    conditions = ConditionSet.open(dataset, ["text", "midi"])
    loader = TokenLoader(dataset, PlanConfig().for_validation(), seed=0, conditions=conditions)
    nats = []
    for keep in (False, True):
        batches = list(loader.epoch_batches())
        for batch in batches:
            text = batch.conditions["text"]
            if not keep:
                batch.conditions["text"] = text._replace(lengths=0 * text.lengths)
        totals = evaluate_batches(model, batches, INFO, torch.device("cpu"), torch.float32)
        nats.append(totals.metrics(INFO.frame_rate)["nats"])
    assert found["nats"] == pytest.approx(nats[0], rel=1e-5)
    assert json.loads(whole)["nats"] == pytest.approx(nats[1], rel=1e-5)
    assert abs(nats[0][0] - nats[1][0]) > 2e-4

    assert run(exp, tokens, "--without", "source") == 2
    said = capsys.readouterr().err
    assert "--without source: the model was trained only with text, midi" in said
    assert run(exp, tokens, "--without", "midi", "text", "--precision", "fp32") == 0
    found = json.loads((exp / "eval_test_without_midi_text.json").read_text())
    assert found["conditions"] == []


@pytest.mark.parametrize("name, ordered", [("masked", 0), ("valle", 1), ("audio-lm", 1)])
def test_free_running_of_other_families(tokens, tmp_path, name, ordered, capsys):
    """What is filled in at once has no share of codes by position when it is told the truth."""
    exp = save(tmp_path / "exp", name)
    flags = ("--free-running", "3", "--prompt-seconds", "0.1", "--seconds", "0.3")
    assert run(exp, tokens, *flags) == 0
    found = json.loads((exp / "eval_test.json").read_text())
    free = found["free_running"]
    assert free["recordings"] == 3 and len(free["likelihood"]["own"]) == 3
    told = free["agreement"]["teacher_forced"]
    if ordered:
        assert all(row[0] is not None and row[1:] == [None, None] for row in told)
    else:
        assert told is None
    assert (found["calibration_error"][0] is None) == (name == "masked")
    assert found["previous_frame_nats"] is not None and "longest run" in capsys.readouterr().out
