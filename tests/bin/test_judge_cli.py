"""`rvqlm judge` and `rvqlm protocol` on recordings of tones and noise: folders, tables and token
directories, samples with and without prompts, what cannot be read, and what results are called."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from experiments import write

import rvqlm.bin.judge
import rvqlm.bin.main
import rvqlm.bin.protocol
from rvqlm.bin.generate import GenerateArgs
from rvqlm.inference.batch_file import read_rows
from rvqlm.judging import run
from rvqlm.judging.judge import Column, Judge, Nothing, Score
from rvqlm.reports.judged import Judged

RATE = 16000
SIGNAL = ("--judges", "signal", "distortion", "codec-latents")


def judge(*words) -> int:
    return rvqlm.bin.judge.main([str(w) for w in words])


def protocol(*words) -> int:
    return rvqlm.bin.protocol.main([str(w) for w in words])


def sweep(seed: int, seconds: float = 1.0) -> np.ndarray:
    """Harmonics that glide, and some noise."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(150 + 50 * np.sin(2 * np.pi * (1 + seed) * t)) / RATE
    audio = sum(np.sin(k * phase) / k for k in range(1, 6)) + 0.05 * rng.standard_normal(len(t))
    return 0.15 * audio


def save(path: Path, audio: np.ndarray, about: dict | None = None, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)
    if about is not None:
        write(path.with_suffix(".json"), {"kind": "conditioned"} | about)
    return path


