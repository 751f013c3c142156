"""egs/libritts from a stand-in to the page, with a valle in two stages; its manifests."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from test_ljspeech import (
    QUICK,
    by_split,
    cuts,
    local,
    refuse_another_archive,
    run,
    stand_in,
)

PARTS = ("train-clean-100", "dev-clean", "test-clean")


def test_from_nothing_to_the_page(tmp_path):
    stand_in("libritts", tmp_path / "my data", "LibriTTS", "--clips", "2")
    stages = ("--model", "valle", "--train-stage", "1 2", "--stage", "1")
    said = run("libritts", "run.sh", *QUICK, *stages, cwd=tmp_path)
    assert "split by speaker" in said and "no problems found" in said and "error rate" in said
    tokens = tmp_path / "my data/tokens"
    division = json.loads((tokens / "splits.json").read_text())
    assert (division["by"], division["given"]) == ("speaker", "split")
    speakers = {
        name: {cut["supervisions"][0]["speaker"] for cut in found}
        for name, found in by_split(tokens).items()
    }
    parts = tmp_path / "my data/LibriTTS"
    for name, part in zip(("train", "valid", "test"), PARTS):
        assert speakers[name] == {p.name for p in (parts / part).iterdir()}
    assert len(set().union(*speakers.values())) == 8
    for n in (1, 2):
        assert (tmp_path / f"exp/stage{n}/best.pt").exists()
    own = json.loads((tmp_path / "exp/samples/conditioned-00.json").read_text())
    assert own["conditions"]["text"].startswith("The old captain")
    assert "test-clean" in json.dumps(own["conditions"])
    assert len(json.loads((tmp_path / "exp/samples/recognition.json").read_text())["rows"]) == 2
    page = (tmp_path / "exp/report.html").read_text(encoding="utf-8")
    assert "The old captain" in page and "Not on this page yet" not in page


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "LibriTTS"
    folder.mkdir()
    local("libritts", "stand_in").make(folder, PARTS, speakers=2, clips=2, seed=0)
    return folder


@pytest.fixture
def manifest(tmp_path, capsys):
    manifests = local("libritts", "manifests")

    def make(corpus: Path, *parts: str) -> tuple[int, str, str]:
        words = ["--corpus-dir", str(corpus), "--out-dir", str(tmp_path / "m"), "--parts", *parts]
        return manifests.run_main(manifests.main, words), *capsys.readouterr()

    return make


def test_the_stand_in_has_the_layout(corpus):
    assert {*PARTS, "SPEAKERS.txt", "CHAPTERS.txt", "LICENSE.txt"} <= {
        p.name for p in corpus.iterdir()
    }
    chapter = next((corpus / "dev-clean").glob("*/*"))
    name = f"{chapter.parent.name}_{chapter.name}"
    id = f"{name}_000000_000000"
    rows = [line.split("\t") for line in (chapter / f"{name}.trans.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == [id]
    assert (chapter / f"{id}.original.txt").read_text() == rows[0][1]
    assert (chapter / f"{id}.normalized.txt").read_text() == rows[0][2]
    book = (chapter / f"{name}.book.tsv").read_text().splitlines()
    assert len(book) == 2 and all(len(row.split("\t")) == 7 for row in book)  # one was left out
    info = soundfile.info(chapter / f"{id}.wav")
    assert (info.samplerate, info.channels, info.subtype) == (24000, 1, "PCM_16")


def test_cuts_are_those_of_lhotse(corpus, manifest, tmp_path):
    from lhotse.recipes import prepare_libritts

    assert manifest(corpus, *PARTS)[0] == 0
    theirs = prepare_libritts(corpus, list(PARTS))
    for part in PARTS:
        found = cuts(tmp_path / f"m/{part}/cuts.jsonl.gz")
        assert [c["id"] for c in found] == sorted(r.id for r in theirs[part]["recordings"])
        for cut in found:
            assert cut["recording"] == theirs[part]["recordings"][cut["id"]].to_dict()
            said = theirs[part]["supervisions"][cut["id"]].to_dict()
            assert cut["supervisions"] == [said | {"language": "en-us"}]
            assert said["gender"] in "FM" and said["custom"]["snr"] == 25.0
            assert cut["custom"] == {"split": part.split("-")[0]}


def test_what_is_wrong_is_left_out_and_named(corpus, manifest, tmp_path):
    first, second, *_ = sorted((corpus / "train-clean-100").rglob("*.wav"))
    shutil.copy(first, first.with_name(f"._{first.name}"))  # as archives of a Mac have them
    first.write_bytes(b"")
    second.rename(second.with_name("1092_134562_000013_000004.wav"))
    status, said, error = manifest(corpus, *PARTS)
    assert status == 0 and said.count("cuts.jsonl.gz: 2 cuts") == 3 and "3 items skipped" in error
    lines = (tmp_path / "m/train-clean-100/skipped.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["id"]: json.loads(line)["reason"] for line in lines}
    assert reasons[second.stem] == "a text without audio" and first.stem in reasons
    assert reasons["1092_134562_000013_000004"] == "audio without a text"
    assert len(cuts(tmp_path / "m/train-clean-100/cuts.jsonl.gz")) == 2
    # again: what is there stays
    status, said, _ = manifest(corpus, *PARTS)
    assert status == 0 and said.count("is there; remove it") == 3
    status, _, error = manifest(corpus, "test-other")
    assert status == 2 and "--parts test-other: there is no" in error and error.count("\n") == 1


def test_mistakes_stop_before_any_stage(tmp_path):
    said = run("libritts", "prepare.sh", "--parts", "dev-clean,train", cwd=tmp_path, status=2)
    assert "LibriTTS has no train" in said


def test_another_archive_is_refused(tmp_path):
    message = "dev-clean.tar.gz: its md5 is"
    refuse_another_archive("libritts", message, tmp_path, "--parts", "dev-clean")
