"""When the words of a sample are said, as its JSON tells: pauses, speed, given and recorded times,
by small models of every family that were told the times of texts."""

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
from rvqlm.inference.conditions import ConditionArgs, from_arguments
from rvqlm.inference.files import read_sample
from rvqlm.inference.recognize import reference_of
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
    make_tokens(
        tokens, [70, 60, 90, 50], load_codec("spectral", num_codebooks=2).info, split="test"
    )
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
    if "--infill" not in words:
        words = ["--seconds", 1, "--no-divide-texts", *words]
    words = ["--exp-dir", folder / exp, "--out-dir", out, *words]
    assert rvqlm.bin.generate.main([str(w) for w in words]) == 0
    found = [read_sample(path) for path in sorted(out.glob("*.wav"))]
    return {row["conditions"]["text"]: row for row in found}


def refused(folder, tmp_path, capsys, *words, exp="masked"):
    words = ["--exp-dir", folder / exp, "--out-dir", tmp_path, *words]
    assert rvqlm.bin.generate.main([str(w) for w in words]) == 2
    *bars, line = capsys.readouterr().err.strip().splitlines()
    assert not any("error" in bar for bar in bars)  # one line, behind bars of progress
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
    alone = run("alone", "--text", *texts, "--batch-size", 1)
    for text in texts:
        assert alone[text]["alignment"] == one[text]["alignment"]
    wavs = [sorted((tmp_path / name).glob("*.wav")) for name in ("one", "alone")]
    assert [p.read_bytes() for p in wavs[0]] == [p.read_bytes() for p in wavs[1]]
    if exp != "masked":  # the rest is the same for all
        return

    fast = run("fast", "--text", *texts, "--speed", 2)
    halves, wholes = (np.array(lengths(made[texts[0]])) for made in (fast, one))
    np.testing.assert_allclose(2 * halves, wholes, atol=4e-4)
    assert gap(fast[texts[1]], 3, 6) == pytest.approx(
        0.3, abs=2e-4
    )  # a pause is as long as it says
    drawn = run("drawn", "--text", *texts, "--duration-temperature", 1)
    assert lengths(drawn[texts[0]]) != lengths(one[texts[0]])
    assert drawn[texts[0]]["settings"]["duration_temperature"] == 1.0
    assert gap(drawn[texts[1]], 3, 6) == pytest.approx(0.3, abs=2e-4)


def test_as_recorded_and_as_predicted(folder, tmp_path, capsys):
    cuts, longer = ["--manifest-dir", folder / "tokens"], ["--seconds", 3]
    run = lambda name, *words: generate(folder, tmp_path / name, *cuts, *words)  # noqa: E731
    whole = run("recorded", *longer, "--prompt-seconds", 0, "--durations", "recorded")
    assert "1 of 4 cuts without times (rvqlm align)" in capsys.readouterr().err
    for row, text in enumerate(TEXTS[:3]):
        times = [times for _, *times in whole[text]["alignment"]]
        np.testing.assert_allclose(times, recorded(row), atol=2e-4)
        assert whole[text]["conditions"]["durations"] == "recorded"
    free = run("free", *longer, "--prompt-seconds", 0)
    assert not capsys.readouterr().err.count("without times")
    same = generate(folder, tmp_path / "said", "--text", *TEXTS, "--seconds", 3)
    for text in TEXTS:  # nothing of the recordings
        assert free[text]["alignment"] == same[text]["alignment"]
        assert "durations" not in free[text]["conditions"]
    assert whole[TEXTS[3]]["alignment"] == free[TEXTS[3]]["alignment"]

    known = run("continued", *longer, "--prompt-seconds", 0.5)
    assert "1 of 4 cuts without times" in capsys.readouterr().err
    for row, text in enumerate(TEXTS[:3]):
        begun = int((recorded(row)[:, 0] < 0.5).sum())
        assert 0 < begun < len(text)
        times = np.array([times for _, *times in known[text]["alignment"]])
        np.testing.assert_allclose(times[:begun], recorded(row)[:begun], atol=2e-4)
        # the rest follows as the model says it
        assert times[begun, 0] == pytest.approx(recorded(row)[begun - 1, 1], abs=2e-4)
        predicted = lengths(free[text])[begun:]
        np.testing.assert_allclose(lengths(known[text])[begun:], predicted, atol=4e-4)
    filled = run("filled", "--infill", "0.3-0.7")
    for row, text in enumerate(TEXTS[:3]):
        times = np.array([times for _, *times in filled[text]["alignment"]])
        kept = (recorded(row)[:, 0] < 0.3) | (recorded(row)[:, 0] >= 0.7)
        np.testing.assert_allclose(times[kept], recorded(row)[kept], atol=2e-4)
        assert (np.diff(times.ravel()) >= -1e-9).all() and not kept.all()


