"""egs/ljspeech from a stand-in to the page, and what its manifests make of files that are wrong."""

import gzip
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soundfile
import warm

EGS = Path(__file__).resolve().parents[2] / "egs"


def run(recipe: str, script: str, *args: str, cwd: Path, status: int = 0, **environment) -> str:
    done = subprocess.run(
        [str(EGS / recipe / script), *map(str, args)], cwd=cwd, capture_output=True, text=True,
        env=warm.environment() | environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    if status:
        assert done.stderr.count("\n") == 1, done.stderr
    return done.stdout + done.stderr


def cuts(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def by_split(tokens: Path) -> dict[str, list[dict]]:
    return {name: cuts(tokens / f"cuts_{name}.jsonl.gz") for name in ("train", "valid", "test")}


def local(recipe: str, name: str):
    """The module local/NAME.py of a recipe: two recipes have files of one name."""
    known = f"{recipe}_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, EGS / f"{recipe}/local/{name}.py")
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


def stand_in(recipe: str, data: Path, name: str, *args: str) -> None:
    """A corpus smaller than that of --quick, and its codec, made here, where torch is loaded."""
    local("shared", "stand_in_codecs").make(data / "codecs", "facebook/encodec_24khz")
    assert local(recipe, "stand_in").main(["--out-dir", str(data / name), *args]) == 0


QUICK = (
    "--quick", "--train-minutes", "0.02", "--listen-minutes", "0.02", "--sentences", "1",
    "--judge", "0", "--data-dir", "my data", "--exp-dir", "exp",
)  # fmt: skip


def test_from_nothing_to_the_page(tmp_path):
    stand_in("ljspeech", tmp_path / "my data", "LJSpeech-1.1", "--clips", "2")
    said = run("ljspeech", "run.sh", *QUICK, "--stage", "1", cwd=tmp_path)
    assert "no problems found" in said and "error rate" in said
    tokens = tmp_path / "my data/tokens"
    info = json.loads((tokens / "tokens.json").read_text())["codec"]
    assert (info["name"], info["num_codebooks"]) == ("facebook/encodec_24khz", 8)
    chapters = {name: {cut["id"][:5] for cut in found} for name, found in by_split(tokens).items()}
    assert sorted(map(len, chapters.values())) == [1, 1, 3]  # each whole, in one of them
    assert len(set().union(*chapters.values())) == 5
    spoken = {cut["supervisions"][0]["text"] for cut in cuts(tokens / "cuts.jsonl.gz")}
    assert any("eighteen forty" in text for text in spoken)
    assert not any("1840" in text or "Mr." in text for text in spoken)
    verdict = json.loads((tmp_path / "exp/samples/recognition.json").read_text())
    assert len(verdict["rows"]) == 2
    page = (tmp_path / "exp/report.html").read_text(encoding="utf-8")
    assert "The old captain" in page and "Not on this page yet" not in page
    assert "is there already" in said and "training is finished" not in said


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "LJSpeech-1.1"
    folder.mkdir()
    local("ljspeech", "stand_in").make(folder, chapters=2, clips=2, seed=0)
    return folder


@pytest.fixture
def manifest(tmp_path, capsys):
    """local/manifests.py of the recipe: status, cuts, skipped, what it said."""
    manifests = local("ljspeech", "manifests")

    def make(corpus: Path, *args: str) -> tuple[int, list[dict], list[dict], str]:
        out = tmp_path / "manifests/cuts.jsonl.gz"
        words = ["--corpus-dir", str(corpus), "--out", str(out), *args]
        status = manifests.run_main(manifests.main, words)
        listed = out.with_name("skipped.jsonl")
        lines = listed.read_text().splitlines() if listed.exists() else []
        found = cuts(out) if status == 0 else []
        return status, found, [json.loads(line) for line in lines], capsys.readouterr().err

    return make


def test_the_stand_in_has_the_layout(corpus):
    assert {p.name for p in corpus.iterdir()} == {"README", "metadata.csv", "wavs"}
    lines = [line.split("|") for line in (corpus / "metadata.csv").read_text().splitlines()]
    assert [line[0] for line in lines] == ["LJ001-0001", "LJ001-0002", "LJ002-0001", "LJ002-0002"]
    assert all(len(line) == 3 for line in lines) and any(a != b for _, a, b in lines)
    for name, *_ in lines:
        info = soundfile.info(corpus / f"wavs/{name}.wav")
        assert (info.samplerate, info.channels, info.subtype) == (22050, 1, "PCM_16")
        assert 1 < info.duration < 10


def test_cuts_are_those_of_lhotse(corpus, manifest):
    from lhotse.recipes import prepare_ljspeech

    status, found, skipped, _ = manifest(corpus)
    assert status == 0 and not skipped
    theirs = prepare_ljspeech(corpus)
    assert [c["id"] for c in found] == sorted(r.id for r in theirs["recordings"])
    for cut in found:
        recording = theirs["recordings"][cut["id"]]
        said = theirs["supervisions"][cut["id"]]
        assert cut["recording"] == recording.to_dict()
        (ours,) = cut["supervisions"]
        assert ours["text"] == said.custom["normalized_text"] and ours["language"] == "en-us"
        assert ours["custom"] == {"orig_text": said.text}
        assert cut["custom"] == {"group": cut["id"][:5]}


def test_what_is_wrong_is_left_out_and_named(corpus, manifest):
    names = ("LJ001-0001", "LJ001-0002", "LJ002-0001")
    wavs = [corpus / f"wavs/{name}.wav" for name in names]
    wavs[0].write_bytes(b"no audio")
    wavs[1].unlink()
    shutil.copy(corpus / "wavs/LJ002-0002.wav", corpus / "wavs/LJ009-0001.wav")
    shutil.copy(corpus / "wavs/LJ002-0002.wav", corpus / "wavs/._LJ002-0002.wav")
    status, found, skipped, said = manifest(corpus, "--language", "de")
    assert status == 0 and [c["id"] for c in found] == ["LJ002-0001", "LJ002-0002"]
    assert found[0]["supervisions"][0]["language"] == "de"
    reasons = {line["id"]: line["reason"] for line in skipped}
    assert sorted(reasons) == ["LJ001-0001", "LJ001-0002", "LJ009-0001"]
    assert reasons["LJ001-0002"] == "a text without audio"
    assert reasons["LJ009-0001"] == "audio without a text"
    assert reasons["LJ001-0001"] == "unreadable: Format not recognised."
    assert "3 items skipped, listed in" in said and said.count("\n") == 1
    soundfile.write(wavs[2], [], 22050)  # a header and nothing
    status, found, skipped, _ = manifest(corpus)
    assert [c["id"] for c in found] == ["LJ002-0002"] and len(skipped) == 4


def test_mistakes_are_one_line(corpus, manifest, tmp_path):
    table = corpus / "metadata.csv"
    whole = table.read_text()
    for text, args, message in [
        (whole + "LJ003-0001|Only two.\n", (), "metadata.csv:5: 2 columns where the corpus has 3"),
        (whole, ("--group-by", "("), "--group-by (:"),
        ("", (), "no cut is left"),
    ]:
        table.write_text(text)
        for path in (corpus / "wavs").iterdir():
            if not text:
                path.unlink()
        status, _, _, said = manifest(corpus, *args)
        assert status == 2 and message in said and said.count("\n") == 1, said
    table.unlink()
    status, _, _, said = manifest(corpus)
    assert status == 2 and "is this the corpus' folder?" in said


def test_mistakes_stop_before_any_stage(tmp_path):
    for script, args, message in [
        ("run.sh", ("--model", "bert"), "--model bert is none of"),
        ("run.sh", ("--train-stage", "1 2"), "--train-stage is 0, or of valle"),
        ("run.sh", ("--quick", "--corpus-dir", "x"), "no --corpus-dir"),
        ("prepare.sh", ("--stand-in", "--corpus-dir", "x"), "exclude each other"),
        ("prepare.sh", ("--corpus-dir", "nowhere"), "--corpus-dir nowhere: no such folder"),
    ]:
        assert message in run("ljspeech", script, *args, cwd=tmp_path, status=2), message


def served(content: bytes):
    """A server of this machine that has these bytes, whatever it is asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def refuse_another_archive(recipe: str, message: str, folder: Path, *args: str) -> None:
    server = served(os.urandom(1000))
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        said = run(
            recipe, "prepare.sh", "--download-from", address, "--download-dir", folder / "down",
            "--stop-stage", "0", *args, cwd=folder, status=2,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert message in said
    assert not [p for p in (folder / "down").iterdir() if not p.name.startswith(".")]


def test_another_archive_is_refused(tmp_path):
    refuse_another_archive("ljspeech", "not the 2,748,572,632 that were published", tmp_path)
