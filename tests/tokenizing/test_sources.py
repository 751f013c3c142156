"""What `rvqlm tokenize` can be pointed at."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet
from tokenize_fixtures import config, lines

from rvqlm.audio.ffmpeg import find_ffmpeg
from rvqlm.audio.source import Listing
from rvqlm.audio.sources import open_source
from rvqlm.errors import UserError
from rvqlm.tokenizing import tokenize

pytestmark = pytest.mark.usefixtures("peaks")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.yaml"])
def test_recordings_manifest(corpus, tmp_path, name):
    recordings = RecordingSet.from_dir(corpus, "*.wav")
    recordings.to_file(tmp_path / name)
    tokenize.tokenize(config(tmp_path / name, tmp_path / "out", jobs=2))
    made = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz")
    assert [c.id for c in made] == [r.id for r in recordings]


def test_glob_and_single_file(corpus, tmp_path):
    tokenize.tokenize(config(corpus / "speaker1" / "*.wav", tmp_path / "a"))
    assert [c["id"] for c in lines(tmp_path / "a" / "cuts.jsonl.gz")][:2] == ["001", "004"]
    tokenize.tokenize(config(corpus / "speaker1" / "004.wav", tmp_path / "b"))
    assert [c["id"] for c in lines(tmp_path / "b" / "cuts.jsonl.gz")] == ["004"]


def test_files_of_one_name_keep_their_suffix(corpus):
    shutil.copy(corpus / "speaker0" / "000.wav", corpus / "speaker0" / "000.flac")
    ids = [*open_source(str(corpus)).ids()]
    assert ids[:3] == ["speaker0/000.flac", "speaker0/000.wav", "speaker0/003"]
    assert len(set(ids)) == 25


def test_work_is_divided_by_cost():
    rng = np.random.default_rng(0)
    for n, parts in ((1, 1), (5, 5), (100, 3), (1000, 7), (3, 3)):
        ranges = Listing(rng.uniform(0.1, 1, n), "", None).split(parts)
        assert len(ranges) == parts
        assert [i for a, b in ranges for i in range(a, b)] == list(range(n))
    costs = np.ones(100)
    costs[:10] = 10
    (a, b), (c, d) = Listing(costs, "", None).split(2)
    assert abs(costs[a:b].sum() - costs[c:d].sum()) <= 10


def manifest_of(tmp_path, *documents, name="m.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


def test_input_that_nothing_can_be_made_of(tmp_path, corpus):
    def error(path):
        with pytest.raises(UserError) as e:
            tokenize.tokenize(config(path, tmp_path / "out"))
        assert not (tmp_path / "out").exists() and "\n" not in str(e.value)
        return str(e.value)

    assert "no such file or folder" in error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no audio" in error(tmp_path / "empty")
    assert "no file with audio" in error(tmp_path / "*.wav")
    (tmp_path / "x.txt").write_text("# nothing\n\n")
    assert "the list is empty" in error(tmp_path / "x.txt")
    (tmp_path / "x.pdf").touch()
    assert "neither audio" in error(tmp_path / "x.pdf")
    (tmp_path / "e.jsonl").touch()
    assert "manifest is empty" in error(tmp_path / "e.jsonl")
    segment = {"id": "s", "recording_id": "r", "start": 0, "duration": 1.0, "channel": 0}
    assert "the first, s: a supervision; give recordings" in error(manifest_of(tmp_path, segment))
    cut = {"id": "c", "start": 0, "duration": 1, "channel": 0, "type": "MonoCut"}
    assert "c: a MonoCut without a recording" in error(manifest_of(tmp_path, cut))
    mixed = {"id": "c", "duration": 1, "tracks": [], "type": "MixedCut"}
    assert "cut 'c' mixes several recordings" in error(manifest_of(tmp_path, mixed))
    recording = RecordingSet.from_dir(corpus, "*.wav").to_eager()[0].to_dict()
    assert f"two items have the id {recording['id']!r}" in error(
        manifest_of(tmp_path, recording, recording)
    )
    (tmp_path / "bad.jsonl").write_text(json.dumps(recording) + "\n{oops\n")
    assert "item 2 is no lhotse recording or cut" in error(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    assert "is cut short or damaged" in error(tmp_path / "bad.jsonl.gz")
    (tmp_path / "bad.yaml").write_text("{")
    assert "not a lhotse manifest" in error(tmp_path / "bad.yaml")


def test_wrong_rate_in_a_manifest_is_skipped(tmp_path, corpus):
    good, wrong = [r.to_dict() for r in RecordingSet.from_dir(corpus, "*.wav")][:2]
    wrong["sampling_rate"], wrong["duration"] = 16000, wrong["duration"] / 2
    out = tmp_path / "out"
    assert tokenize.tokenize(config(manifest_of(tmp_path, good, wrong), out)).skipped == 1
    assert "8000 Hz, its manifest says 16000" in lines(out / "skipped.jsonl")[0]["reason"]


def ids_of(*paths):
    return list(open_source([str(p) for p in paths]).ids())


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            soundfile.write(file, np.zeros(50), 8000, format="WAV")


def test_globs_at_any_depth(tmp_path, monkeypatch):
    touch(tmp_path / "a.wav", tmp_path / "x" / "b.wav", tmp_path / "x" / "y" / "c.wav")
    touch(tmp_path / "x" / "y" / "d.flac", tmp_path / "x" / ".hidden" / "e.wav")
    (tmp_path / "x" / "notes.txt").write_text("text")
    assert ids_of(tmp_path / "**" / "*.wav") == ["a", "x/b", "x/y/c"]
    assert ids_of(tmp_path / "x" / "**" / "*.wav") == ["b", "y/c"]
    assert ids_of(tmp_path / "**" / "y" / "*") == ["c", "d"]
    assert ids_of(tmp_path / "**") == ["a", "x/b", "x/y/c", "x/y/d"]
    assert ids_of(tmp_path / "x" / "*.wav") == ["b"]
    assert ids_of(tmp_path / "?" / "[a-b].wav") == ["b"]
    monkeypatch.chdir(tmp_path)
    assert list(open_source("**/*.flac").files) == ["x/y/d.flac"]
    assert ids_of("x/../**/*.wav") == ["a", "x/b", "x/y/c"]


def test_a_glob_of_one_manifest(corpus, tmp_path):
    RecordingSet.from_dir(corpus, "*.wav").to_file(tmp_path / "recordings.jsonl.gz")
    assert len(ids_of(tmp_path / "rec*.jsonl.gz")) == 24


def test_links_and_loops(tmp_path):
    """Every real file once: under its own name, or the first link's that leads to it."""
    data, store = tmp_path / "data", tmp_path / "store"
    touch(data / "v3" / "a.wav", store / "b.wav", store / "deep" / "c.wav")
    (data / "current").symlink_to("v3")  # sorts before what it points to
    (data / "v3" / "loop").symlink_to("..")
    (data / "v3" / "self").symlink_to(".")
    (data / "more").symlink_to(store)
    (data / "again").symlink_to(store)
    (store / "back").symlink_to(data)
    (data / "one.wav").symlink_to(data / "v3" / "a.wav")
    (data / "gone.wav").symlink_to("nowhere.wav")
    assert ids_of(data) == ["again/b", "again/deep/c", "gone", "v3/a"]
    assert ids_of(data / "**" / "*.wav") == ["again/b", "again/deep/c", "v3/a"]
    assert ids_of(store) == ["b", "back/current/a", "back/gone", "deep/c"]


