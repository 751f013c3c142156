"""Bad files, full disks, settings that contradict each other."""

import errno
import gzip
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from tokenize_fixtures import RATE, Stop, config, contents, interrupt_after, lines, spoil

from rvqlm import files
from rvqlm.audio import parts, sources
from rvqlm.audio.items import Outside
from rvqlm.data.store import RvqMmapWriter
from rvqlm.errors import UserError
from rvqlm.tokenizing import encode as token_encode
from rvqlm.tokenizing import shard as token_shard
from rvqlm.tokenizing import sidecar, tokenize
from rvqlm.tokenizing.shard import ShardLog

pytestmark = pytest.mark.usefixtures("peaks")


def test_bad_files_are_skipped_counted_and_listed(corpus, tmp_path, capsys):
    clean = tmp_path / "clean"
    tokenize.tokenize(config(corpus, clean))
    spoil(corpus)
    out = tmp_path / "out"
    summary = tokenize.tokenize(config(corpus, out, mono="refuse", jobs=2))
    assert summary.skipped == 7
    skipped = {line["id"]: line for line in lines(out / "skipped.jsonl")}
    assert len(skipped) == 7 and json.loads((out / "tokens.json").read_text())["skipped"] == 7
    for name, reason in (
        ("speaker0/a_empty", "empty file"),
        ("speaker0/b_text", "unreadable"),
        ("speaker1/c_zero", "zero-length"),
        ("speaker2/d_nan", "NaN"),
        ("speaker2/e_stereo", "2 channels"),
        ("speaker2/f_header", ""),
        ("speaker2/g_gone", "no such file"),
    ):
        assert reason in skipped[name]["reason"] and skipped[name]["path"].endswith(
            name[9:] + ".wav"
        )
    kept = [(c["id"], c["custom"]) for c in lines(out / "cuts.jsonl.gz")]
    assert kept == [(c["id"], c["custom"]) for c in lines(clean / "cuts.jsonl.gz")]
    assert [c["id"] for c in lines(out / "audio_cuts.jsonl.gz")] == [id for id, _ in kept]
    assert "7 items skipped" in capsys.readouterr().err


def test_all_bad_is_an_error_and_leaves_room_for_another_try(tmp_path):
    folder, out = tmp_path / "audio", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.wav").write_text("x" * 300)
    with pytest.raises(UserError, match=r"not one of 3 items.*a\.wav: unreadable.*skipped\.jsonl"):
        tokenize.tokenize(config(folder, out, jobs=2))
    assert [p.name for p in out.iterdir()] == ["skipped.jsonl"]
    soundfile.write(folder / "a.wav", np.zeros(128), RATE)  # 300 bytes as well
    assert tokenize.tokenize(config(folder, out)).num_cuts == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_damaged_files_are_kept_and_listed_once(corpus, tmp_path, monkeypatch, capsys, jobs):
    """However often the work is stopped; and the list is not there where nothing is damaged."""
    clean = tmp_path / "clean"
    tokenize.tokenize(config(corpus, clean))
    assert json.loads((clean / "tokens.json").read_text())["warned"] == 0
    assert not (clean / "warned.jsonl").exists()
    for name in ("speaker0/003", "speaker1/013", "speaker2/020"):
        path = corpus / f"{name}.wav"
        path.write_bytes(path.read_bytes()[:-8])
    whole, out = tmp_path / "whole", tmp_path / "out"
    capsys.readouterr()
    summary = tokenize.tokenize(config(corpus, whole, jobs=jobs))
    said = capsys.readouterr().err
    assert (summary.num_cuts, summary.skipped, summary.warned) == (24, 0, 3)
    assert f"3 items incomplete, damaged or unlike the manifest, listed in {whole}" in said
    listed = lines(whole / "warned.jsonl")
    assert [line["id"] for line in listed] == ["speaker0/003", "speaker1/013", "speaker2/020"]
    assert all(line["reason"].startswith("cut short: ") for line in listed)
    for items in (2, 5, 9):
        interrupt_after(monkeypatch, items)
        with pytest.raises(Stop):
            tokenize.tokenize(config(corpus, out, jobs=1))
    made = tokenize.tokenize(config(corpus, out, jobs=1))
    assert lines(out / "warned.jsonl") == listed and made.warned == 3
    assert tokenize.tokenize(config(corpus, out)).warned == 3  # as a finished folder tells it
    assert contents(out)["warned.jsonl"] == contents(whole)["warned.jsonl"]


