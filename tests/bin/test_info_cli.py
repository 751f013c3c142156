"""`rvqlm info`: every kind of thing is named, counted as numpy counts, and never a traceback."""

import gzip
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from text_fixtures import make_texts

import rvqlm.bin.main
from rvqlm.checkpoints.file import save_checkpoint
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.spectral import ASSET
from rvqlm.data.index import build_index
from rvqlm.errors import UserError
from rvqlm.exchange.convert import export_npq, export_tokens
from rvqlm.exchange.directory import read_token_dir, write_token_dir
from rvqlm.exchange.items import TokenItem
from rvqlm.inspection.codes import BINS, count_codes
from rvqlm.inspection.path import look
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.factory import config_dict

INFO = CodecInfo("test", "0123456789abcdef", 16000, 320, 3, 100)


def command(*words):
    return rvqlm.bin.main.main(["info", *map(str, words)])


def codes_of(frames, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((frames, 3)) ** 2 * [100, 50, 1]).astype(np.int64)  # uneven; one level dead


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """One of each."""
    root = tmp_path_factory.mktemp("things")
    items = [
        TokenItem(f"d/c{n}", codes_of(40 + n, n), split="train",
                  supervisions=[{"id": "s", "recording_id": "r", "start": 0.0, "duration": 0.5,
                                 "text": "hello", "speaker": f"v{n % 2}"}])
        for n in range(10)
    ]  # fmt: skip
    write_token_dir(str(root / "tokens"), INFO, items, {"path": "somewhere"})
    build_index(root / "tokens", "train")
    for form in ("shar", "npy"):
        export_tokens(root / "tokens", root / form, form)
    export_npq(read_token_dir(root / "tokens"), INFO, root / "npq")
    (root / "wavs").mkdir()
    soundfile.write(root / "wavs/a.wav", np.zeros((800, 2)), 16000, "PCM_24")
    soundfile.write(root / "wavs/b.flac", np.zeros(800), 8000)
    recording = {"id": "r", "sources": [], "sampling_rate": 8000, "num_samples": 800}
    with gzip.open(root / "recordings.jsonl.gz", "wt") as file:
        for n in range(3):
            file.write(json.dumps({**recording, "id": str(n), "duration": 0.1}) + "\n")
    np.save(root / "floats.npy", np.zeros((4, 5), np.float32))
    model = CodecLM(CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=1), INFO)
    state = {
        "format": 1, "model": model.state_dict(), "ema": None, "model_name": model.name,
        "model_config": config_dict(model), "codec": INFO.to_dict(), "step": 7, "epoch": 2,
        "optimizer": [], "loader": {}, "best": {"loss": 4.5},
    }  # fmt: skip
    (root / "exp").mkdir()
    save_checkpoint(state, root / "exp/best.pt")
    (root / "exp/metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 4.5}\n{"st')
    torch.save({"weight": torch.zeros(3)}, root / "other.pt")
    return root


KINDS = {
    "tokens": "token directory",
    "tokens/tokens.json": "token directory",
    "tokens/cuts.jsonl.gz": "manifest of token cuts",
    "tokens/codes/shard-00000.rvq": "token shard",
    "tokens/index_train.bin": "index of a split",
    "recordings.jsonl.gz": "manifest of recordings",
    "npq/d/c0.npq": "NPQ file",
    "npq": "folder of .npq files",
    "npy": "export of tokens as .npy files",
    "npy/manifest.jsonl": "export of tokens as .npy files",
    "npy/codes/d/c0.npy": "numpy array of codes, read as (T, K)",
    "npy/codec.json": "codec description",
    "floats.npy": "numpy array (no tokens: those are two-dimensional integers)",
    "shar": "lhotse Shar of tokens",
    "shar/train": "lhotse Shar of tokens",
    "exp": "experiment",
    "exp/best.pt": "checkpoint",
    "other.pt": "PyTorch file (no checkpoint of rvqlm trainer)",
    "wavs": "folder of audio: rvqlm tokenize reads it",
    "wavs/a.wav": "audio",
    "wavs/b.flac": "audio",
}


@pytest.mark.parametrize("name, kind", KINDS.items())
def test_kinds(things, capsys, name, kind):
    assert command(things / name) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{things / name}: {kind}\n")
    assert command(things / name, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["kind"] == kind
    without_codec = ("wavs", "floats.npy", "recordings.jsonl.gz", "other.pt")
    if not name.startswith(without_codec):
        assert row["codec"]["fingerprint"] == INFO.fingerprint
    without_codes = ("exp", "npy/codec.json", "tokens/index_train.bin", *without_codec)
    assert (row["codes"] is None) == name.startswith(without_codes)


def test_facts(things):
    assert look(things / "tokens").facts["cuts"] == 10
    assert look(things / "tokens").facts["splits"] == {"train": "10 cuts, 8.9 s, indexed"}
    facts = look(things / "tokens/cuts.jsonl.gz").facts
    assert (facts["cuts"], facts["with_text"], facts["speakers"]) == (10, 10, 2)
    facts = look(things / "recordings.jsonl.gz").facts
    assert facts["recordings"] == 3 and facts["sampling_rates"] == {"8000": 3}
    assert abs(facts["hours"] * 3600 - 0.3) < 1e-9
    facts = look(things / "wavs/a.wav").facts
    assert (facts["samples"], facts["channels"], facts["format"]) == (800, 2, "WAV PCM_24")
    facts = look(things / "exp").facts
    assert facts["step"] == 7 and facts["last_metrics"] == {"kind": "train", "step": 7, "loss": 4.5}
    assert facts["model"] == "codec-lm" and facts["best"] == {"loss": 4.5}
    model = CodecLM(CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=1), INFO)
    assert facts["parameters"] == sum(t.numel() for t in model.state_dict().values())


def test_small_files_of_its_own(things, tmp_path, capsys):
    """What lies beside tokens, models and samples is named too."""
    tokens, backing = tmp_path / "tokens", tmp_path / "backing"
    make_texts(tokens, train=["one two", None], test=["two"])
    make_texts(backing, train=["one two", "two"], test=["two"])
    run = rvqlm.bin.main.main
    assert run(["text", "--manifest-dir", str(tokens), "--type", "chars"]) == 0
    assert run(["pair", "--manifest-dir", str(tokens), "--source-dir", str(backing)]) == 0
    skips = ["not a file", "not a file", "too short"]
    lines = "".join(json.dumps({"id": "a", "path": "b", "reason": r}) + "\n" for r in skips)
    (tmp_path / "all_skipped.jsonl").write_text(lines)
    (tmp_path / "eval_test.json").write_text('{"split": "test", "loss": 4.5, "steps": [1, 2]}')
    soundfile.write(tmp_path / "a.wav", np.zeros(80), 8000)
    (tmp_path / "a.json").write_text('{"kind": "unprompted", "seed": 3}')
    capsys.readouterr()
    found = {p: look(tmp_path / p) for p in (
        "tokens/text.json", "tokens/source.json", "tokens/text_train.bin", "all_skipped.jsonl",
        "eval_test.json", "a.json")}  # fmt: skip
    assert [look.kind for look in found.values()] == [
        "condition 'text' of a token directory", "condition 'source' of a token directory",
        "column of a token directory, a row for each cut", "list of what was left out, and why",
        "evaluation of a model", "sample, as described beside its wav",
    ]  # fmt: skip
    text, source, column, skipped, evaluation, sample = (look.facts for look in found.values())
    assert text["type"] == "chars" and text["fields"] == 1
    assert source["fields"] == 3 and source["directory"] == "../backing"
    assert (column["rows"], column["empty"], column["steps"]) == (2, 1, 7)
    assert skipped["items"] == 3 and skipped["reasons"] == {"not a file": 2, "too short": 1}
    assert evaluation["loss"] == 4.5 and sample["seed"] == 3
    assert look(things / "exp/metrics.jsonl").facts["kinds"] == {"train": 1, "unreadable": 1}


def test_a_mixed_cut_is_one(tmp_path, capsys):
    track = {"id": "a", "type": "MonoCut", "start": 0, "duration": 1.0, "channel": 0}
    tracks = [{"type": "MonoCut", "offset": at, "cut": track} for at in (0.0, 1.5)]
    mixed = {"id": "mix", "type": "MixedCut", "tracks": tracks}
    (tmp_path / "m.jsonl").write_text(json.dumps(mixed) + "\n")
    assert command(tmp_path / "m.jsonl", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["kind"] == "manifest of mixed cuts (several recordings in one)"
    assert row["hours"] * 3600 == pytest.approx(2.5)


def test_codec_weights(tmp_path):
    found = look(ASSET)
    assert (found.kind, found.codec) == ("codec weights", load_codec(ASSET).info)


def test_counts_are_numpys(things):
    got = look(things / "tokens").codes.to_dict()
    every = np.concatenate([i.codes for i in read_token_dir(things / "tokens")])
    assert (got["items"], got["frames"], got["codebook_size"]) == (10, len(every), 100)
    for level, row in enumerate(got["levels"]):
        values, times = np.unique(every[:, level], return_counts=True)
        p = times / times.sum()
        assert row["used"] == len(values)
        assert abs(row["entropy_bits"] + (p * np.log2(p)).sum()) < 1e-9
        assert row["most_frequent"] == values[times.argmax()]
        assert abs(row["most_frequent_share"] - p.max()) < 1e-9
        edges = np.linspace(0, 100, BINS + 1).astype(int)
        want = np.histogram(every[:, level], edges)[0] / len(every)
        assert np.abs(want - row["histogram"]).max() < 1e-6
    assert got["levels"][2]["used"] == 1  # a dead level
    same = look(things / "shar").codes.to_dict()
    assert same["levels"] == got["levels"]


def test_bars():
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])
    lines = count_codes([TokenItem("a", codes)], 4).lines()
    assert lines[2].endswith("█▅··") and lines[3].endswith("▅█··") and "0 (75.0%)" in lines[2]