def test_a_textgrid_says_when(folder, tmp_path, capsys):
    grid, words = tmp_path / "a.TextGrid", tmp_path / "b.TextGrid"
    at = recorded(0)
    units = [Item(name, *times) for name, times in zip(TEXTS[0], at.tolist()) if name.isalpha()]
    write_textgrid(grid, {"chars": units}, 1.2)
    write_textgrid(words, {"words": [Item("bad", 0.1, 0.4), Item("cab", 0.6, 0.9)]}, 1.0)
    made = generate(folder, tmp_path / "out", "--text", *TEXTS[:2], "--durations", grid, words)
    times = np.array([times for _, *times in made[TEXTS[0]]["alignment"]])
    spoken = [n for n, name in enumerate(TEXTS[0]) if name.isalpha()]
    np.testing.assert_allclose(times[spoken], at[spoken], atol=2e-4)
    times = [times for _, *times in made[TEXTS[1]]["alignment"]]
    edges = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
    np.testing.assert_allclose(times, np.stack([edges[:-1], edges[1:]], 1), atol=2e-4)
    assert made[TEXTS[0]]["conditions"]["durations"] == str(grid)
    capsys.readouterr()

    def wrong(*words):
        return refused(folder, tmp_path, capsys, *words)

    assert "words: 2 words where the text has 1" in wrong("--text", "bad", "--durations", words)
    assert "1 text and 2 --durations: give one for each" in wrong(
        "--text", "bad", "--durations", words, words
    )
    assert "says where its pauses are" in wrong(
        "--text", "bad [pause 1s] cab", "--durations", words
    )
    (tmp_path / "c").write_text("words")
    assert "is no TextGrid" in wrong("--text", "bad", "--durations", tmp_path / "c")
    write_textgrid(tmp_path / "d", {"syllables": []}, 1.0)
    assert "no tier chars or words; there are syllables" in wrong(
        "--text", "bad", "--durations", tmp_path / "d"
    )


def test_what_cannot_be_obeyed_is_refused(folder, tmp_path, capsys):
    def wrong(*words, **options):
        return refused(folder, tmp_path, capsys, *words, **options)

    cuts = ["--manifest-dir", folder / "tokens"]
    assert "--durations FILE goes with --text" in wrong(*cuts, "--durations", "a.TextGrid")
    assert "goes with --manifest-dir" in wrong("--durations", "recorded")
    assert "give nothing beside it" in wrong(*cuts, "--durations", "recorded", "a.TextGrid")
    assert "leave out --text" in wrong(*cuts, "--text", "bad", "--durations", "recorded")
    assert "do nothing with --durations" in wrong(
        *cuts, "--durations", "recorded", "--speed", "1.5"
    )
    assert "--speed 0 must lie between 0.1 and 10" in wrong("--speed", 0)
    assert "is no pause; write [pause 0.5s]" in wrong("--text", "bad [pause] cab")
    assert "no word in it" in wrong("--text", "[pause 1s]")
    # a model that was not told times says so, and its defaults are no order
    assert "a pause needs a model that was trained on texts with times" in wrong(
        "--text", "bad [pause 1s] cab", exp="untold"
    )
    grid = tmp_path / "a.TextGrid"
    write_textgrid(grid, {"words": [Item("bad", 0.1, 0.4)]}, 1.0)
    assert "--durations needs a model" in wrong("--text", "bad", "--durations", grid, exp="untold")
    assert "--durations recorded needs" in wrong(*cuts, "--durations", "recorded", exp="untold")
    assert "speed, pauses and durations" in wrong("--text", "bad", "--speed", 2, exp="untold")
    made = generate(folder, tmp_path / "plain", "--text", "bad", exp="untold")
    assert "alignment" not in made["bad"] and "speed" not in made["bad"]["settings"]


