"""The command as a user runs it: real flags, the embedded codec, exit codes and one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import rvqlm.bin.main
import rvqlm.bin.tokenizer
from rvqlm.bin.tokenizer import main


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.3, 0.3, 4000), 16000)
    return folder


def test_flags_reach_the_tokens(audio, tmp_path, capsys):
    out = tmp_path / "tokens"
    words = ["--input", str(audio), "--out-dir", str(out), "--num-codebooks", "3", "--jobs", "2"]
    assert main([*words, "--dry-run"]) == 0
    assert not out.exists() and "3 x 1024" in capsys.readouterr().out
    assert main(words) == 0
    assert "3 cuts" in capsys.readouterr().out
    side = json.loads((out / "tokens.json").read_text())
    assert side["codec"]["name"] == "spectral" and side["codec"]["num_codebooks"] == 3
    assert len(side["shards"]) == 2
    assert rvqlm.bin.main.main(["tokenize", *words]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_config_file(audio, tmp_path):
    (tmp_path / "c.yaml").write_text(f"input: {audio}\njobs: 1\nnum-codebooks: 2\n")
    assert main(["--config", str(tmp_path / "c.yaml"), "--out-dir", str(tmp_path / "out")]) == 0
    side = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert side["codec"]["num_codebooks"] == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--input", "nowhere"], "--input nowhere: no such file or folder"),
        (["--codec", "nowhere"], "codec nowhere: no such folder"),
        (["--num-codebooks", "99"], "99"),
        (["--chunk-seconds", "-1"], "--chunk-seconds -1 must be positive"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--out-dir", "/dev/null/x"], "--out-dir /dev/null/x: Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_status_2(audio, tmp_path, capsys, flags, message):
    given = {"--input": str(audio), "--out-dir": str(tmp_path / "out"), flags[0]: flags[1]}
    assert main([word for pair in given.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm tokenize: error: ") and error.count("\n") == 1
    assert message in error and not (tmp_path / "out").exists()


def test_the_short_name_of_codebooks(audio, tmp_path):
    """Beside a --config file too, which knows the long one."""
    (tmp_path / "c.yaml").write_text(f"input: [{audio}/a.wav, {audio}/b.wav]\nnum-codebooks: 2\n")
    for i, flags in enumerate((["--codebooks", "4"], ["--codebooks=4"])):
        out = tmp_path / str(i)
        assert main(["--config", str(tmp_path / "c.yaml"), "--out-dir", str(out), *flags]) == 0
        side = json.loads((out / "tokens.json").read_text())
        assert side["codec"]["num_codebooks"] == 4 and side["num_cuts"] == 2


def test_several_inputs_and_audio_flags(audio, tmp_path):
    out = tmp_path / "out"
    words = ["--input", f"{audio}/a.wav", f"{audio}/c.wav", "--out-dir", str(out), "--jobs", "1"]
    words += ["--loudness", "-23", "--trim-silence", "--trim-dbfs", "-60", "--mono", "left"]
    assert main([*words, "--stereo", "refuse", "--batch-size", "2", "--chunk-seconds", "1"]) == 0
    side = json.loads((out / "tokens.json").read_text())
    assert side["num_cuts"] == 2 and side["audio"] == {
        "mono": "left", "stereo": "refuse", "loudness": -23.0, "trim_dbfs": -60.0,
    }  # fmt: skip


def test_help_is_grouped(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for group in ("input", "codec", "audio", "work"):
        assert f"{group} options" in shown
    assert "--codebooks" in shown and "--num-codebooks" in shown


def test_unknown_flag():
    assert main(["--nonsense"]) != 0


def test_as_a_script():
    """From its own folder, where a file called tokenize.py would break Python itself."""
    script = Path(rvqlm.bin.tokenizer.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--chunk-seconds" in done.stdout
