import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, RecordingSet, SupervisionSegment

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.registry import load_codec
from rvqlm.data import sidecar, token_shard, token_workers, tokenize
from rvqlm.data.audio import load_cut, load_file
from rvqlm.data.store import RvqMmapWriter
from rvqlm.data.token_inputs import Listing, open_source
from rvqlm.data.token_progress import ProgressLine, clock
from rvqlm.data.token_shard import Progress, ShardLog
from rvqlm.data.tokenize import TokenizeConfig
from rvqlm.errors import UserError

RATE, HOP = 8000, 40


class Peaks(Codec):
    """Two codes a frame, from the frame's largest and smallest sample; takes a moment."""

    context_frames = 0
    delay = 0.0

    def __init__(self, fingerprint="f" * 16, num_codebooks=2):
        super().__init__(CodecInfo("peaks", fingerprint, RATE, HOP, num_codebooks, 256))

    def encode(self, audio, lengths=None):
        time.sleep(self.delay)
        audio, frames = self.pad_to_hop(audio, lengths)
        blocks = audio[:, 0].unflatten(1, (-1, HOP))
        codes = torch.stack([blocks.amax(2), -blocks.amin(2)], 2)
        codes = (codes.clamp(0, 1) * 255).round().long()
        return codes[..., : self.info.num_codebooks], frames

    def decode(self, codes):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    for module in (tokenize, token_workers):
        monkeypatch.setattr(
            module, "load_codec", lambda name, device, num_codebooks: Peaks(name[-1] * 16)
        )
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return Peaks


def make_audio(folder, count=24, seed=0, rate=RATE):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        samples = int(rng.integers(1, 40 * HOP))
        audio = rng.uniform(-1, 1, samples).astype(np.float32) * rng.uniform(0.1, 1)
        path = folder / f"speaker{i % 3}" / f"{i:03}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, audio, rate, subtype="FLOAT")
    return folder


@pytest.fixture
def corpus(tmp_path):
    return make_audio(tmp_path / "audio")


def config(corpus, out, **kwargs):
    return TokenizeConfig(input=str(corpus), out_dir=str(out), **{"jobs": 1, **kwargs})


