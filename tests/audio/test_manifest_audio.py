"""Lists of audio files: what lhotse and `rvqlm tokenize` make of them, transcripts, speakers."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSet

from rvqlm.audio.parts import cut_blocks
from rvqlm.audio.sources import open_source
from rvqlm.audio.texts import Texts, Transcript, texts_beside, texts_of_table
from rvqlm.bin.audio import main
from rvqlm.errors import UserError

RATES = {"wav": 8000, "flac": 44100, "ogg": 16000, "mp3": 22050}


def save(path, seconds=0.5, rate=16000, channels=1, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * rate), channels))
    soundfile.write(path, audio, rate, **kwargs)
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "my audio"
    save(folder / "anna/one.wav", 0.5, 8000)
    save(folder / "anna/two.flac", 0.7, 44100, 2)
    save(folder / "bert/deep/one.ogg", 0.6)
    save(folder / "bert/trois-é.mp3", 0.9, 22050)
    save(folder / "top.wav")
    (folder / "anna/broken.wav").write_bytes(b"no audio")
    (folder / "anna/empty.wav").touch()
    return folder


def manifest(folder, out, *flags):
    return main(["manifest", "--input", str(folder), "--out-dir", str(out), "--jobs", "1", *flags])


def lines(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def test_lengths_ids_and_what_lhotse_loads(corpus, tmp_path, capsys):
    assert manifest(corpus, tmp_path / "m") == 0
    said = capsys.readouterr()
    assert "5 files" in said.out and "no transcripts" in said.out
    assert "2 items skipped" in said.err and "transcript" not in said.err
    assert {s["id"] for s in lines(tmp_path / "m/skipped.jsonl")} == {"anna/broken", "anna/empty"}
    cuts = CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")
    source = open_source(str(corpus))
    usable = [i.id for i in source.items(0, 99) if i.id not in ("anna/broken", "anna/empty")]
    assert [c.id for c in cuts] == usable
    for cut in cuts:
        audio, rate = soundfile.read(cut.recording.sources[0].source, always_2d=True)
        assert (cut.sampling_rate, cut.num_channels) == (rate, audio.shape[1])
        assert cut.num_samples == cut.recording.num_samples == len(audio)
        assert np.allclose(cut.load_audio(), audio.T, atol=1e-4)
        assert cut.custom["group"] == cut.id and not cut.supervisions
    assert len(RecordingSet.from_file(tmp_path / "m/recordings.jsonl.gz")) == 5
    assert not lines(tmp_path / "m/supervisions.jsonl.gz")


def test_same_bytes_again_and_with_processes(corpus, tmp_path):
    (corpus / "top.txt").write_text("a top")
    for out, jobs in (("a", "1"), ("b", "2"), ("b", "1")):
        assert manifest(corpus, tmp_path / out, "--jobs", jobs) == 0
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert len(list((tmp_path / "b").iterdir())) == 5


def test_relative_paths_stay_relative(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert manifest("my audio", "m") == 0
    cut = next(iter(CutSet.from_file("m/cuts.jsonl.gz")))
    assert cut.recording.sources[0].source == "my audio/anna/one.wav"


def test_texts_beside_the_audio(corpus, tmp_path, capsys):
    (corpus / "anna/one.txt").write_text("\ufeffeins,\n  zwei\n", encoding="utf-8")
    (corpus / "bert/trois-é.mp3.txt").write_text("drei")
    (corpus / "bert/trois-é.txt").write_text("not this one")
    (corpus / "top.txt").write_bytes(b"\xff\xfe")
    (corpus / "anna/README.txt").write_text("nothing")
    assert manifest(corpus, tmp_path / "m", "--language", "de") == 0
    said = capsys.readouterr()
    assert "2 with transcript" in said.out and "3 files without transcript" in said.err
    found = {
        s.recording_id: s for s in SupervisionSet.from_file(tmp_path / "m/supervisions.jsonl.gz")
    }
    assert {k: s.text for k, s in found.items()} == {
        "anna/one": "eins, zwei",
        "bert/trois-é": "drei",
    }
    assert found["anna/one"].duration == 0.5 and found["anna/one"].language == "de"
    unmatched = lines(tmp_path / "m/texts_unmatched.jsonl")
    problems = {u["text"].split("/")[-1]: u["reason"] for u in unmatched if "text" in u}
    assert problems == {
        "README.txt": "no audio of this name",
        "trois-é.txt": "no audio of this name",
        "top.txt": "not UTF-8 text",
    }
    assert len([u for u in unmatched if "audio" in u]) == 3


def test_a_table_of_texts(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = corpus / "texts.tsv"
    table.write_text(
        "path\ttext\tspeaker\n"
        "anna/one\tby id\tAnna A.\n"
        "anna/two.flac\tby path\n"
        f"{corpus}/bert/deep/one.ogg\tabsolute\t\n"
        "trois-é\tby name\r\n"
        "one\tambiguous\n"
        "\n"
        "my audio/top.wav\tfrom here\n"
        "top.wav\tagain\n"
        "nobody.wav\tlost\n"
        "no tab at all\n"
    )
    words = ["--texts", str(table), "--speaker-from", "folder"]
    assert manifest(corpus, tmp_path / "m", *words) == 0
    cuts = {c.id: c for c in CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")}
    assert {k: (c.supervisions[0].text, c.supervisions[0].speaker) for k, c in cuts.items()} == {
        "anna/one": ("by id", "Anna A."),
        "anna/two": ("by path", "anna"),
        "bert/deep/one": ("absolute", "deep"),
        "bert/trois-é": ("by name", "bert"),
        "top": ("from here", None),
    }
    said = capsys.readouterr()
    assert "5 with transcript, 4 speakers (1 file without)" in said.out
    assert "4 transcripts not used" in said.err
    reasons = [u["reason"] for u in lines(tmp_path / "m/texts_unmatched.jsonl")]
    assert reasons == [
        "several files have this name: one",
        "a second line for top.wav; the first is used",
        "no audio of this name: nobody.wav",
        "1 columns where at least 2 are wanted",
    ]


def table_of(corpus, tmp_path, text: str) -> Texts:
    """What the transcripts `text` are for the files a/one.wav and a/two.wav."""
    table = tmp_path / "table.tsv"
    table.write_text(text)
    return texts_of_table(str(table), ["a/one.wav", "a/two.wav"], ["one", "two"])


@pytest.mark.parametrize(
    "lines",
    [
        "one\thello\tAnna\tru\n",
        "path\ttext\tspeaker\tlanguage\none\thello\tAnna\tru\n",
        "ID\tsomething\none\thello\tAnna\tru\n",
        "\ufefffile\ttext\tlang\tspeaker\r\none.wav\thello\tru\tAnna\r\n",
        "client_id\tpath\tsentence\tup_votes\tlocale\nAnna\tone.wav\thello\t2\tru\n",
    ],
)
def test_columns_of_a_table(corpus, tmp_path, lines):
    assert table_of(corpus, tmp_path, lines).found == {0: Transcript("hello", "Anna", "ru")}


def test_a_file_called_like_a_column_is_no_header(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("name\ttext\n")
    assert texts_of_table(str(table), ["name.wav"], ["name"]).found == {0: Transcript("text")}


def test_names_of_two_forms_of_unicode_are_one(tmp_path):
    composed, apart = "\u00e9t\u00e9", "e\u0301te\u0301"
    table = tmp_path / "table.tsv"
    for here, there in ((composed, apart), (apart, composed)):
        for name in (here, f"{here}.wav", f"a/{here}.wav"):
            table.write_text(f"{name}\tbonjour\n")
            found = texts_of_table(str(table), [f"a/{there}.wav"], [there]).found
            assert found == {0: Transcript("bonjour")}
    (tmp_path / f"{composed}.wav").touch()
    (tmp_path / f"{apart}.txt").write_text("bonjour")
    texts = texts_beside([str(tmp_path / f"{composed}.wav")], ".txt")
    assert texts.found == {0: Transcript("bonjour")} and not texts.problems


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("x.wav\ta\ny.wav\tb\nz.wav\tc\n",
         "none of its 3 lines names one of the 2 files; lines: 'x.wav', 'y.wav', ...; "
         "files: 'one', 'two'"),
        ("path\ttext\n", "none of its 0 lines names one of the 2 files; lines: none"),
        ("", "none of its 0 lines"),
        ("one|hello\n", "table.tsv:1: 1 columns where 2 to 4 are wanted"),
    ],
)  # fmt: skip
def test_a_table_of_which_no_line_fits_is_refused(corpus, tmp_path, lines, message):
    with pytest.raises(UserError, match=re.escape(message)):
        table_of(corpus, tmp_path, lines)


def test_languages_of_a_table_and_of_the_flag(corpus, tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("path\ttext\tlanguage\nanna/one\tпривет\tru\nanna/two\thello\n")
    words = ["--texts", str(table), "--language", "English"]
    assert manifest(corpus, tmp_path / "m", *words) == 0
    cuts = {c.id: c for c in CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")}
    found = [cuts[f"anna/{n}"].supervisions[0].language for n in ("one", "two")]
    assert found == ["ru", "English"]


def test_speakers_and_groups_by_expression(corpus, tmp_path, capsys):
    words = ["--speaker-from", "^([^/]+)/", "--group-by", "one|two"]
    assert manifest(corpus, tmp_path / "m", *words) == 0
    cuts = {c.id: c for c in CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")}
    speakers = {k: c.supervisions[0].speaker if c.supervisions else None for k, c in cuts.items()}
    assert set(speakers.values()) == {"anna", "bert", None} and speakers["top"] is None
    groups = {k: c.custom["group"] for k, c in cuts.items()}
    assert groups["anna/one"] == groups["bert/deep/one"] == "one"
    assert groups["top"] == "top" and groups["anna/two"] == "two"
    assert manifest(corpus, tmp_path / "m", "--group-by", "folder") == 0
    assert "4 groups" in capsys.readouterr().out


def test_multichannel_and_missing_lengths(tmp_path):
    """The length of an MP3 without a Xing header is what decoding gives."""
    save(tmp_path / "in/eight.wav", channels=8)
    mp3 = save(tmp_path / "in/a.mp3", 3.0, 44100)
    data = mp3.read_bytes()
    if (at := data.find(b"Xing")) < 0:
        at = data.find(b"Info")
    assert at > 0
    second = data.find(data[:2], 400)
    mp3.write_bytes(data[second:])  # the frame with the header goes
    assert manifest(tmp_path / "in", tmp_path / "m") == 0
    cuts = {c.id: c for c in CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")}
    assert cuts["eight"].channel == list(range(8)) and cuts["eight"].load_audio().shape[0] == 8
    assert 2.9 < cuts["a"].duration < 3.1
    # (lhotse itself stops in the middle of such a file)
    assert sum(b.shape[1] for b in cut_blocks(cuts["a"])) == cuts["a"].num_samples


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--input", "nowhere"], "nowhere"),
        (["--speaker-from", "("], "--speaker-from (: no regular expression"),
        (["--group-by", "["], "--group-by [: no regular expression"),
        (["--texts", "nowhere.tsv"], "--texts nowhere.tsv: No such file"),
        (["--text-suffix", "txt"], "--text-suffix txt: give an ending"),
        (["--out-dir", "/dev/null/x"], "--out-dir /dev/null/x"),
    ],
)
def test_mistakes(corpus, tmp_path, capsys, flags, message):
    given = {"--input": str(corpus), "--out-dir": str(tmp_path / "m"), flags[0]: flags[1]}
    assert main(["manifest", *(word for pair in given.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm audio manifest: error: ") and error.count("\n") == 1
    assert message in error


def test_a_manifest_is_no_input_and_nothing_usable_no_output(corpus, tmp_path, capsys):
    assert manifest(corpus, tmp_path / "m") == 0
    assert manifest(tmp_path / "m/cuts.jsonl.gz", tmp_path / "n") == 2
    assert "is a manifest already" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.wav").write_bytes(b"?")
    assert manifest(tmp_path / "bad", tmp_path / "n") == 2
    assert "no cut is left, 1 item skipped" in capsys.readouterr().err
    assert [f.name for f in (tmp_path / "n").iterdir()] == ["skipped.jsonl"]


def test_subcommands(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    assert "augment" in capsys.readouterr().out
    assert main(["manifset"]) == 2
    assert "did you mean 'manifest'" in capsys.readouterr().err


def test_damaged_files_are_warned_of_again_when_they_are_read_by_their_manifest(tmp_path, capsys):
    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16000)
    soundfile.write(folder / "b.wav", np.zeros(1000), 16000)
    whole = (folder / "a.flac").read_bytes()
    (folder / "a.flac").write_bytes(whole[: len(whole) // 2])
    assert manifest(folder, tmp_path / "m") == 0
    (line,) = map(json.loads, (tmp_path / "m/warned.jsonl").read_text().splitlines())
    cuts = {c.id: c for c in CutSet.from_file(tmp_path / "m/cuts.jsonl.gz")}
    assert line["id"] == "a" and f"{cuts['a'].num_samples} of 40000 samples" in line["reason"]
    assert "1 item incomplete, damaged or unlike the manifest" in capsys.readouterr().err
    notes = []
    read = sum(b.shape[1] for b in cut_blocks(cuts["a"], notes=notes))
    promises = f"its header promises 40000 samples, its manifest has {read}"
    assert read == cuts["a"].num_samples and promises in notes[0]
    # mended, it is not warned of any more
    (folder / "a.flac").write_bytes(whole)
    assert manifest(folder, tmp_path / "m") == 0
    assert not (tmp_path / "m/warned.jsonl").exists()