def test_a_sample_is_spread_and_bounded():
    items = [TokenItem(str(n), np.full((2, 1), n)) for n in range(100)]
    found = count_codes(items, 100, max_items=10, total=100)
    assert np.flatnonzero(found.counts[0]).tolist() == list(range(0, 100, 10))
    assert (found.items, found.frames) == (10, 20)
    endless = (TokenItem("x", np.zeros((1, 1), int)) for _ in iter(int, 1))
    assert count_codes(endless, 4, max_items=5).items == 5


def test_max_cuts(things, capsys):
    assert command(things / "tokens", "--max-cuts", 0) == 0
    assert "entropy" not in capsys.readouterr().out
    assert command(things / "tokens", "--max-cuts", 5) == 0
    assert "codes of 5 of 10 items" in capsys.readouterr().out
    assert command(things / "tokens", "--max-cuts", -1) == 2


def test_damage_is_reported(things, tmp_path, capsys):
    tokens = tmp_path / "t"
    write_token_dir(str(tokens), INFO, read_token_dir(things / "tokens"), {})
    shard = tokens / "codes/shard-00000.rvq"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert command(tokens) == command(shard) == 2
    assert f"{shard}: " in capsys.readouterr().err
    shard.unlink()
    assert command(tokens) == 2 and "missing" in capsys.readouterr().err