def entries(path):
    """Cuts of a recording, two of them good, and what each of the others is skipped for."""
    source = {"type": "file", "channels": [0], "source": str(path)}
    recording = {"id": "r", "sources": [source], "sampling_rate": RATE, "num_samples": 4000,
                 "duration": 0.5}  # fmt: skip

    def cut(id, recording=recording, **fields):
        return {"id": id, "start": 0.0, "duration": 0.5, "channel": 0, "supervisions": [],
                "recording": recording, "type": "MonoCut", **fields}  # fmt: skip

    yield "", cut("first")
    yield "", cut(7, supervisions=[{"id": 8, "recording_id": 9, "start": 0, "duration": 0.5}])
    yield "start is -0.5: expected float >= 0.0", cut("a", start=-0.5)
    yield "duration is nan: expected float", cut("b", duration=float("nan"))
    yield "duration is inf: expected float", cut("c", duration=float("inf"))
    yield "duration is '1': expected float", cut("d", duration="1")
    yield "zero-length", cut("e", duration=0)
    yield "begins at 0.5 s, its recording ends at 0.5 s", cut("f", start=0.5)
    yield "ends at 9 s, its recording at 0.5 s", cut("g", duration=9)
    yield "the cut is on channel 5, its recording has [0]", cut("h", channel=5)
    yield "channel", cut("i", channel=[])
    yield "a MonoCut without a recording", cut("j", recording=None)
    yield (
        "recording.sampling_rate is 1: expected int >= 1000",
        cut("k", {**recording, "sampling_rate": 1}),
    )
    yield "recording.sources: expected array of length >= 1", cut("l", {**recording, "sources": []})
    yield "what lhotse understands", cut("m", {**recording, "transforms": [{"name": "No"}]})
    yield "what lhotse understands", cut("n", supervisions=[{"id": "s"}])
    yield "what lhotse understands", cut("o", type="Cat")
    yield "mixes several recordings", {"id": "p", "type": "MixedCut", "tracks": []}
    yield "a supervision; give recordings", {"id": "q", "start": 0, "duration": 1}
    yield "no such file", cut("r", {**recording, "sources": [{**source, "source": "gone.wav"}]})
    ran = {**source, "type": "command", "source": f"touch {path}.ran; cat {path}"}
    yield "a shell command", cut("s", {**recording, "sources": [ran]})


def test_bad_entries_of_a_manifest_are_skipped_one_by_one(tmp_path):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), RATE)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(cut) + "\n" for _, cut in entries(audio)))
    out = tmp_path / "out"
    summary = tokenize.tokenize(config(manifest, out))
    assert [c["id"] for c in lines(out / "cuts.jsonl.gz")] == ["first", "7"]
    reasons = {line["id"]: line["reason"] for line in lines(out / "skipped.jsonl")}
    assert len(reasons) == summary.skipped
    for why, cut in entries(audio):
        assert why in reasons.get(str(cut["id"]), ""), cut
    assert not (tmp_path / "a.wav.ran").exists()
    trusting = config(manifest, tmp_path / "t", outside=Outside(allow_commands=True))
    assert tokenize.tokenize(trusting).num_cuts == 3 and (tmp_path / "a.wav.ran").exists()
    assert [c["id"] for c in lines(tmp_path / "t" / "cuts.jsonl.gz")] == ["first", "7", "s"]


