"""An experiment with everything in it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from report_page import INFO, NATS, UNIGRAM, ToyCodec, bits

from rvqlm.codecs import registry
from rvqlm.data.index import build_index
from rvqlm.data.store import RvqMmapWriter, token_cut
from rvqlm.files import sha256_of


@pytest.fixture
def toy_codec(monkeypatch):
    monkeypatch.setattr(registry, "load_codec", lambda *a, **k: ToyCodec(INFO))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A token directory with a test split of three recordings by two voices."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "tokens"
    shard = directory / "codes" / "shard-00000.rvq"
    token_cuts, audio_cuts = [], []
    with RvqMmapWriter(shard) as writer:
        for i, (speaker, seconds) in enumerate([("ann", 4.0), ("ann", 5.0), ("bob", 20.0)]):
            wav = tmp_path / "audio" / f"rec{i}.wav"
            wav.parent.mkdir(exist_ok=True)
            audio = 0.2 * rng.standard_normal(int(seconds * INFO.sampling_rate))
            soundfile.write(wav, audio, INFO.sampling_rate, subtype="PCM_16")
            cut = Recording.from_file(wav).to_cut()
            cut.id = f"cut{i}"
            words = SupervisionSegment(f"s{i}", cut.recording.id, 0, seconds, 0, f"<words> {i}")
            words.speaker = speaker
            cut.supervisions = [words]
            codes = rng.integers(0, 64, (round(seconds * 50), 3)).astype(np.int16)
            key = writer.write(cut.id, codes)
            token_cuts.append(
                token_cut(cut.id, shard, key, INFO, cut.recording.id, 0, [words], cut.num_samples)
            )
            audio_cuts.append(cut)
    size = shard.stat().st_size
    sidecar = {
        "codec": INFO.to_dict(), "dtype": "int16", "num_cuts": 3, "num_frames": 1450,
        "hours": 29 / 3600, "skipped": 0, "audio_manifest": "audio_cuts.jsonl.gz",
        "shards": [{"path": "codes/shard-00000.rvq", "bytes": size,
                    "sha256": sha256_of(shard)}],
    }  # fmt: skip
    (directory / "tokens.json").write_text(json.dumps(sidecar))
    CutSet.from_cuts(audio_cuts).to_file(directory / "audio_cuts.jsonl.gz")
    CutSet.from_cuts(token_cuts).to_file(directory / "cuts_test.jsonl.gz")
    build_index(directory, "test")
    return directory


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """An experiment with everything in it."""
    exp = tmp_path / "exp"
    (exp / "samples").mkdir(parents=True)
    with open(exp / "metrics.jsonl", "w") as f:
        for step in range(10, 500, 10):
            nats = [n + 1.5 * math.exp(-step / 100) for n in NATS]
            record = {
                "kind": "train", "step": step, "epoch": 0, "loss": sum(nats) / 3, "nats": nats,
                "accuracy": [0.1] * 3, "bits_per_second": bits(nats), "frames": 1000,
                "frames_per_second": 5000.0 + step, "padding": 0.0125, "total_frames": step * 100,
                "elapsed": step * 0.5, "memory_mb": 321.0, "lr": 1e-3, "grad_norm": 1.0,
            }  # fmt: skip
            print(json.dumps(record), file=f)
            if step % 100 == 0:
                print(json.dumps(record | {"kind": "valid", "best": True}), file=f)
    run = {"commands": ["rvqlm trainer --exp-dir exp"], "started": ["2026-01-02T03:04:05+00:00"],
           "commit": "feedc0ffee12", "parameters": 9_123_456, "data": {"codec": INFO.to_dict()},
           "machine": {"cpu": "Test CPU 3000", "cores": 2, "gpus": []}}  # fmt: skip
    (exp / "run.json").write_text(json.dumps(run))
    (exp / "config.yaml").write_text("model-name: codec-lm\nbase-lr: 0.00123\n")
    (exp / "stages.tsv").write_text("0\t9\tSet-up\n1\t60\tPrepare\n0\t1\tSet-up\n")
    evaluation = {"split": "test", "step": 490, "cuts": 3, "frames": 1450, "nats": NATS,
                  "accuracy": [0.31, 0.21, 0.11], "bits_per_second": bits(NATS), "bound": True,
                  "unigram_nats": UNIGRAM, "unigram_bits_per_second": bits(UNIGRAM),
                  "command": "rvqlm evaluate --exp-dir exp"}  # fmt: skip
    (exp / "eval_test.json").write_text(json.dumps(evaluation))
    return exp
