"""`rvqlm generate` as a user runs it: prompts of all kinds, what lies beside the wav, mistakes."""

import json

import numpy as np
import pytest
import soundfile
import torch

import rvqlm.bin.main
from rvqlm.checkpoints.file import save_checkpoint
from rvqlm.codecs.registry import load_codec
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.factory import config_dict

LEVELS = 2


def rvqlm_command(*words):
    return rvqlm.bin.main.main([str(w) for w in words])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An untrained model of two levels of the embedded codec, in a checkpoint."""
    folder = tmp_path_factory.mktemp("exp")
    info = load_codec("spectral", num_codebooks=LEVELS).info
    torch.manual_seed(0)
    model = CodecLM(CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=1), info)
    torch.nn.init.normal_(model.heads.weight)
    state = {
        "format": 3,
        "model": model.state_dict(),
        "ema": None,
        "model_name": model.name,
        "model_config": config_dict(model),
        "codec": info.to_dict(),
        "conditions": {},
        "step": 7,
        "optimizer": [],
        "loader": {},
    }
    save_checkpoint(state, folder / "best.pt")
    return folder


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "a tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(24000) / 9), 24000)  # 1 s, not the codec's rate
    return path


def test_unprompted(experiment, tmp_path):
    words = ["generate", "--exp-dir", experiment, "--num-samples", 3, "--seconds", 0.6]
    words += ["--min-seconds", 0.6, "--batch-size", 2, "--temperature", 0.8]
    assert rvqlm_command(*words, "--out-dir", tmp_path / "one") == 0
    names = [f"unprompted-{i:02d}" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(
        [f"{n}.wav" for n in names] + [f"{n}.json" for n in names]
    )
    row = json.loads((tmp_path / "one/unprompted-02.json").read_text())
    assert row["kind"] == "unprompted" and row["prompt"] is None and row["prompt_seconds"] == 0
    assert row["step"] == 7 and row["settings"]["temperature"] == 0.8 and row["stop"] == "length"
    assert 0 <= row["silence_ratio"] <= 1 and 0 <= row["repetition_ratio"] <= 1
    assert row["codec"]["num_codebooks"] == LEVELS and "--num-samples 3" in row["command"]
    # one of a batch of two, then alone; frames of 20 ms, and steps that the delay adds
    first = json.loads((tmp_path / "one/unprompted-00.json").read_text())
    assert (first["batch_size"], row["batch_size"]) == (2, 1)
    assert first["passes"] == row["passes"] == 30 + LEVELS - 1
    assert row["generation_seconds"] * row["real_time_factor"] == pytest.approx(0.6)
    audio, rate = soundfile.read(tmp_path / "one/unprompted-02.wav")
    assert rate == 16000 and len(audio) == 9600 and row["seconds"] == 0.6

    # the seed decides; how samples share batches doesn't
    assert rvqlm_command(*words, "--batch-size", 8, "--out-dir", tmp_path / "two") == 0
    assert rvqlm_command(*words, "--seed", 1, "--out-dir", tmp_path / "three") == 0
    read = lambda d: (tmp_path / d / "unprompted-02.wav").read_bytes()  # noqa: E731
    assert read("one") == read("two") != read("three")


def test_continues_audio_files(experiment, tone, tmp_path):
    out = tmp_path / "out"
    words = ["generate", "--exp-dir", experiment / "best.pt", "--prompt", tone, "--out-dir", out]
    assert rvqlm_command(*words, "--prompt-seconds", 0.5, "--seconds", 0.4, "--num-samples", 2) == 0
    row = json.loads((out / "continuation-a tone-01.json").read_text())
    assert row["kind"] == "continuation" and row["prompt"] == str(tone)
    assert row["prompt_seconds"] == 0.5 and row["seconds"] <= 0.9
    audio, _ = soundfile.read(out / "continuation-a tone-01.wav")
    assert len(audio) == round(row["seconds"] * 16000)


def test_continues_held_out_cuts(experiment, tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        soundfile.write(audio / f"r{n}.wav", rng.uniform(-0.2, 0.2, 16000), 16000)
    tokens = tmp_path / "tokens"
    made = ["--input", audio, "--out-dir", tokens, "--num-codebooks", LEVELS, "--jobs", 1]
    assert rvqlm_command("tokenize", *made) == 0
    assert rvqlm_command("split", "--manifest-dir", tokens, "--valid", 1, "--test", 2) == 0
    assert rvqlm_command("index", "--manifest-dir", tokens) == 0
    words = ["generate", "--exp-dir", experiment, "--manifest-dir", tokens, "--seconds", 0.2]
    words += ["--prompt-seconds", 0.3, "--out-dir", tmp_path / "out"]
    assert rvqlm_command(*words, "--num-prompts", 2) == 0
    rows = [json.loads(p.read_text()) for p in sorted((tmp_path / "out").glob("*.json"))]
    assert len(rows) == 2 == len({r["prompt"] for r in rows})
    assert all(r["prompt_seconds"] == 0.3 for r in rows)
    assert rvqlm_command(*words, "--num-prompts", 3) == 0  # as many as there are
    assert "only 2 cuts of split 'test' are longer" in capsys.readouterr().err
    assert rvqlm_command(*words, "--prompt-seconds", 0.9) == 2
    assert "no cut of split 'test' is longer than 1.5 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--exp-dir", "nowhere"], "nowhere: no such experiment"),
        (["--temperature", -1, "--seconds", 0], "--temperature -1.0 must not be negative"),
        (["--temperature", -1, "--seconds", 0], "--seconds 0.0 must be positive"),
        (["--prompt", "no.wav"], "no.wav"),
        (["--midi", "a.mid", "--midi-start", "nan"], "--midi-start nan must be a second"),
        (["--midi-start", 3], "--midi-start 3.0 must be a second of --midi files"),
        (["--midi", "a.mid"], "--midi: the model was trained without --conditions midi"),
        (["--prompt", "a.wav", "--manifest-dir", "d"], "exclude each other"),
        (["--manifest-dir", "nowhere"], "nowhere"),
        (["--checkpoint", "latest"], "latest.pt: no such checkpoint"),
        (["--codec", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_status_2(experiment, tmp_path, capsys, flags, message):
    given = ["--exp-dir", experiment, "--out-dir", tmp_path / "out"]
    assert rvqlm_command("generate", *given, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("rvqlm generate: error:") and "\n" not in error
    assert not list(tmp_path.glob("out/*"))


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"not a checkpoint")
    assert rvqlm_command("generate", "--exp-dir", path) == 2
    assert "not a checkpoint (" in capsys.readouterr().err
    torch.save({"weights": torch.zeros(2)}, path)
    assert rvqlm_command("generate", "--exp-dir", path) == 2
    assert "not a checkpoint of rvqlm" in capsys.readouterr().err