def test_files_with_one_stem_in_different_folders(tmp_path):
    touch(tmp_path / "a" / "x.wav", tmp_path / "b" / "x.wav", tmp_path / "b" / "x.flac")
    touch(tmp_path / "b" / "x.wav.flac")
    assert ids_of(tmp_path) == ["a/x", "b/x.flac", "b/x.wav", "b/x.wav.flac"]
    assert ids_of(tmp_path / "a", tmp_path / "b") == ids_of(tmp_path)
    assert ids_of(tmp_path / "b", tmp_path / "b" / "x.flac", tmp_path / "a") == [
        "b/x.flac", "b/x.wav", "b/x.wav.flac", "a/x",
    ]  # fmt: skip


def test_a_list_of_paths(tmp_path, monkeypatch):
    touch(tmp_path / "audio" / "a b.wav", tmp_path / "audio" / "ü.wav", tmp_path / "here" / "c.wav")
    names = ["# a comment", "", "audio/a b.wav", "  audio/ü.wav\r", "here/gone.wav", "c.wav",
             str(tmp_path / "audio" / "a b.wav"), "audio/notes.txt"]  # fmt: skip
    (tmp_path / "audio" / "notes.txt").write_text("text")
    (tmp_path / "all.lst").write_bytes(b"\xef\xbb\xbf" + "\n".join(names).encode())
    monkeypatch.chdir(tmp_path / "here")  # c.wav is only here
    out = tmp_path / "out"
    summary = tokenize.tokenize(config(tmp_path / "all.lst", out))
    found = [c["id"] for c in lines(out / "cuts.jsonl.gz")]
    assert found == ["audio/a b", "audio/ü", "here/c"] and summary.skipped == 2
    reasons = {line["id"]: line["reason"] for line in lines(out / "skipped.jsonl")}
    assert reasons["here/gone"] == "no such file"
    assert reasons["audio/notes"].startswith("unreadable")


