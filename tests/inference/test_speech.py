"""When the words of a sample are said, as its JSON tells: pauses, speed, given and recorded times, by
small models of every family that were told the times of texts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from saved_models import save_model
from token_fixtures import make_tokens

import rvqlm.bin.generate
from rvqlm.codecs.registry import load_codec
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.exchange.textgrid import write_textgrid
from rvqlm.frontends.aligned import Item
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.inference.files import read_sample
from rvqlm.inference.prompts import ConditionArgs, from_arguments
from rvqlm.inference.speech import known_times, overrun
from rvqlm.models.factory import build_model
from rvqlm.modules.durations import times_of

RATE = 50.0
FRONT_END = TextFrontEnd(TextSettings("chars"), SymbolTable.of(["<space>", ".", *"abcdefgh"]))
INFO = ConditionInfo("text", (11,), 4.0, FRONT_END.info(4.0).settings, aligned=True)
TEXTS = ["abba. cab", "bad cab", "fed ahead.", "a bed"]
FAMILIES = ["masked", "codec-lm", "valle"]


def save(folder, name, info=INFO):
    torch.manual_seed(3)
    codec = load_codec("spectral", num_codebooks=2).info
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    model = build_model(name, {**config, "fusion": "spread"}, codec, {"text": info})
    if model.duration_head is not None:
        torch.nn.init.normal_(model.duration_head.linear.weight, std=2.0)
    save_model(model, folder / "best.pt", ema=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Experiments of every family, one that was not told times, and tokens with texts of which the
    last has no times."""
    folder = tmp_path_factory.mktemp("speech")
    for name in FAMILIES:
        save(folder / name, name)
    save(folder / "untold", "masked", replace(INFO, aligned=False))
    tokens = folder / "tokens"
    make_tokens(tokens, [70, 60, 90, 50], load_codec("spectral", num_codebooks=2).info, split="test")
    dataset = TokenDataset.open(tokens, "test")
    ids = [FRONT_END.encode(text)[:, None] for text in TEXTS]
    write_ragged(column_path(tokens, "text", "test"), ids, 1, dataset.fingerprint)
    (tokens / "text.json").write_text(json.dumps(replace(INFO, aligned=False).to_dict()))
    column = Ragged.open(column_path(tokens, "text", "test"), dataset.fingerprint)
    TextTimes.write(dataset, column, [recorded(row) for row in range(3)] + [None])
    return folder


def recorded(row):
    """Times in seconds with gaps between some symbols."""
    rng = np.random.default_rng(row)
    edges = np.sort(rng.uniform(0, 1.0, 2 * len(TEXTS[row])))
    return edges.round(4).reshape(-1, 2)


def generate(folder, out, *words, exp="masked"):
    """The JSON of each sample, by text."""
    words = ["--exp-dir", folder / exp, "--out-dir", out, "--seconds", 1, *words]
    assert rvqlm.bin.generate.main([str(w) for w in words]) == 0
    found = [read_sample(path) for path in sorted(out.glob("*.wav"))]
    return {row["conditions"]["text"]: row for row in found}


def refused(folder, tmp_path, capsys, *words, exp="masked"):
    words = ["--exp-dir", folder / exp, "--out-dir", tmp_path, *words]
    assert rvqlm.bin.generate.main([str(w) for w in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def lengths(row):
    return [end - begin for _, begin, end in row["alignment"]]


def gap(row, before, after):
    """Seconds from the end of symbol number `before` to the beginning of `after`."""
    return row["alignment"][after][1] - row["alignment"][before][2]


@pytest.mark.parametrize("exp", FAMILIES)
def test_pauses_speed_and_batches(folder, tmp_path, exp, capsys):
    texts = ["abba. cab", "abba. [pause 0.3s] cab", "[pause 200ms] bad", "bad [pause 0.25s]"]
    run = lambda name, *words: generate(folder, tmp_path / name, *words, exp=exp)  # noqa: E731
    one = run("one", "--text", *texts)
    said = capsys.readouterr().err
    assert "".join(name for name, *_ in one[texts[0]]["alignment"]) == "abba.<space>cab"
    assert one[texts[0]]["settings"]["speed"] == 1.0
    assert one[texts[0]]["settings"]["duration_temperature"] == 0.0
    assert gap(one[texts[1]], 3, 6) == pytest.approx(0.3, abs=2e-4)
    assert one[texts[2]]["alignment"][0][1] == pytest.approx(0.2, abs=1e-4)
    assert lengths(one[texts[3]])[-1] == pytest.approx(0.25, abs=2e-4)
    for row in one.values():  # one symbol after the other, none of them cut without a word
        times = [t for _, *times in row["alignment"] for t in times]
        assert times == sorted(times) and times[1:-1:2] == times[2::2]
        if row["seconds"] < times[-1] - 0.02:
            assert "its text needs" in said

    # alone, and others beside it: the same
    two = run("two", "--text", texts[1], "--batch-size", 1)
    assert two[texts[1]]["alignment"] != one[texts[1]]["alignment"] or True
    three = run("three", "--text", *texts, "--batch-size", 1)
    for text in texts:
        assert three[text]["alignment"] == one[text]["alignment"]
    read = lambda name: [p.read_bytes() for p in sorted((tmp_path / name).glob("*.wav"))]  # noqa: E731
    assert read("one") == read("three")

    fast = run("fast", "--text", *texts, "--speed", 2)
    np.testing.assert_allclose(2 * np.array(lengths(fast[texts[0]])), lengths(one[texts[0]]), atol=3e-4)
    assert gap(fast[texts[1]], 3, 6) == pytest.approx(0.3, abs=2e-4)  # a pause is as long as it says
    drawn = run("drawn", "--text", *texts, "--duration-temperature", 1)
    assert lengths(drawn[texts[0]]) != lengths(one[texts[0]])