def test_the_other_commands_pass_over_bad_entries_too(tmp_path, capsys):
    from rvqlm.bin.audio import main

    audio, manifest = tmp_path / "a.wav", tmp_path / "m.jsonl"
    soundfile.write(audio, np.random.default_rng(0).uniform(-0.5, 0.5, 4000), RATE)
    manifest.write_text("".join(json.dumps(cut) + "\n" for _, cut in entries(audio)))
    bad = sum(bool(why) for why, _ in entries(audio))
    for command in (
        ["loudness", "--target-lufs=-23"],
        ["activity", "--min-window-seconds=0.2", "--rms-frame-seconds=0.2"],
        ["augment", "--speeds", "1.1", "--audio-dir", str(tmp_path / "copies")],
    ):
        common = ["--input", str(manifest), "--jobs", "1"]
        out = tmp_path / command[0] / "made.jsonl"
        assert main([*command, *common, "--out", str(out)]) == 0
        skipped = lines(out.with_name("made_skipped.jsonl"))
        assert len(skipped) == bad and f"{bad} items skipped" in capsys.readouterr().err
        assert not (tmp_path / "a.wav.ran").exists()
        assert any("--allow-commands" in line["reason"] for line in skipped)
        assert main([*command, *common, "--out", str(out), "--allow-commands"]) == 0
        assert len(lines(out.with_name("made_skipped.jsonl"))) == bad - 1
        (tmp_path / "a.wav.ran").unlink()
        capsys.readouterr()