def test_names_that_are_no_text_and_folders_that_cannot_be_read(tmp_path, monkeypatch):
    folder = tmp_path / "audio"
    touch(folder / "fine.wav", folder / os.fsdecode(b"caf\xe9.wav"), folder / "closed" / "x.wav")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):  # chmod does not stop root
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tokenize.tokenize(config(folder, tmp_path / "out"))
    assert [c["id"] for c in lines(tmp_path / "out" / "cuts.jsonl.gz")] == ["fine"]
    reasons = {line["id"]: line["reason"] for line in lines(tmp_path / "out" / "skipped.jsonl")}
    assert reasons == {
        r"caf\xe9": "its name is no UTF-8 text; rename it",
        "closed": "a folder that cannot be listed",
    }


def test_files_and_manifests_together(corpus, tmp_path):
    recordings = RecordingSet.from_dir(corpus / "speaker1", "*.wav")
    recordings.to_file(tmp_path / "r.jsonl")
    inputs = [tmp_path / "r.jsonl", corpus / "speaker0", corpus / "speaker2"]
    source = open_source([str(p) for p in inputs])
    files = ids_of(corpus / "speaker0", corpus / "speaker2")
    expected = files + [r.id for r in recordings]
    assert list(source.ids()) == expected and len(source.scan()) == len(expected) == 24
    assert [i.id for i in source.items(5, 20)] == expected[5:20]
    tokenize.tokenize(config(inputs, tmp_path / "out", jobs=3))
    assert [c["id"] for c in lines(tmp_path / "out" / "cuts.jsonl.gz")] == expected
    with pytest.raises(UserError, match=r"the id '\d+' is in .*speaker1 too"):
        open_source([str(tmp_path / "r.jsonl"), str(corpus / "speaker1")]).scan()


def test_mixed_formats_go_through(tmp_path):
    """What soundfile writes and ffmpeg reads, at all rates, under names with blanks."""
    folder, tone = tmp_path / "in put", np.sin(np.arange(9000) / 20) * 0.5
    folder.mkdir()
    for name, rate, kind in (
        ("a b.mp3", 44100, {}), ("ü.ogg", 22050, {}), ("c.opus", 48000, {"subtype": "OPUS"}),
        ("d.flac", 96000, {}), ("e.wav", 192000, {}), ("f.aiff", 8000, {}), ("g.WAV", 11025, {}),
    ):  # fmt: skip
        form = {"format": "OGG"} if name.endswith("opus") else {}
        soundfile.write(folder / name, np.stack([tone] * 8, 1)[:, : 2 if form else 8]
                        if name in ("e.wav", "c.opus") else tone, rate, **kind, **form)  # fmt: skip
    make = ["-i", str(folder / "d.flac"), str(folder / "h.m4a")]
    subprocess.run([find_ffmpeg(), "-v", "error", *make], check=True)
    summary = tokenize.tokenize(config(folder, tmp_path / "out"))
    assert summary.num_cuts == 8 and summary.skipped == 0
    for cut, audio in zip(
        lines(tmp_path / "out" / "cuts.jsonl.gz"), lines(tmp_path / "out" / "audio_cuts.jsonl.gz")
    ):
        expected = round(
            audio["recording"]["num_samples"] * 8000 / audio["recording"]["sampling_rate"]
        )
        assert cut["custom"]["num_samples"] == expected > 300
