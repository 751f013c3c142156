"""What a token directory holds after `rvqlm tokenize`."""

import hashlib
import json

import lhotse
import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment
from tokenize_fixtures import HOP, RATE, Peaks, config

from rvqlm.audio.load import load_cut, load_file
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.registry import load_codec
from rvqlm.tokenizing import tokenize

pytestmark = pytest.mark.usefixtures("peaks")


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


def test_what_is_said_on_two_channels_is_said_in_the_tokens(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, (4000, 2)), RATE)
    cut = Recording.from_file(path).to_cut()
    cut.supervisions = [
        SupervisionSegment("s", "a", 0, cut.duration, [0, 1], "both"),
        SupervisionSegment("t", "a", 0, 0.1, 1, "right"),
    ]
    CutSet.from_cuts([cut]).to_file(tmp_path / "in.jsonl.gz")
    tokenize.tokenize(config(tmp_path / "in.jsonl.gz", tmp_path / "out"))
    made = CutSet.from_file(tmp_path / "out" / "cuts.jsonl.gz")
    lhotse.validate(made, read_data=True)
    assert [(s.text, s.channel) for s in made[0].supervisions] == [("both", 0), ("right", 0)]
    size = path.stat().st_size
    assert made[0].custom["orig_kbps"] == pytest.approx(size * 8 / 1000 / 0.5, abs=1e-3)
