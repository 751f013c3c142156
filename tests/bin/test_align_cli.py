"""`rvqlm align` on sounds that spell: letters whose times are known, a wrong text and one that
cannot be, alignments in and out, mistakes."""

import gzip
import json

import numpy as np
import pytest
import soundfile
import torch
from test_recognize_cli import LEVELS, RATE, experiment, front_end, recognize, spell, texts

import rvqlm.bin.align
import rvqlm.bin.main
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.exchange.textgrid import read_textgrid
from rvqlm.files import read_jsonl

__all__ = ["experiment", "front_end", "recognize"]  # fixtures
WRONG, IMPOSSIBLE, WITHOUT = "r07", "r11", "r05"


def align(*words):
    return rvqlm.bin.align.main([str(w) for w in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory, front_end):
    """A token directory of 24 test cuts that carry the times of their letters, and what they say;
    the symbols of one are another's, one has more than its audio can, one has none."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("made")
    (folder / "audio").mkdir()
    said = dict(zip((f"r{n:02}" for n in range(25)), texts(25, rng)))
    letters = {}
    for name, text in said.items():
        parts = [spell(letter, rng) for letter in text]
        soundfile.write(folder / "audio" / f"{name}.wav", np.concatenate(parts), RATE)
        ends = np.cumsum([len(p) for p in parts]) / RATE
        letters[name] = [[c, e - len(p) / RATE, len(p) / RATE, None]
                         for c, e, p in zip(text, ends.tolist(), parts)]  # fmt: skip
    tokens = folder / "tokens"
    run = lambda *w: rvqlm.bin.main.main([str(x) for x in w])  # noqa: E731
    assert run("tokenize", "--input", folder / "audio", "--out-dir", tokens,
               "--num-codebooks", LEVELS + 1, "--jobs", 1) == 0  # fmt: skip
    assert run("split", "--manifest-dir", tokens, "--valid", 0, "--test", 24) == 0
    path = tokens / "cuts_test.jsonl.gz"
    with gzip.open(path) as file:
        cuts = [json.loads(line) for line in file]
    for cut in cuts:
        cut["supervisions"] = [{
            "id": cut["id"], "recording_id": cut["id"], "start": 0.0, "channel": 0,
            "duration": cut["duration"], "text": f"{said[cut['id']].upper()}!",
            "alignment": {"char": letters[cut["id"]]},
        }]  # fmt: skip
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    build_index(tokens, "test")
    said[WRONG] = "dbcadbd" if said[WRONG][0] != "d" else "abdcabd"
    said[IMPOSSIBLE], said[WITHOUT] = "abcd" * 30, ""
    dataset = TokenDataset.open(tokens, "test")
    rows = [front_end.encode(said[name]) for name in dataset.ids()]
    write_ragged(tokens / "text_test.bin", rows, 1, dataset.fingerprint)
    (tokens / "text.json").write_text(json.dumps(front_end.info(5.0).to_dict()))
    return tokens, said


@pytest.fixture(scope="module")
def tokens(made, experiment):
    """Aligned."""
    assert align("--manifest-dir", made[0], "--recognizer", experiment, "--splits", "test") == 0
    return made[0]


def opened(tokens):
    dataset = TokenDataset.open(tokens, "test")
    return dataset, TextTimes.open(dataset, Ragged.open(tokens / "text_test.bin"))


def test_letters_lie_where_they_are_and_a_wrong_text_stands_out(tokens, made, experiment, capsys):
    words = ("--manifest-dir", tokens, "--splits", "test")
    before = (tokens / "text-times_test.bin").stat()
    assert align(*words, "--recognizer", experiment, "--against", "supervisions") == 0
    assert (tokens / "text-times_test.bin").stat().st_mtime_ns == before.st_mtime_ns
    out = capsys.readouterr().out.splitlines()
    assert "22 of 24 cuts aligned; 1 without text; 1 not: r11: its symbols need 120" in out[0]
    assert "up to date" in out[0] and f" {WRONG}: " in out[1]
    line = out[-1]
    assert "boundaries in 21 cuts, median error" in line and line.endswith("2 cuts left out")
    median, p90 = (float(line.split(mark)[1].split(" ms")[0]) for mark in ("error ", "below "))
    assert 0 < median < 20 and p90 < 50

    outliers = list(read_jsonl(tokens / "align_outliers_test.jsonl", "outliers", ""))
    assert [o["id"] for o in outliers][:2] == [IMPOSSIBLE, WRONG] and len(outliers) == 3
    assert set(outliers[0]) == {"id", "problem", "text", "symbols"}
    assert outliers[1]["symbols"] == made[1][WRONG] and outliers[1]["text"].endswith("!")
    assert outliers[1]["score"] < outliers[2]["score"] - 1
    entry = json.loads((tokens / "align.json").read_text())["splits"]["test"]
    assert (entry["cuts"], entry["aligned"], entry["step"]) == (24, 22, 60)
    assert entry["recognizer"].endswith("best.pt") and entry["score"]["mean"] < -0.1
    assert entry["command"].startswith("rvqlm align --manifest-dir ")


def test_small_batches_make_the_same(tokens, experiment, made):
    before = (tokens / "text-times_test.bin").read_bytes()
    outliers = tokens / "align_outliers_test.jsonl"
    words = ("--manifest-dir", tokens, "--recognizer", experiment, "--splits", "test")
    assert align(*words, "--batch-seconds", 0.5, "--worst", 1) == 0  # made again, as more is listed
    assert (tokens / "text-times_test.bin").read_bytes() == before
    listed = list(read_jsonl(outliers, "outliers", ""))
    assert len(listed) == 23 and listed[0]["id"] == IMPOSSIBLE
    scores = [o["score"] for o in listed[1:]]
    assert scores == sorted(scores) and max(scores) <= 0
    assert align(*words) == 0
    assert len(list(read_jsonl(outliers, "outliers", ""))) == 3


def test_out_and_in_again(tokens, tmp_path, capsys):
    dataset, times = opened(tokens)
    expected = [times.read(row) for row in range(len(dataset))]
    column = tokens / "text-times_test.bin"
    kept, record = column.read_bytes(), (tokens / "align.json").read_bytes()
    words = ("--manifest-dir", tokens, "--splits", "test")
    try:
        assert align(*words, "--export", "textgrid", "--out-dir", tmp_path / "grids") == 0
        assert "22 cuts as textgrid; 2 without alignment  " in capsys.readouterr().out
        tiers = read_textgrid(tmp_path / "grids" / "r00.TextGrid")
        assert list(tiers) == ["words", "chars"]
        assert align(*words, "--import-from", tmp_path / "grids") == 0
        out = capsys.readouterr().out
        assert "22 of 24 cuts aligned; 1 without text; 1 not: r11: no r11.TextGrid in" in out
        again = opened(tokens)[1]
        for row, mine in enumerate(expected):
            other = again.read(row)
            assert (other is None) == (mine is None)
            if mine is not None:
                np.testing.assert_allclose(other, mine, atol=2e-4)
        # words of a tier, whose letters share them
        grid = tmp_path / "grids" / "r00.TextGrid"
        whole = grid.read_text()
        grid.write_text("no more")
        assert align(*words, "--import-from", tmp_path / "grids") == 0
        assert "2 not: r00: " in capsys.readouterr().out  # one bad file ends nothing
        grid.write_text(whole)
        assert align(*words, "--import-from", tmp_path / "grids", "--tier", "word") == 0
        out = capsys.readouterr().out  # written words have to be of the symbols' letters
        assert "21 of 24 cuts aligned" in out and "2 not: r07: the word 'CDAD!'" in out
        # as lhotse has them, which measures as none
        assert align(*words, "--export", "lhotse", "--out-dir", tmp_path / "cuts") == 0
        from lhotse import CutSet

        cut = CutSet.from_file(tmp_path / "cuts" / "cuts_test.jsonl.gz").to_eager()["r00"]
        (word,) = cut.supervisions[0].alignment["word"]
        assert word.symbol == cut.supervisions[0].text
        assert len(cut.supervisions[0].alignment["char"]) == len(word.symbol) - 1
        for format, mark in (("srt", ","), ("vtt", ".")):
            assert align(*words, "--export", format, "--out-dir", tmp_path / "sub") == 0
            text = (tmp_path / "sub" / f"r00.{format}").read_text()
            assert f"00:00:00{mark}0" in text and f"\n{word.symbol}\n" in text
    finally:
        column.write_bytes(kept)
        (tokens / "align.json").write_bytes(record)


def test_dry_run_writes_nothing(made, experiment, tmp_path, capsys):
    words = ("--manifest-dir", made[0], "--recognizer", experiment, "--splits", "test")
    before = {p.name: p.stat().st_mtime_ns for p in made[0].iterdir()}
    assert align(*words, "--dry-run", "--export", "srt", "--out-dir", tmp_path / "x") == 0
    assert "23 cuts with text: " in capsys.readouterr().out
    after = {p.name: p.stat().st_mtime_ns for p in made[0].iterdir()}
    assert after == before and not (tmp_path / "x").exists()


def test_mistakes_are_one_line_and_status_2(tokens, experiment, tmp_path, capsys):
    def mistake(*words, directory=tokens):
        assert align("--manifest-dir", directory, "--splits", "test", *words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rvqlm align: error: ")
        return error

    assert "give --recognizer or --import-from, --against or --export" in mistake()
    both = ("--recognizer", experiment, "--import-from", "supervisions")
    assert "give one of --recognizer and --import-from" in mistake(*both)
    assert "--export and --out-dir go together" in mistake("--export", "srt")
    here = ("--export", "lhotse", "--out-dir", tokens)
    assert "--out-dir is the token directory" in mistake(*here)
    dry = ("--against", "supervisions", "--dry-run")
    assert "--dry-run is for --recognizer and --import-from" in mistake(*dry)
    only = ("--recognizer", experiment, "--tier", "word")
    assert "--tier is for --import-from and --against" in mistake(*only)
    none = ("--recognizer", experiment, "--batch-seconds", 0)
    assert "--batch-seconds 0: a positive number" in mistake(*none)
    assert "--worst 0: above 0, at most 1" in mistake("--recognizer", experiment, "--worst", 0)
    assert "no such experiment" in mistake("--recognizer", tmp_path / "no")
    assert "no such folder of TextGrids" in mistake("--import-from", tmp_path / "no")
    words = mistake("--against", "supervisions", "--tier", "phone")
    assert "no cut of split 'test' has both; cut 'r" in words and "they have char" in words
    assert "not found" in mistake("--recognizer", experiment, directory=tmp_path)
    record = (tokens / "align.json").read_bytes()
    for damaged in ("[]", '{"splits": {"test": {}}}', '{"splits": {"test": {"made_by": {}}}}'):
        (tokens / "align.json").write_text(damaged)
        assert "align.json is damaged" in mistake("--recognizer", experiment)
    (tokens / "align.json").write_bytes(record)
    kept = (tokens / "text-times_test.bin").read_bytes()
    (tokens / "text-times_test.bin").unlink()
    assert "text-times_test.bin not found; run rvqlm align" in mistake("--against", "supervisions")
    (tokens / "text-times_test.bin").write_bytes(kept)
    assert torch.is_grad_enabled()