def test_a_rate_that_no_recording_has(tmp_path):
    """Blown up to the codec's rate, a second would be hours."""
    soundfile.write(tmp_path / "a.wav", np.zeros(400), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    for name, rate in (("slow", 1), ("fast", 1 << 30)):
        data[24:28] = rate.to_bytes(4, "little")
        (tmp_path / f"{name}.wav").write_bytes(data)
    assert tokenize.tokenize(config(tmp_path, tmp_path / "out")).num_cuts == 1
    reasons = [line["reason"] for line in lines(tmp_path / "out" / "skipped.jsonl")]
    assert reasons[1] == "its header says 1 Hz; audio is taken from 1000 to 768000 Hz"
    assert "1.07374e+09 Hz" in reasons[0]


def test_an_error_of_any_kind_in_one_file_is_not_the_end(corpus, tmp_path, monkeypatch):
    real = parts.FilePart.blocks

    def blocks(self, *args):
        if self.path.endswith("004.wav"):
            raise soundfile.LibsndfileError(7, "inside: ")
        if self.path.endswith("005.wav"):
            raise IndexError("list index out of range")
        return real(self, *args)

    monkeypatch.setattr(parts.FilePart, "blocks", blocks)
    summary = tokenize.tokenize(config(corpus, tmp_path / "out", jobs=1))
    assert (summary.num_cuts, summary.skipped) == (22, 2)
    reasons = [line["reason"] for line in lines(tmp_path / "out" / "skipped.jsonl")]
    assert reasons[0].startswith("unreadable: LibsndfileError: inside")
    assert reasons[1] == "unreadable: IndexError: list index out of range"


@pytest.mark.parametrize(
    "error, memory",
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (soundfile.LibsndfileError(7), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_memory_is_called_memory(corpus, tmp_path, monkeypatch, error, memory):
    def encode(*args):
        raise error

    monkeypatch.setattr(token_encode, "encode_stream", encode)
    with pytest.raises(UserError if memory else type(error)) as e:
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=1))
    assert ("not enough memory" in str(e.value)) == memory


def test_bombs_in_manifests(tmp_path, monkeypatch):
    """A line that a few bytes of gzip stand for, and a document of aliases of aliases."""
    monkeypatch.setattr(files, "MOST", 1 << 16)
    bomb = tmp_path / "m.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"id": "' + b"x" * (1 << 20) + b'"}\n'))
    with pytest.raises(UserError, match="a line of more than"):
        tokenize.tokenize(config(bomb, tmp_path / "out"))
    (tmp_path / "m.json.gz").write_bytes(gzip.compress(b"[\n" + b"1,\n" * (1 << 18) + b"1]"))
    monkeypatch.setattr(sources, "MOST", 1 << 16)
    with pytest.raises(UserError, match="more than 0 MB"):
        tokenize.tokenize(config(tmp_path / "m.json.gz", tmp_path / "out"))
    levels = "".join(f"  a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
    (tmp_path / "m.yaml").write_text(f"- a0: &a0 x\n{levels}")
    with pytest.raises(UserError, match="aliases"):
        tokenize.tokenize(config(tmp_path / "m.yaml", tmp_path / "out"))


def test_contradicting_settings(tmp_path):
    with pytest.raises(UserError, match=r"--chunk-seconds -1 .*; --jobs -2"):
        config(tmp_path, tmp_path, chunk_seconds=-1, jobs=-2)
    with pytest.raises(UserError, match="--trim-dbfs does nothing without --trim-silence"):
        config(tmp_path, tmp_path, trim_dbfs=-40.0)
    with pytest.raises(UserError, match="--loudness 3 must be"):
        config(tmp_path, tmp_path, loudness=3.0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file of that name exists"):
        tokenize.tokenize(config(tmp_path, tmp_path / "file"))
    soundfile.write(tmp_path / "a.wav", np.zeros(9), RATE)
    with pytest.raises(UserError, match="--device"):
        tokenize.tokenize(config(tmp_path / "a.wav", tmp_path / "o", device="cuda:77"))


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("jobs", [1, 2])
def test_disk_full_while_encoding(corpus, tmp_path, monkeypatch, jobs):
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=jobs))
    out, original = tmp_path / "out", RvqMmapWriter._append
    count = [0]

    def append(self, data):
        count[0] += 1
        if count[0] == 7:  # stops short, like a real disk
            original(self, data[: len(data) // 2])
            full()
        original(self, data)

    monkeypatch.setattr(RvqMmapWriter, "_append", append)
    with pytest.raises(UserError, match=r"\.rvq: No space left on device; free some space and run"):
        tokenize.tokenize(config(corpus, out, jobs=jobs))
    monkeypatch.setattr(RvqMmapWriter, "_append", original)
    tokenize.tokenize(config(corpus, out, jobs=jobs))
    assert contents(out) == contents(tmp_path / "whole")


def test_disk_full_in_the_log(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    log = ShardLog(tmp_path, 0)
    log.append({"skip": {}})
    real = log._file

    class Full:
        def write(self, data):
            real.write(data[:5])
            full()

        def __getattr__(self, name):
            return getattr(real, name)

    log._file = Full()
    with pytest.raises(OSError):
        log.append({"skip": {}})
    assert log.path.read_bytes() == b'{"skip":{}}\n' and log.items == 1


def test_disk_full_while_merging(corpus, tmp_path, monkeypatch):
    tokenize.tokenize(config(corpus, tmp_path / "whole"))
    out, original = tmp_path / "out", sidecar.json_line

    def line(fields):
        if fields.get("id") == "speaker1/010" and "recording" in fields:
            full()
        return original(fields)

    monkeypatch.setattr(sidecar, "json_line", line)
    with pytest.raises(UserError, match="No space left on device"):
        tokenize.tokenize(config(corpus, out))
    assert sorted(p.name for p in out.iterdir()) == ["codes", "parts"]  # no half-written manifest
    monkeypatch.setattr(sidecar, "json_line", original)
    tokenize.tokenize(config(corpus, out))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_device_without_room():
    with pytest.raises(OSError) as e:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    assert "free some space" in str(token_shard.disk_error(e.value, "/dev/full"))
    other = PermissionError(errno.EACCES, "no")
    assert token_shard.disk_error(other, "x") is other
