"""Every command of the README is run, or read by the program it names, as it is written.

The workflow on one's own recordings runs in order on a few seconds of noise, with only budgets
made small, and so do the equivalents of other projects' commands, on small random codecs of the
published names. Shell scripts read their options and stop (`--help` at the end of the line); the
two commands of the first block run in tests/egs/test_mini_run.py.
"""

import glob
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from lhotse import CutSet
from midi_files import write_midi

from rvqlm.bin.main import COMMANDS, SECOND_NAMES
from rvqlm.bin.main import main as rvqlm
from rvqlm.cli import parse

ROOT = Path(__file__).resolve().parents[1]
SHELL_ONLY = {"git clone REPOSITORY rvqlm && cd rvqlm", "source .venv/bin/activate"}
SMALL = {
    "--max-minutes": "0.02",
    "--seconds": "0.5",
    "--sample-seconds": "0.5",
    "--sample-prompt-seconds": "0.2",
    "--archive-every": "1",
}
PAGES = (
    "README.md", "CONTRIBUTING.md", "egs/mini/README.md", "egs/custom/README.md",
    "docs/from-other-projects.md", "docs/manifests.md", "docs/models.md", "docs/training.md",
)  # fmt: skip


def commands(page: str) -> list[str]:
    """Lines of the ```sh blocks, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and line[0] != "#"]


def all_commands() -> list[str]:
    return list(dict.fromkeys(c for page in PAGES for c in commands(page)))


def workflow() -> list[str]:
    """The README's rvqlm commands that need no other codec."""
    return [c for c in commands("README.md") if c.startswith("rvqlm ") and "--codec" not in c]


def words_of(command: str) -> list[str]:
    """The words after `rvqlm`, unquoted patterns expanded as a shell does."""
    found = []
    for word in shlex.split(command, posix=False)[1:]:
        matches = sorted(glob.glob(word)) if word[0] not in "\"'" else []
        found += matches or shlex.split(word)
    return found


def run_all(page: list[str], small: dict[str, str], capsys) -> None:
    for command in page:
        words = words_of(command)
        for flag, value in small.items():
            if flag in words:
                words[words.index(flag) + 1] = value
        if "--config" in words and words[0] == "trainer":  # sizes are in the file
            for flag in ("--decoder-dim", "--num-decoder-layers", "--nhead", "--accum"):
                words += [flag, small[flag]] if flag in small and flag not in words else []
        assert rvqlm(words) == 0, f"{command}\n{capsys.readouterr().err}"


def noise(path: Path, seconds: float, rate: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, audio, rate)


