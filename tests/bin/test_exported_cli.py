"""Commands on an exported model and on a mean of checkpoints, in the place of an experiment."""

import json

import pytest
import torch
from saved_models import save_model
from token_fixtures import make_tokens

import rvqlm
import rvqlm.bin.main
from rvqlm.bin import average, evaluate, export_model
from rvqlm.checkpoints.exported import save_pretrained
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.codecs.registry import load_codec
from rvqlm.models.factory import build_model


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory):
    """Two archives and a best checkpoint of an untrained model, of the embedded codec."""
    folder = tmp_path_factory.mktemp("exp")
    info = load_codec("spectral", num_codebooks=2).info
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1}
    for step, name in ((1, "archive/step-00000001-20261125-120000.pt"), (7, "best.pt"),
                       (2, "archive/step-00000002-20261125-120001.pt")):  # fmt: skip
        torch.manual_seed(step)
        model = build_model("codec-lm", config, info)
        torch.nn.init.normal_(model.heads.weight)
        save_model(model, folder / name, step)
    assert average.main([str(folder)]) == 0
    for which in ("best", "average"):
        words = [str(folder), "--which", which, "--out", str(folder / f"exported-{which}")]
        assert export_model.main(words) == 0
    return folder


@pytest.mark.parametrize("which", ["best", "average"])
def test_evaluates_to_the_same(exp_dir, which, tmp_path, capsys):
    tokens = tmp_path / "tokens"
    info = rvqlm.from_pretrained(exp_dir).info
    make_tokens(tokens, [15, 40], info, split="test")
    found = []
    for where in (exp_dir, exp_dir / f"exported-{which}"):
        words = ["--exp-dir", str(where), "--manifest-dir", str(tokens), "--num-threads", "1"]
        words += ["--unigram-split", "test"]
        words += ["--checkpoint", which] if where == exp_dir else []
        assert evaluate.main(words) == 0
        result = json.loads((where / "eval_test.json").read_text())
        assert result["checkpoint"].startswith(str(where))
        other = ("checkpoint", "command", "checksum")
        found.append({k: v for k, v in result.items() if k not in other})
    assert found[0] == found[1] and found[0]["step"] == {"best": 7, "average": 2}[which]


def test_without_flags_of_a_training_the_defaults_evaluate(exp_dir, tmp_path):
    """A model that was saved without its checkpoint."""
    model = rvqlm.from_pretrained(exp_dir)
    bare = save_pretrained(model, tmp_path / "bare")
    assert json.loads((bare / "config.json").read_text())["config"] == {}
    make_tokens(tmp_path / "tokens", [15, 40], model.info, split="test")
    words = ["--manifest-dir", str(tmp_path / "tokens"), "--unigram-split", "test"]
    found = []
    for where in (exp_dir, bare):
        assert evaluate.main(["--exp-dir", str(where), *words, "--num-threads", "1"]) == 0
        found.append(json.loads((where / "eval_test.json").read_text()))
    assert found[0]["nats"] == pytest.approx(found[1]["nats"], rel=1e-5)


def test_generates_the_same(exp_dir, tmp_path):
    for where, out in ((exp_dir, "one"), (exp_dir / "exported-best", "two")):
        words = ["generate", "--exp-dir", where, "--seconds", 0.2, "--min-seconds", 0.2]
        assert rvqlm.bin.main.main([*map(str, words), "--out-dir", str(tmp_path / out)]) == 0
    one, two = (tmp_path / d / "unprompted-00.wav" for d in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(two.with_suffix(".json").read_text())["step"] == 7


def test_the_mean_says_of_which_steps(exp_dir):
    config = json.loads((exp_dir / "exported-average/config.json").read_text())
    assert config["mean_of_steps"] == [1, 2] and "averaged" not in config
    assert load_checkpoint(exp_dir / "average.pt")["averaged"]["steps"] == [1, 2]