def contents(folder):
    """Every file of a token directory by name, gunzipped, with its own path taken out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            found[str(path.relative_to(folder))] = data.replace(str(folder).encode(), b"OUT")
    return found


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return [json.loads(line) for line in file]


# ------------------------------------------------------------------------ the directory itself


@pytest.mark.parametrize("jobs", [1, 3])
def test_directory_of_the_contract(corpus, tmp_path, jobs):
    out = tmp_path / "tokens"
    summary = tokenize.tokenize(config(corpus, out, jobs=jobs))
    side = json.loads((out / "tokens.json").read_text())
    assert CodecInfo.from_dict(side["codec"]) == Peaks("l" * 16).info
    assert side["dtype"] == "int16" and side["num_cuts"] == 24 == summary.num_cuts
    assert side["skipped"] == 0 and (out / "skipped.jsonl").read_bytes() == b""
    assert (out / side["audio_manifest"]).exists() and len(side["shards"]) == jobs
    for shard in side["shards"]:
        data = (out / shard["path"]).read_bytes()
        assert len(data) == shard["bytes"] and shard["sha256"] == hashlib.sha256(data).hexdigest()
    cuts = CutSet.from_file(out / "cuts.jsonl.gz")
    audio_cuts = CutSet.from_file(out / "audio_cuts.jsonl.gz")
    ids = [c.id for c in cuts]
    assert ids == [c.id for c in audio_cuts] == sorted(ids)
    assert ids[0] == "speaker0/000" and not (out / "parts").exists()
    frames = samples = 0
    for cut, audio in zip(cuts, audio_cuts):
        codes = cut.load_features()
        assert codes.dtype == np.int16 and codes.shape == (cut.num_frames, 2)
        assert cut.custom["num_samples"] == audio.num_samples
        assert cut.num_frames == -(-audio.num_samples // HOP)
        assert cut.duration == cut.num_frames * HOP / RATE and not cut.has_recording
        assert cut.recording_id == audio.recording_id and not audio.has_features
        frames, samples = frames + len(codes), samples + audio.num_samples
    assert side["num_frames"] == frames and side["hours"] == samples / RATE / 3600


def test_stored_tokens_equal_reencoded_ones(tmp_path, monkeypatch):
    """With the codec that ships, a file at another rate, stereo, and longer than a chunk."""
    monkeypatch.setattr(tokenize, "load_codec", load_codec)
    rng = np.random.default_rng(0)
    folder = tmp_path / "audio"
    folder.mkdir()
    for name, rate, shape in (("a", 16000, 20001), ("b", 22050, (9000, 2)), ("c", 16000, 99)):
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.5, 0.5, shape), rate)
    out = tmp_path / "out"
    tokenize.tokenize(config(folder, out, chunk_seconds=0.4))
    codec = load_codec("spectral")
    audio_cuts = CutSet.from_file(out / "audio_cuts.jsonl.gz").to_eager()
    checked = 0
    for cut in CutSet.from_file(out / "cuts.jsonl.gz"):
        for audio in (
            load_cut(audio_cuts[cut.id], 16000),
            load_file(folder / f"{cut.id}.wav", 16000),
        ):
            codes, _ = codec.encode(torch.from_numpy(audio)[None])
            assert np.array_equal(codes[0].numpy(), cut.load_features())
            checked += 1
    assert checked == 6


def test_cuts_manifest_keeps_supervisions_and_custom_fields(corpus, tmp_path):
    recordings = RecordingSet.from_dir(corpus, "*.wav")
    cuts = []
    for i, recording in enumerate(recordings):
        cut = recording.to_cut()
        cut.supervisions = [
            SupervisionSegment(f"s{i}", recording.id, 0, recording.duration, text=f"é {i}")
        ]
        cut.custom = {"speaker": f"s{i}", "rate": 1.5}
        cuts.append(cut)
    long = max(cuts, key=lambda c: c.duration)
    half = long.truncate(duration=long.duration / 2, preserve_id=False)
    tail = long.truncate(offset=long.duration / 2, preserve_id=False)
    manifest = tmp_path / "in_cuts.jsonl.gz"
    CutSet.from_cuts([*cuts, half, tail]).to_file(manifest)
    tokenize.tokenize(config(manifest, tmp_path / "out"))
    made = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz").to_eager()
    assert [c.id for c in made] == [c.id for c in [*cuts, half, tail]]
    for cut in cuts:
        assert made[cut.id].supervisions == cut.supervisions
        assert made[cut.id].custom["speaker"] == cut.custom["speaker"]
        assert "ends_recording" not in made[cut.id].custom
    assert made[half.id].custom["ends_recording"] is False
    assert "ends_recording" not in made[tail.id].custom
    expected, _ = Peaks().encode(torch.from_numpy(load_cut(tail, RATE))[None])
    assert np.array_equal(made[tail.id].load_features(), expected[0].numpy())
    audio = CutSet.from_file(tmp_path / "out" / "audio_cuts.jsonl.gz").to_eager()
    assert audio[tail.id] == tail


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
    ids = open_source(str(corpus)).ids
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


# ---------------------------------------------------------------------- bad files, bad input


def spoil(corpus):
    """Seven files that cannot be used, between the good ones."""
    good = corpus / "speaker1" / "001.wav"
    (corpus / "speaker0" / "a_empty.wav").touch()
    (corpus / "speaker0" / "b_text.wav").write_text("no audio at all")
    soundfile.write(corpus / "speaker1" / "c_zero.wav", np.zeros(0), RATE)
    nan = np.zeros(100, np.float32)
    nan[50] = np.nan
    soundfile.write(corpus / "speaker2" / "d_nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(corpus / "speaker2" / "e_stereo.wav", np.zeros((100, 2)), RATE)
    (corpus / "speaker2" / "f_header.wav").write_bytes(good.read_bytes()[:20])
    (corpus / "speaker2" / "g_gone.wav").symlink_to("nowhere.wav")


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
    (tmp_path / "empty" / "x.m4a").touch()
    assert "1 .m4a files are there: convert" in error(tmp_path / "empty")
    assert "no file matches" in error(tmp_path / "*.wav")
    (tmp_path / "x.txt").touch()
    assert "neither audio" in error(tmp_path / "x.txt")
    (tmp_path / "e.jsonl").touch()
    assert "manifest is empty" in error(tmp_path / "e.jsonl")
    segment = {"id": "s", "recording_id": "r", "start": 0, "duration": 1.0, "channel": 0}
    assert "a manifest of supervisions; tokenize needs" in error(manifest_of(tmp_path, segment))
    cut = {"id": "c", "start": 0, "duration": 1, "channel": 0, "type": "MonoCut"}
    assert "cuts without recordings" in error(manifest_of(tmp_path, cut))
    mixed = {"id": "c", "duration": 1, "tracks": [], "type": "MixedCut"}
    assert "MixedCut" in error(manifest_of(tmp_path, mixed))
    recording = RecordingSet.from_dir(corpus, "*.wav").to_eager()[0].to_dict()
    assert f"two items have the id {recording['id']!r}" in error(
        manifest_of(tmp_path, recording, recording)
    )
    (tmp_path / "bad.jsonl").write_text(json.dumps(recording) + "\n{oops\n")
    assert "item 2 is no lhotse recording or cut" in error(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    assert "cannot read item 1" in error(tmp_path / "bad.jsonl.gz")
    (tmp_path / "bad.yaml").write_text("{")
    assert "not a lhotse manifest" in error(tmp_path / "bad.yaml")


def test_wrong_rate_in_a_manifest_is_skipped(tmp_path, corpus):
    good, wrong = [r.to_dict() for r in RecordingSet.from_dir(corpus, "*.wav")][:2]
    wrong["sampling_rate"], wrong["duration"] = 16000, wrong["duration"] / 2
    out = tmp_path / "out"
    assert tokenize.tokenize(config(manifest_of(tmp_path, good, wrong), out)).skipped == 1
    assert "8000 Hz, its manifest says 16000" in lines(out / "skipped.jsonl")[0]["reason"]


def test_contradicting_settings(tmp_path):
    with pytest.raises(UserError, match=r"--chunk-seconds 0 .*; --jobs -1"):
        config(tmp_path, tmp_path, chunk_seconds=0, jobs=-1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file of that name exists"):
        tokenize.tokenize(config(tmp_path, tmp_path / "file"))
    soundfile.write(tmp_path / "a.wav", np.zeros(9), RATE)
    with pytest.raises(UserError, match="--device"):
        tokenize.tokenize(config(tmp_path / "a.wav", tmp_path / "o", device="cuda:77"))


# ----------------------------------------------------------- stopping, continuing, other runs


def test_finished_is_left_alone_and_other_work_is_refused(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    tokenize.tokenize(config(corpus, out))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    summary = tokenize.tokenize(config(corpus, out, jobs=2))
    assert "nothing to do" in capsys.readouterr().out and summary.num_cuts == 24
    with pytest.raises(UserError, match=r"codec mismatch between --out-dir .*fingerprint 'llll"):
        tokenize.tokenize(config(corpus, out, codec="other"))
    with pytest.raises(UserError, match="mono 'average' against 'refuse'"):
        tokenize.tokenize(config(corpus, out, mono="refuse"))
    (corpus / "speaker0" / "000.wav").unlink()
    with pytest.raises(UserError, match=r"made from another input .*items 24 against 23"):
        tokenize.tokenize(config(corpus, out))
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "cuts.jsonl.gz").touch()
    with pytest.raises(UserError, match="tokenize did not make"):
        tokenize.tokenize(config(corpus, foreign))


def test_dry_run_writes_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert tokenize.tokenize(config(corpus, out, dry_run=True)) is None
    assert not out.exists()
    shown = capsys.readouterr().out
    assert "24 items" in shown and "200.00 frames/s" in shown and "nothing written" in shown


class Stop(BaseException):
    pass


@pytest.mark.parametrize("jobs", [1, 2])
def test_another_codec_cannot_continue(corpus, tmp_path, monkeypatch, jobs):
    out = tmp_path / "out"
    interrupt_after(monkeypatch, 5)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out, jobs=1))
    assert not (out / "tokens.json").exists()
    with pytest.raises(UserError, match="codec mismatch"):
        tokenize.tokenize(config(corpus, out, codec="other", jobs=jobs))


def interrupt_after(monkeypatch, items):
    """Make the next encoding raise after some items, once."""
    original, left = token_shard.encode_long, [items]

    def encode(*args):
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(token_shard, "encode_long", original)
            raise Stop
        return original(*args)

    monkeypatch.setattr(token_shard, "encode_long", encode)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("damage", ["none", "torn line", "torn codes", "lost codes", "no codes"])
def test_whatever_the_tail_looks_like_the_result_is_the_same(
    corpus, tmp_path, monkeypatch, damage, jobs
):
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt_after(monkeypatch, 11)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out))
    shard, log = token_shard.shard_path(out, 0), token_shard.log_path(out, 0)
    if damage == "torn line":
        with open(log, "ab") as file:
            file.write(b'{"cut": {"features": {"storage_key": "0,1')
    elif damage == "torn codes":
        with open(shard, "ab") as file:
            file.write(b"\x07" * 33)
    elif damage == "lost codes":
        os.truncate(shard, shard.stat().st_size // 2 + 1)
    elif damage == "no codes":
        shard.unlink()
    tokenize.tokenize(config(corpus, out, jobs=jobs))  # the plan of the first start holds
    assert contents(out) == contents(tmp_path / "whole")


def test_a_renamed_directory_continues_under_its_new_name(corpus, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 9)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, tmp_path / "old"))
    os.rename(tmp_path / "old", tmp_path / "new")
    tokenize.tokenize(config(corpus, tmp_path / "new"))
    for cut in CutSet.from_file(tmp_path / "new" / "cuts.jsonl.gz"):
        assert len(cut.load_features()) == cut.num_frames


def in_a_process(cfg, **environment):
    """`tokenize` in a process of its own that can be killed."""

    def body():
        os.environ.update(environment)
        tokenize.tokenize(cfg)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment(corpus, tmp_path, monkeypatch, jobs):
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=jobs))
    monkeypatch.setattr(Peaks, "delay", 0.04)
    out, rng, kills = tmp_path / "out", random.Random(jobs), 0
    for _ in range(40):
        process = in_a_process(config(corpus, out, jobs=jobs))
        process.join(rng.uniform(0.02, 0.15))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    else:
        monkeypatch.setattr(Peaks, "delay", 0)
        tokenize.tokenize(config(corpus, out, jobs=jobs))
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_during_the_merge(corpus, tmp_path, monkeypatch):
    tokenize.tokenize(config(corpus, tmp_path / "whole"))
    original, calls = os.replace, []

    def replace(source, target):
        calls.append(str(target))
        if len(calls) == stop:
            raise Stop
        return original(source, target)

    for stop in range(1, 20):
        out = tmp_path / f"out{stop}"
        calls.clear()
        monkeypatch.setattr(os, "replace", replace)
        try:
            tokenize.tokenize(config(corpus, out))
            break
        except Stop:
            monkeypatch.setattr(os, "replace", original)
            assert not (out / "tokens.json").exists()
            tokenize.tokenize(config(corpus, out))
            assert contents(out) == contents(tmp_path / "whole")
    assert stop >= 6  # plan, done, three manifests, sidecar
    assert calls[-1].endswith("tokens.json")


def test_a_dying_worker_is_one_clear_line(corpus, tmp_path, monkeypatch):
    parent = os.getpid()
    original = token_shard.encode_long

    def encode(*args):
        if os.getpid() != parent and args[1].shape[1] > 35 * HOP:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    monkeypatch.setattr(token_shard, "encode_long", encode)
    with pytest.raises(UserError, match=r"died \(killed by signal 9; out of memory\?\)"):
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))
    monkeypatch.setattr(token_shard, "encode_long", original)
    tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_errors_of_workers_reach_the_user(corpus, tmp_path, monkeypatch):
    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr(token_shard, "encode_long", no_memory)
    with pytest.raises(UserError, match=r"not enough memory to encode .*; use fewer --jobs"):
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))

    def bug(*args):
        raise ZeroDivisionError("here")

    monkeypatch.setattr(token_shard, "encode_long", bug)
    with pytest.raises(RuntimeError, match=r"(?s)in an encoding process.*ZeroDivisionError: here"):
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))


def test_two_runs_at_once_are_refused(corpus, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out))
    monkeypatch.setattr(token_shard, "LOCK_SECONDS", 0.1)
    with ShardLog(out, 0):
        with pytest.raises(UserError, match="another rvqlm tokenize is writing"):
            tokenize.tokenize(config(corpus, out))
    tokenize.tokenize(config(corpus, out))


# ------------------------------------------------------------------------------- a full disk


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
    out, original = tmp_path / "out", sidecar._line

    def line(fields):
        if fields.get("id") == "speaker1/010" and "recording" in fields:
            full()
        return original(fields)

    monkeypatch.setattr(sidecar, "_line", line)
    with pytest.raises(UserError, match="No space left on device"):
        tokenize.tokenize(config(corpus, out))
    assert sorted(p.name for p in out.iterdir()) == ["codes", "parts"]  # no half-written manifest
    monkeypatch.setattr(sidecar, "_line", original)
    tokenize.tokenize(config(corpus, out))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_device_without_room():
    with pytest.raises(OSError) as e:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    assert "free some space" in str(token_shard.disk_error(e.value, "/dev/full"))
    other = PermissionError(errno.EACCES, "no")
    assert token_shard.disk_error(other, "x") is other


# ------------------------------------------------------------------------------ several ranks


def test_ranks_share_the_shards(corpus, tmp_path):
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    out = tmp_path / "out"
    ranks = [in_a_process(config(corpus, out, jobs=0), RANK=str(r), WORLD_SIZE="2") for r in (1, 0)]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert contents(out) == contents(tmp_path / "whole")


# ---------------------------------------------------------------------------------- progress


def test_progress_line(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line = ProgressLine(np.array([1.0, 1.0, 2.0, 4.0]), [(0, 2), (2, 4)])
    with line:
        now[0] += 20
        line.update(0, Progress(resumed=1, items=1, skipped=1, seconds=50, wall_seconds=10))
        now[0] += 20
        line.update(1, Progress(items=1, seconds=150, encode_seconds=5, wall_seconds=10))
    first, second = capsys.readouterr().err.splitlines()
    # cost 1 of 8 is old, 1 is new in 20 s: 6 are left
    assert "25%" in first and "2/4 items" in first and "2x real time" in first
    assert "0:20 gone, 2:00 left" in first and "1 skipped" in first
    assert "50%" in second and "5x real time" in second and "0:40 gone, 0:53 left" in second
    assert line.seconds == 200 and line.encode_share == 0.25 and line.elapsed == 40
    assert clock(3723) == "1:02:03"