def notes(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(path, [(0.1 * i, 0.2, 60 + (i * seed) % 12, 80) for i in range(12)])


def test_the_workflow_runs_as_written(tmp_path, monkeypatch, capsys):
    for i, name in enumerate("abcdef"):
        for folder in ("my-audio", "piano", "backing", "solo"):
            noise(tmp_path / folder / f"{name}.wav", 3, 16000, i)
        notes(tmp_path / "scores" / f"{name}.mid", i)
        for speaker in ("ann", "bob", "cat"):
            path = tmp_path / "speech" / speaker / f"{name}.wav"
            noise(path, 2, 16000, i)
            path.with_suffix(".txt").write_text("Good morning to you, and good night.")
    (tmp_path / "egs").symlink_to(ROOT / "egs")
    monkeypatch.chdir(tmp_path)
    shown = {c.split()[1] for c in commands("README.md") if c.startswith("rvqlm ")}
    # the README shows every command
    assert {SECOND_NAMES.get(c, c) for c in shown} == set(COMMANDS)
    run_all(workflow(), SMALL, capsys)
    page = (tmp_path / "exp" / "mine" / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 5  # recordings, a continuation, four from nothing


def test_commands_of_other_projects_run_as_written(tmp_path, monkeypatch, capsys):
    """With codecs of the published shapes, in rates and levels, and hardly any weights."""
    torch.manual_seed(0)
    codecs = {
        "descript/dac_44khz": transformers.DacModel(
            transformers.DacConfig(
                encoder_hidden_size=2, decoder_hidden_size=16, downsampling_ratios=[2, 4, 8, 8],
                n_codebooks=9, codebook_size=1024, sampling_rate=44100,
            )
        ),
        "facebook/encodec_32khz": transformers.EncodecModel(
            transformers.EncodecConfig(
                num_filters=2, hidden_size=8, upsampling_ratios=[8, 5, 4, 4], codebook_size=2048,
                sampling_rate=32000, target_bandwidths=[2.2], use_causal_conv=False,
            )
        ),
        "facebook/encodec_24khz": transformers.EncodecModel(
            transformers.EncodecConfig(
                num_filters=2, hidden_size=8, upsampling_ratios=[8, 5, 4, 2], codebook_size=1024,
                sampling_rate=24000, target_bandwidths=[6.0],
            )
        ),
    }  # fmt: skip
    for name, model in codecs.items():
        model.save_pretrained(tmp_path / "codecs" / name)
    monkeypatch.setenv("RVQLM_CODECS", str(tmp_path / "codecs"))
    for i in range(1, 7):
        noise(tmp_path / f"data/album/track_{i:02d}.mp3", 7, 44100, i)
        noise(tmp_path / f"stems/lead/{i}.flac", 31, 8000, i)
        noise(tmp_path / f"piano/{i}.wav", 6, 32000, i)
        noise(tmp_path / f"speech/{i}.ogg", 1, 24000, i)
        noise(tmp_path / f"stems/backing/{i}.flac", 31, 8000, 10 + i)
        words = "Good morning to you, and good night."
        (tmp_path / f"speech/{i}.txt").write_text(words)
    (tmp_path / "egs").symlink_to(ROOT / "egs")
    monkeypatch.chdir(tmp_path)
    small = {
        "--num-epochs": "1", "--accum": "1", "--decoder-dim": "32", "--num-decoder-layers": "1",
        "--nhead": "2", "--codebooks": "9", "--seconds": "0.5",
    }  # fmt: skip
    page = commands("docs/from-other-projects.md")
    assert all(c.startswith("rvqlm ") for c in page)
    run_all(page, small, capsys)
    assert soundfile.info("reconstructed.wav").samplerate == 44100
    npq = sorted(p.name for p in (tmp_path / "npq_out").rglob("*.npq"))
    assert npq == [f"track_{i:02d}.npq" for i in range(1, 7)]
    # two pitches and two tempos of each window, none of them in the test set
    counts = {
        name: len(list(CutSet.from_file(tmp_path / f"tokens/lead/cuts{name}.jsonl.gz")))
        for name in ("", "_train", "_valid", "_test")
    }
    assert counts[""] == 6 * 5 and counts["_valid"] == counts["_test"] == 1
    assert counts["_train"] == 4 * 5
    stages = [tmp_path / "exp/piano2" / f"stage{n}/best.pt" for n in (1, 2)]
    assert all(path.exists() for path in stages)


class Read(Exception):
    """The command line was accepted."""


def read_only(words: list[str], monkeypatch) -> int:
    """Let a rvqlm command read its flags and stop."""
    from rvqlm.bin.main import _FILES

    def stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Read

    importlib.import_module(f"rvqlm.bin.{_FILES.get(words[0], words[0])}")
    for module in [m for name, m in sys.modules.items() if name.startswith("rvqlm.")]:
        if getattr(module, "parse", None) is parse:
            monkeypatch.setattr(module, "parse", stop)
    return rvqlm(words)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_accepted(command, monkeypatch):
    if command in SHELL_ONLY:
        return
    words = shlex.split(command)
    if words[0] == "rvqlm":
        if words[1] in ("train", "trainer") and "--manifest-dir" not in words:
            words += ["--manifest-dir", "that of the run which goes on"]
        with pytest.raises(Read):
            read_only(words[1:], monkeypatch)
    elif words[0] == "tensorboard":
        assert words[1:2] == ["--logdir"]
    elif words[0] == "tools/test.sh":
        assert os.access(ROOT / words[0], os.X_OK)  # its arguments are pytest's
    elif words[0].endswith(".sh") or words[0] == "python":
        assert (ROOT / (words[1] if words[0] == "python" else words[0])).exists()
        if "--" in words:  # what follows is for another program
            words = words[: words.index("--")]
        done = subprocess.run(
            [*words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    else:
        pytest.fail(f"this test does not know how to check: {command}")


@pytest.mark.parametrize(
    "command",
    ["rvqlm trainer --exp-dir x --manifest-dir y --no-such-flag 1", "rvqlm split --exp x"],
)
def test_a_wrong_flag_would_be_noticed(command, monkeypatch):
    try:
        status = read_only(shlex.split(command)[1:], monkeypatch)
    except SystemExit as end:
        status = end.code
    assert status == 2


def test_linked_files_exist():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
