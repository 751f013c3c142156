"""Bad files, full disks, settings that contradict each other."""

import errno
import json
import os

import numpy as np
import pytest
import soundfile
from tokenize_fixtures import RATE, config, contents, lines, spoil

from rvqlm.data.store import RvqMmapWriter
from rvqlm.errors import UserError
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
