"""`rvqlm models`: what it says of the families is what they do, and what it counts is there; and
docs/models.md: what it calls refused is refused, and its pictures have shapes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from condition_fixtures import make_steps
from families import CONDITIONS, INFO, SMALL, random_batch
from token_fixtures import make_tokens

from rvqlm.bin.main import main as rvqlm
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import KINDS, ConditionInfo
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.models.cards import CARDS, card_of, count_parameters
from rvqlm.models.factory import MODELS, build_model
from rvqlm.patterns import PATTERNS

ROOT = Path(__file__).parents[2]
GENERATORS = [c for c in CARDS if c.name != "recognizer"]
K, T = INFO.num_codebooks, 5
by_name = pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)


def call(capsys, *words) -> str:
    assert rvqlm(["models", *map(str, words)]) == 0
    return capsys.readouterr().out


def counted(capsys, *words) -> dict:
    return json.loads(call(capsys, *words, "--json"))


def refused(capsys, *words) -> str:
    assert rvqlm(["models", *map(str, words)]) == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------- families


def test_the_cards_are_those_of_the_factory():
    assert {c.name for c in CARDS} == set(MODELS)
    assert card_of("audio-lm") is card_of("valle")


@by_name
def test_a_family_takes_the_conditions_of_its_card(card):
    for kind in KINDS:
        config = {**SMALL, "conditions": (kind,)}
        if kind in card.conditions:
            model = build_model(card.name, config, INFO, CONDITIONS)
            assert model(random_batch(model, [4, 3])).loss.isfinite()
        else:
            with pytest.raises(UserError, match="--conditions"):
                build_model(card.name, config, INFO, CONDITIONS)


@pytest.mark.parametrize("card", GENERATORS, ids=lambda c: c.name)
def test_a_family_fills_gaps_as_its_card_says(card):
    model = build_model(card.name, SMALL, INFO)
    before, after = torch.zeros(1, 2, K, dtype=torch.long), torch.ones(1, 1, K, dtype=torch.long)
    if card.fills_gaps:
        made = model.infill(before, after, 3).codes
        assert made.shape == (1, 6, K) and (made[:, :2] == 0).all() and (made[:, 5:] == 1).all()
    else:
        with pytest.raises(UserError, match="cannot fill a gap"):
            model.infill(before, after, 3)


def passes(model) -> int:
    seen = []
    model.generate(max_frames=T, min_frames=T, progress=seen.append)
    assert seen == list(range(1, len(seen) + 1))
    return len(seen)


def value(formula: str) -> int:
    """`T K` means T times K."""
    return eval(re.sub(r"(\w) (?=\w)", r"\1 * ", formula), {"T": T, "K": K})


def test_passes():
    formulas = [part.split(maxsplit=1) for part in card_of("codec-lm").passes.split(", ")]
    assert [name for name, _ in formulas] == list(PATTERNS)
    for pattern, formula in formulas:
        model = build_model("codec-lm", {**SMALL, "pattern": pattern}, INFO)
        assert passes(model) == value(formula), pattern
    assert card_of("valle").passes == "T of the AR, K - 1 of the NAR"
    assert passes(build_model("valle", SMALL, INFO)) == T + K - 1
    assert card_of("masked").passes.startswith("--steps (16)")
    assert passes(build_model("masked", SMALL, INFO)) == 16
    coarse = {**SMALL, "masking": "coarse_first"}
    assert passes(build_model("masked", coarse, INFO)) == 16 + (K - 1)


def test_likelihoods():
    """Of patterns, tests/test_patterns.py measures up to how many levels they are exact."""
    for words in ("exact with flatten", "--head depth", "coarse_first of 2 levels, or 1 level"):
        assert words in card_of("codec-lm").likelihood
    for levels in (1, 2, 3):
        info = CodecInfo("toy", "", 16000, 320, levels, 7)
        for name, pattern in PATTERNS.items():
            model = build_model("codec-lm", {**SMALL, "pattern": name}, info)
            assert model.exact_likelihood == (levels <= pattern.exact_up_to)
    depth = {**SMALL, "pattern": "parallel", "head": "depth"}
    assert build_model("codec-lm", depth, INFO).exact_likelihood
    for name in ("valle", "masked"):
        assert not build_model(name, SMALL, INFO).exact_likelihood
        assert card_of(name).likelihood.startswith("a bound")


def test_lists(capsys):
    text = call(capsys)
    assert [text.index(f"{c.name}: {c.what}") for c in CARDS]
    assert [c["name"] for c in counted(capsys)] == [c.name for c in CARDS]
    assert "did you mean masked" in refused(capsys, "maskd")
    assert "choose one of codec-lm, valle, audio-lm" in refused(capsys, "zzz")


def test_the_list_needs_no_torch():
    code = (
        "import sys; from rvqlm.bin.main import main; main(['models']); "
        "main(['models', '--json']); "
        "print([m for m in ('torch', 'numpy', 'lhotse') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.splitlines()[-1] == "[]", out.stderr


# -------------------------------------------------------------------------------------- options


@by_name
def test_options_are_those_of_the_family_with_their_defaults(card, capsys):
    text = call(capsys, card.name)
    for name, value in vars(MODELS[card.name][0]()).items():
        default = " ".join(map(str, value)) if isinstance(value, tuple) else value
        flag = "--" + name.replace("_", "-")
        entry = re.search(rf"^. (--.*)?{flag}[ ,][\s\S]*?\(default:[\s│]*(.*?)\)", text, re.M)
        assert entry and entry[2] == str(default), flag
    assert counted(capsys, card.name)["hears"] == list(card.conditions)


# ----------------------------------------------------------------------------------- parameters


@by_name
def test_counts_are_those_of_the_model(card, capsys):
    found = counted(capsys, card.name, "--codec-shape", "3x13", "--decoder-dim", 32, "--nhead", 2)
    text = {"text": ConditionInfo("text", (100,), 5.0)}  # what a recogniser is assumed to write
    model = build_model(card.name, {"decoder_dim": 32, "nhead": 2}, INFO, text)
    assert found["parameters"] == count_parameters(model)
    assert found["total"] == sum(p.numel() for p in model.parameters())
    assert found["trained"] == found["total"] and found["codes"] == [3, 13]
    assert found["model"] == card.name


def test_parts(capsys):
    """Against formulas."""
    words = ["codec-lm", "--codec-shape", "3x13", "--decoder-dim", 32, "--num-decoder-layers", 2]
    found = counted(capsys, *words)["parameters"]
    block = 2 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 32  # norms, attention, feed-forward
    assert found == {
        "embedding": 3 * 14 * 32, "decoder": 2 * block + 32, "heads": 3 * 13 * 32, "end": 33,
    }  # fmt: skip
    given = ["--conditions", "text", "source", "--fusion", "cross", "--num-encoder-layers", 1]
    more = counted(capsys, *words, *given)
    assert more["parameters"]["encoder"] == block + 32
    assert more["parameters"]["decoder"] == 2 * (block + 32 + 4 * 32 * 32) + 32
    # symbols, and three vectors a kind; the source shares the input side
    assert more["parameters"]["conditioner"] == 100 * 32 + 2 * 3 * 32
    assert more["assumed"] == ["text of 100 symbols, 5 frames each"]


def test_parts_of_two_networks(capsys):
    words = ["--model-name", "audio-lm", "--codec-shape=4x20", "--add-prenet", "--decoder-dim", 16]
    found = counted(capsys, *words, "--train-stage", 1)
    parts = found["parameters"]
    assert {"AR prenet", "NAR level embedding", "AR end"} <= set(parts)
    assert found["trained"] == sum(n for part, n in parts.items() if part.startswith("AR "))
    assert "trained in this stage" in call(capsys, *words, "--train-stage", 1)
    shared = counted(capsys, *words, "--share-embedding")
    assert found["total"] - shared["total"] == 3 * 20 * 16  # the NAR's classifiers


def test_a_configuration(capsys):
    path = ROOT / "egs/custom/conf/saxgpt_large.yaml"
    found = counted(capsys, "--config", path, "--codec-shape", "4x2048")
    assert found["total"] / 1e6 == pytest.approx(60, rel=0.15)  # as its makers say
    assert found["assumed"] == []
    text = call(capsys, "--config", path)
    assert "codec-lm on codes 4x1024, source" in text  # num-quantizers is in the file
    assert "assumed: codes 4x1024" in text
    smaller = counted(
        capsys, "--config", path, "--codec-shape", "4x2048", "--num-encoder-layers", 0
    )
    assert "encoder" not in smaller["parameters"]


def test_the_codes_and_conditions_of_a_directory(tmp_path, capsys):
    make_tokens(tmp_path, [20] * 5)
    make_steps(tmp_path, "text")
    words = ["--manifest-dir", tmp_path, "--conditions", "text", "--num-quantizers", 2]
    found = counted(capsys, *words)
    data = TokenDataset.open(tmp_path, "train", 2)
    infos = ConditionSet.open(data, ["text"]).infos
    model = build_model("codec-lm", {"conditions": ("text",)}, data.info, infos)
    assert found["parameters"] == count_parameters(model)
    assert found["codes"] == [2, 64] and found["conditions"] == {"text": [40]}
    assert found["assumed"] == []


def test_mistakes(tmp_path, capsys):
    assert "such as 9x1024" in refused(capsys, "--codec-shape", "9")
    assert "exclude" in refused(capsys, "--codec-shape", "9x9", "--manifest-dir", tmp_path)
    assert "of the 4 levels" in refused(capsys, "--codec-shape", "4x9", "--num-quantizers", 5)
    assert "at least 2 levels" in refused(capsys, "valle", "--codec-shape", "1x9")
    assert "without" in refused(capsys, "masked", "--codec-shape", "2x9", "--mask-ratio", 0.5)
    assert "unknown model 'x'" in refused(capsys, "x", "--codec-shape", "2x9")
    (tmp_path / "c.yaml").write_text("patern: delay\n")
    assert "did you mean 'pattern'" in refused(capsys, "--config", tmp_path / "c.yaml")
    assert "--no-such-flag" in refused(capsys, "--codec-shape", "2x9", "--no-such-flag", "1")


# ----------------------------------------------------------------------------------- docs/models.md

PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")


TABLE = PAGE.split("which are refused before training:")[1].split("And later:")[0]
REFUSED = re.findall(r"^\| `(--[^`]*)` \|", TABLE, re.M)


@pytest.mark.parametrize("flags", REFUSED)
def test_what_the_page_calls_refused_is(flags, capsys):
    shape = [] if "--codec-shape" in flags else ["--codec-shape", "2x8"]
    last = re.findall(r"--[a-z-]+", flags.replace("--codec-shape", ""))[-1]
    error = refused(capsys, *shape, *flags.split())
    assert last in error or "codec-lm" in error  # the last: a family that does it


def test_there_are_refusals_and_pictures():
    assert len(REFUSED) > 10
    pictures = re.findall(r"^```mermaid\n(.*?)^```", PAGE, re.M | re.S)
    for picture in pictures:  # a shape on every arrow
        arrows = [line for line in picture.splitlines() if "--" in line]
        assert arrows and all(re.search(r'-->\|"[^"|]*(\(|scalar)[^"|]*"\| ', a) for a in arrows)
    assert len(pictures) >= len(MODELS)
    for name in MODELS:
        assert re.search(rf"^## {name}: ", PAGE, re.M)