def test_a_code_that_the_codec_does_not_have(things, tmp_path, capsys):
    tokens = tmp_path / "t"
    write_token_dir(str(tokens), replace(INFO, codebook_size=200),
                    [TokenItem("bad one", np.full((2, 3), 150))], {})  # fmt: skip
    side = json.loads((tokens / "tokens.json").read_text())
    side["codec"]["codebook_size"] = 100
    side.pop("checksum")
    (tokens / "tokens.json").write_text(json.dumps(side))
    assert command(tokens) == 2
    assert "bad one: code 150 outside 0..99" in capsys.readouterr().err


def test_an_npq_file_that_is_older_than_version_1(things, tmp_path, capsys):
    data = (things / "npq/d/c0.npq").read_bytes()
    (tmp_path / "cut.npq").write_bytes(data[:12] + data[16:])  # without the kbps
    assert command(tmp_path / "cut.npq") == 2
    assert "none of the known headers fits" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.txt", b"words"),
        ("empty", b""),
        ("a.pt", b"PK\3\4 not a zip"),
        ("a.pt", b"\x80\x02."),
        ("a.safetensors", b"\xff" * 20),
        ("a.jsonl", b"{"),
        ("a.jsonl", b'{"id": 1}\n'),
        ("a.jsonl.gz", b"\x1f\x8b broken"),
        ("a.json", b"[1, 2"),
        ("a.json", b'{"b": 1}'),
        ("a.yaml", b"a: [b"),
        ("a.npq", b"NPQ1"),
        ("a.npq", b"other"),
        ("a.npy", b"\x93NUMPY\1\0"),
        ("codec.json", b"{}"),
        ("a.bin", b"RVQIDX01"),
        ("a.bin", b"RVQIDX01" + b"\xff" * 20),
        ("a.wav", b"RIFF"),
        ("a.m4a", b"not that"),
        ("tokens.json", b"{}"),
    ],
)
def test_what_it_does_not_know_is_one_line(tmp_path, capsys, name, data):
    (tmp_path / name).write_bytes(data)
    assert command(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm info: error: ") and error.count("\n") == 1
    assert name in error or str(tmp_path) in error


def test_no_such_thing(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "folder", "/dev/null"):
        assert command(path) == 2 and str(path) in capsys.readouterr().err
    assert command() == 2


def test_mutated_files(things, tmp_path):
    """Whatever a bit does to any of them: an answer or a UserError."""
    rng = random.Random(0)
    files = ["tokens/index_train.bin", "npq/d/c0.npq", "npy/codes/d/c0.npy", "npy/codec.json"]
    files += ["npy/manifest.jsonl", "tokens/cuts.jsonl.gz", "wavs/a.wav", "recordings.jsonl.gz"]
    answers = 0
    for case in range(240):
        source = things / files[case % len(files)]
        data = bytearray(source.read_bytes())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        target = tmp_path / source.name
        target.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])]))
        try:
            answers += bool(look(target))
        except UserError as e:
            assert "\n" not in str(e)
    assert answers > 10