def test_a_text_that_is_cut_is_named(folder, tmp_path, capsys):
    text = "bad [pause 2.25s] cab"
    made = generate(folder, tmp_path / "short", "--text", text)[text]
    needed = np.ceil(made["alignment"][-1][2] * 10) / 10
    (wav,) = (tmp_path / "short").glob("*.wav")  # what a recogniser compares it with has no pause
    assert reference_of(wav, FRONT_END) == FRONT_END.encode("bad cab").tolist()
    assert made["seconds"] == 1.0 and made["stop"] == "length" and needed > 2.25
    said = capsys.readouterr().err
    assert said.count("its text needs") == 1
    assert (
        f"conditioned-00: cut: its text needs {needed:g} s, --seconds is 1: its end is cut; give "
        f"--seconds {needed:g}\n"
    ) in said
    made = generate(folder, tmp_path / "long", "--text", text, "--seconds", needed)[text]
    assert made["seconds"] >= needed - 0.12 and "needs" not in capsys.readouterr().err
    assert overrun(50.4, 50, RATE, 0, 1.0) == "" and overrun(51, 50, RATE, 10, 0.8) == (
        "its text needs 0.9 s, --seconds is 0.8: its end is cut; give --seconds 0.9"
    )
    assert "the recording at 1.00 s" in overrun(60, 50, RATE, 0, None)


def test_a_file_of_texts_has_pauses_too(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("bad\nbad [pause 0.5s] cab\n")
    args = ConditionArgs(text_file=str(path))
    codec = load_codec("spectral", num_codebooks=2)
    plain, paused = from_arguments(args, {"text": INFO}, codec, 100)
    assert plain.durations is None and paused.times is None
    assert FRONT_END.decode(paused.values["text"]) == "bad cab"
    assert paused.durations.nan_to_num(-1).tolist() == [-1] * 4 + [25] + [-1] * 3
    assert paused.about == {"text": "bad [pause 0.5s] cab"}  # as it was given


def test_symbols_between_known_ones_fill_what_lies_between():
    nan = float("nan")
    durations = torch.tensor([[1.0, 2, 2, 4, 3, 1], [1.0, 2, 2, 4, 3, 1]])  # lead, then five
    given = torch.full((2, 5, 2), nan)
    given[0, 1], given[0, 4] = torch.tensor([6.0, 7.0]), torch.tensor([21.0, 22.0])
    times = times_of(durations, given)
    assert times[0].tolist() == [[2, 6], [6, 7], [7, 15], [15, 21], [21, 22]]
    assert times[1].tolist() == [[1, 3], [3, 5], [5, 9], [9, 12], [12, 13]]
    given[1, 0] = torch.tensor([0.0, 8.0])
    assert times_of(durations, given)[1, 1:].tolist() == [[8, 10], [10, 14], [14, 17], [17, 18]]
    assert times_of(durations).tolist()[0] == [[1, 3], [3, 5], [5, 9], [9, 12], [12, 13]]
    at = torch.tensor([[0.0, 1], [2, 3], [4, 9], [10, 11]])
    assert known_times(at, 3)[:, 0].isnan().tolist() == [False, False, True, True]
    assert known_times(at, 2, 10)[:, 0].isnan().tolist() == [False, True, True, False]
    assert known_times(at, 0).isnan().all()