def result_in(folder: Path) -> dict:
    (path,) = folder.glob("judged_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


class Listener(Judge):
    """Says what it is shown."""

    name, columns = "listener", (Column("seconds", "higher", "how long the clip is"),)
    clips: list = []

    def __init__(self, options):
        self.model = "listener-1"

    def score(self, clip):
        if clip.sound.seconds < 0.2:
            raise Nothing("too short")
        self.clips.append(clip)
        return {"seconds": Score(clip.sound.seconds)}


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setitem(run.JUDGES, "listener", Listener)
    monkeypatch.setattr(Listener, "clips", [])
    return Listener.clips


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "voices"
    for seed, name in enumerate("abcd"):
        save(folder / f"{name}.wav", sweep(seed))
        (folder / f"{name}.txt").write_text(f"text of {name}")
    return folder


@pytest.fixture(scope="module")
def tokens(recordings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "data"
    for words in (
        ["tokenize", "--input", str(recordings), "--out-dir", str(out)],
        ["split", "--manifest-dir", str(out), "--valid", "0.2", "--test", "0.5"],
        ["index", "--manifest-dir", str(out)],
    ):
        assert rvqlm.bin.main.main(words) == 0
    return out


def test_recordings_beside_their_codec(recordings, tmp_path, capsys):
    words = ("--references", recordings, "--texts", ".txt", "--codec", "spectral")
    assert judge(*words, "--out", tmp_path, *SIGNAL) == 0
    out = capsys.readouterr().out
    assert "recordings: 4 clips" in out and "distortion.mel" in out
    found = result_in(tmp_path)
    assert found["codec"]["name"] == "spectral" and found["judges"]["signal"]["model"]
    summary = found["summary"]
    assert summary["recordings"]["distortion.mel"]["mean"] == 0
    assert 0 < summary["codec"]["distortion.mel"]["mean"] < 1
    low, high = summary["codec"]["distortion.mel"]["interval"]
    assert low <= summary["codec"]["distortion.mel"]["mean"] <= high
    assert {(row["name"], row["view"]) for row in found["rows"]} == {
        (name, view) for name in "abcd" for view in ("recordings", "codec")
    }
    assert found["rows"][0]["text"] == "text of a"
    # the same of one recording alone
    assert judge(*words, "--num", 1, "--out", tmp_path / "one.json", *SIGNAL) == 0
    alone = json.loads((tmp_path / "one.json").read_text())
    assert alone["rows"] == found["rows"][:2]
    assert alone["summary"]["codec"]["distortion.mel"]["interval"] is None


def test_samples_of_a_split(tokens, recordings, tmp_path, capsys):
    names = [json.loads(line)["id"] for line in _lines(tokens / "cuts_test.jsonl.gz")]
    folder, rng = tmp_path / "exp" / "samples", np.random.default_rng(0)
    settings = {"temperature": 0.9, "top_k": 50, "cfg_scale": 3.0}
    for name in names:
        about = {"prompt": name, "model": "codec-lm", "step": 7, "settings": settings}
        audio = soundfile.read(recordings / f"{name}.wav")[0]
        save(folder / f"copy-{name}.wav", audio, about)
        save(folder / f"conditioned-{name}-01.wav", 0.1 * rng.standard_normal(RATE), about)
    assert judge("--samples", tmp_path / "exp", "--references", tokens, *SIGNAL) == 0
    (path,) = folder.glob("judged_*.json")
    assert path.name.startswith("judged_data-test_codec-lm-7-t0.9-k50-g3_signal+distortion+codec-")
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["rows"] if row["view"] == "samples"}
    for name in names:
        copy, noise = rows[f"copy-{name}"], rows[f"conditioned-{name}-01"]
        assert copy["recording"] == noise["recording"] == name
        assert copy["scores"]["distortion.mel"][0] < 0.01 < noise["scores"]["distortion.mel"][0]
    views = found["summary"]
    assert views["samples"]["distortion.mel"]["recordings"] == len(names)
    assert views["samples"]["codec-latents.frechet"]["mean"] > 0
    assert not found["left_out"]
    # as the report reads it
    judged = Judged.read([tmp_path / "exp"])
    silence = judged.figures["signal.silence"]
    assert silence.text("samples").endswith(" %") and " to " in silence.within("samples")
    assert list(judged.views) == ["samples", "codec", "recordings"]


def _lines(path: Path) -> list[bytes]:
    import gzip

    return gzip.open(path).read().splitlines()


def test_two_folders_as_sets(recordings, tmp_path):
    rng = np.random.default_rng(0)
    for seed, name in enumerate("wxyz"):
        save(
            tmp_path / "same" / f"{name}.wav", soundfile.read(recordings / f"{'abcd'[seed]}.wav")[0]
        )
        noisy = sweep(seed) + 0.05 * rng.standard_normal(RATE)
        save(tmp_path / "noisy" / f"{name}.wav", noisy)
        save(tmp_path / "noise" / f"{name}.wav", 0.2 * rng.standard_normal(RATE))
    found = {}
    for name in ("same", "noisy", "noise"):
        words = ("--samples", tmp_path / name, "--references", recordings, "--unpaired")
        assert judge(*words, "--codec", "spectral", "--judges", "codec-latents") == 0
        found[name] = result_in(tmp_path / name)["summary"]["samples"]
    for distance in ("frechet", "kernel"):
        same, noisy, noise = (
            found[n][f"codec-latents.{distance}"]["mean"] for n in ("same", "noisy", "noise")
        )
        assert abs(same) < 1e-9 and same < noisy < noise


def test_prompts_are_no_work_of_the_model(recordings, listener, tmp_path, capsys):
    folder = tmp_path / "samples"
    prompt = {"prompt": str(recordings / "a.wav"), "prompt_seconds": 0.4}
    played = {"conditions": {"midi": "a.mid", "midi_start": "2.5"}}
    save(folder / "continuation-a.wav", sweep(0), prompt | played)
    save(folder / "said.wav", sweep(1), prompt | {"conditions": {"text": "before and after"}})
    save(folder / "alone.wav", sweep(2), {"conditions": {"text": "text of b", "language": "en"}})
    words = ("--samples", folder, "--references", recordings, "--texts", ".txt")
    assert judge(*words, "--judges", "listener", "--codec", "none") == 0
    clips = {c.name: c for c in listener if c.view == "samples"}
    assert clips["continuation-a"].sound.seconds == pytest.approx(0.6)
    assert clips["continuation-a"].recording == clips["said"].recording == "a"
    # what is behind the prompt is compared with what is behind it in the recording
    assert clips["continuation-a"].reference.seconds == pytest.approx(0.6)
    assert clips["continuation-a"].voice.seconds == pytest.approx(1)
    assert clips["continuation-a"].midi == ("a.mid", 2.9)  # where the prompt ends
    assert clips["said"].text is None  # it is that of the prompt too
    assert clips["alone"].recording == "b" and clips["alone"].text == "text of b"
    listener.clear()
    assert judge(*words, "--judges", "listener", "--keep-prompts") == 0
    clips = {c.name: c for c in listener if c.view == "samples"}
    assert clips["said"].text == "before and after"
    assert clips["said"].sound.seconds == pytest.approx(1)


def test_a_table_says_what_is_what(recordings, listener, tmp_path):
    table = tmp_path / "task.tsv"
    table.write_text(
        "name\tpath\ttext\tlanguage\tvoice\tpart\n"
        f"one\t{recordings}/a.wav\twhat is new\ten\t{recordings}/b.wav\tnew\n"
        f"two\t\tall of it\tde\t{recordings}/c.wav\twhole\n"
    )
    about = {"prompt_seconds": 0.25, "conditions": {"text": "more than that"}}
    for name in ("one", "two"):
        save(tmp_path / "made" / f"{name}.wav", sweep(5), about)
    words = ("--samples", tmp_path / "made", "--references", table, "--judges", "listener")
    assert judge(*words, "--codec", "none") == 0
    clips = {c.name: c for c in listener if c.view == "samples"}
    assert (clips["one"].text, clips["two"].text) == ("what is new", "all of it")
    assert clips["one"].sound.seconds == pytest.approx(0.75)
    assert clips["one"].reference.seconds == pytest.approx(1)  # of what is new alone
    assert clips["two"].sound.seconds == pytest.approx(1) and clips["two"].reference is None
    assert clips["two"].language == "de" and clips["two"].voice is not None
    assert [c.name for c in listener if c.view == "recordings"] == ["one"]
    assert next((tmp_path / "made").glob("judged_task_*"))


def test_one_bad_file_does_not_end_it(recordings, listener, tmp_path, capsys):
    save(tmp_path / "a.wav", sweep(0))
    save(tmp_path / "b.wav", sweep(1)[:1000])
    (tmp_path / "c.wav").write_bytes(b"no audio")
    assert judge("--samples", tmp_path, "--judges", "listener", "ctc", "codec-latents") == 0
    err = capsys.readouterr().err
    assert "not judged by listener, samples: too short (1 clip)" in err
    assert "left out: " in err and "c.wav" in err
    assert "not run: ctc: no weights given: --weights ctc=PATH" in err
    assert "not run: codec-latents: no codec" in err
    found = result_in(tmp_path)
    assert found["not_run"].keys() == {"ctc", "codec-latents", "ceiling"}
    assert len(found["left_out"]) == 1 and len(found["rows"]) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give --samples, --references, or both"),
        (["--samples", "nowhere"], "nothing there"),
        (["--samples", ".", "--judges", "jury"], "there are signal"),
        (["--samples", ".", "--weights", "utmos"], "give JUDGE=PATH"),
        (["--samples", ".", "--unpaired"], "goes with"),
        (["--samples", "x.wav", "--texts", "t.tsv"], "is of a folder of --references"),
        (["--samples", "x.wav", "--references", "other"], "none of 1 sample is one of other"),
        (["--samples", "x.wav", "--judges", "whisper"], "no judge is here: whisper"),
        (["--samples", "x.wav", "--judges", "ctc", "--weights", "ctc=gone"], "nothing there"),
        (["--samples", "x.wav", "--judges", "signal", "--out", "no/a.json"], "make it first"),
        (["--samples", "x.wav", "--codec", "no/codec", "--judges", "signal"], "no/codec"),
        (["--samples", "empty"], "--samples empty: no audio"),
        (["--references", "nowhere"], "--references nowhere: no such"),
        (["--references", "bad.tsv"], "the first line is"),
        (["--references", "short.tsv"], "short.tsv:2: 1 columns, not 2"),
    ],
)
def test_mistakes(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.wav", sweep(0))
    save(tmp_path / "other" / "y.wav", sweep(0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tsv").write_text("name\tfile\nx\tx.wav\n")
    (tmp_path / "short.tsv").write_text("name\tpath\nx\n")
    assert judge(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("error:") == 1


def test_the_name_carries_what_changes_figures(recordings, tmp_path):
    for seed, more in enumerate([(), ("--keep-prompts",), ("--codec", "none")]):
        save(tmp_path / "a.wav", sweep(0))
        assert judge("--samples", tmp_path, "--judges", "signal", *more) == 0
        assert len(list(tmp_path.glob("judged_*"))) == min(seed, 1) + 1  # the last is the first


def test_judges_are_listed(capsys):
    assert judge("--list-judges", "--weights", "ctc=nowhere") == 0
    out = capsys.readouterr().out
    for name in (*run.JUDGES, *run.SETS):
        assert f"\n{name} " in f"\n{out}"
    assert "--weights ctc=nowhere: nothing there" in out


# ---------------------------------------------------------------------------------- protocols


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("libri") / "LibriSpeech" / "test-clean"
    for speaker, seconds in ((61, (5, 6, 12)), (121, (4.5, 7)), (237, (5,))):
        folder = root / str(speaker) / "70968"
        lines = []
        for n, length in enumerate(seconds):
            id = f"{speaker}-70968-{n:04d}"
            save(folder / f"{id}.flac", 0.1 * np.ones(round(length * RATE)))
            lines.append(f"{id} WORDS OF {id}")
        (folder / f"{speaker}-70968.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def rows_of(path: Path) -> list[dict]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"))) for line in lines]


@pytest.mark.parametrize("give", ["voice", "prompt"])
def test_librispeech_cross_sentence(librispeech, tmp_path, give):
    words = ("librispeech", "--corpus-dir", librispeech, "--out-dir", tmp_path, "--give", give)
    assert protocol(*words) == 0
    name = f"librispeech-test-clean-cross-{give}-seed0"
    prompts, references = (rows_of(tmp_path / f"{name}{end}") for end in (".prompts.tsv", ".tsv"))
    # 12 s are too long, and who has said one thing only has no other voice
    assert [r["name"] for r in references] == [
        *("121-70968-0000", "121-70968-0001", "61-70968-0000", "61-70968-0001"),
    ]
    for asked, wanted in zip(prompts, references):
        voice = Path(wanted["voice"])
        assert voice.exists() and Path(wanted["path"]).exists()
        assert voice.stem != wanted["name"] and wanted["name"].startswith(voice.stem.split("-")[0])
        assert wanted["text"] == f"WORDS OF {wanted['name']}" and wanted["part"] == "new"
        before = f"WORDS OF {voice.stem} " if give == "prompt" else ""
        assert asked["text"] == before + wanted["text"] and asked[give] == str(voice)
        assert asked.keys() - {"prompt_seconds"} == {"name", "text", "language", give}
        assert asked.get("prompt_seconds") == ("10" if give == "prompt" else None)


def test_librispeech_continuation(librispeech, tmp_path, listener):
    words = ("librispeech", "--corpus-dir", librispeech, "--out-dir", tmp_path)
    assert protocol(*words, "--task", "continuation", "--max-seconds", 6.5) == 0
    name = "librispeech-test-clean-continuation-4to6.5s"
    prompts, references = (rows_of(tmp_path / f"{name}{end}") for end in (".prompts.tsv", ".tsv"))
    args = GenerateArgs("exp")
    rows = [*read_rows(str(tmp_path / f"{name}.prompts.tsv"), args, lambda args: None)]
    assert all(row and not problem for row, problem in rows)  # as rvqlm generate reads them
    assert len(prompts) == 4 and all(r["part"] == "whole" for r in references)
    assert all(p["prompt"] == r["path"] for p, r in zip(prompts, references))
    assert {p["prompt_seconds"] for p in prompts} == {"3"}
    # what rvqlm generate makes of the list is found again
    for row in prompts:
        about = {"prompt": row["prompt"], "prompt_seconds": 0.3}
        save(tmp_path / "made" / f"{row['name']}.wav", sweep(0), about)
    words = ("--samples", tmp_path / "made", "--references", tmp_path / f"{name}.tsv")
    assert judge(*words, "--judges", "listener", "--codec", "none") == 0
    assert {c.text for c in listener} == {r["text"] for r in references}


def test_seed_tts(tmp_path, capsys):
    folder = tmp_path / "zh"
    save(folder / "prompt-wavs" / "p.wav", sweep(0))
    save(folder / "wavs" / "g.wav", sweep(1))
    lines = "u1|说什么|prompt-wavs/p.wav|你好\n\nu2|说什么|prompt-wavs/p.wav|再见|wavs/g.wav\n"
    (folder / "meta.lst").write_text(lines, encoding="utf-8")
    assert protocol("seed-tts", "--meta", folder / "meta.lst", "--out-dir", tmp_path) == 0
    prompts = rows_of(tmp_path / "seed-tts-zh-meta-voice.prompts.tsv")
    references = rows_of(tmp_path / "seed-tts-zh-meta-voice.tsv")
    assert prompts == [
        {"name": n, "text": t, "language": "zh", "voice": f"{folder}/prompt-wavs/p.wav"}
        for n, t in (("u1", "你好"), ("u2", "再见"))
    ]
    assert [r["path"] for r in references] == ["", "zh/wavs/g.wav"]
    for text, message in (("a|b", ":1: 2 fields"), ("a|b|no.wav|c", "no file"), ("", "no line")):
        (folder / "meta.lst").write_text(text)
        assert protocol("seed-tts", "--meta", folder / "meta.lst", "--out-dir", tmp_path) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "meta.lst").write_text(lines)
    assert protocol("seed-tts", "--meta", tmp_path / "meta.lst", "--out-dir", tmp_path) == 2
    assert "--language" in capsys.readouterr().err


def test_scp_files_for_versa(recordings, tmp_path):
    for name in "ab":
        save(tmp_path / "made" / f"{name}.wav", sweep(0), {"conditions": {"text": f"says {name}"}})
    save(tmp_path / "made" / "with space.wav", sweep(0))
    words = ("--samples", tmp_path / "made", "--references", recordings)
    assert protocol("versa", *words, "--out-dir", tmp_path / "scp") == 0
    lines = {p.name: p.read_text().splitlines() for p in (tmp_path / "scp").iterdir()}
    assert lines["pred.scp"][2] == f"with_space {tmp_path}/made/with space.wav"
    assert lines["gt.scp"] == [f"{n} {recordings}/{n}.wav" for n in "ab"]
    assert lines["text"] == ["a says a", "b says b"]


def test_other_layouts_are_refused(recordings, tmp_path, capsys):
    words = ("librispeech", "--corpus-dir", recordings, "--out-dir", tmp_path)
    assert protocol(*words) == 2 and "trans.txt" in capsys.readouterr().err
    assert protocol(*words, "--task", "continuation", "--give", "prompt") == 2
    assert "its own beginning" in capsys.readouterr().err
