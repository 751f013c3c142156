"""Every command of the README is run, or read by the program it names, as it is written.

The workflow on one's own recordings runs in order on a few seconds of noise, with only budgets
made small. Shell scripts read their options and stop (`--help` at the end of the line); the two
commands of the first block run in tests/egs/test_mini_run.py.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvqlm.bin.main import COMMANDS
from rvqlm.bin.main import main as rvqlm

ROOT = Path(__file__).resolve().parents[1]
SHELL_ONLY = {"git clone REPOSITORY rvqlm && cd rvqlm", "source .venv/bin/activate"}
SMALL = {"--max-minutes": "0.02", "--seconds": "0.5"}
PAGES = ("README.md", "CONTRIBUTING.md", "egs/mini/README.md")


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


def test_the_workflow_runs_as_written(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in "abcdef":
        path = tmp_path / "my-audio" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(48000), 16000)
    monkeypatch.chdir(tmp_path)
    assert {c.split()[1] for c in workflow()} == set(COMMANDS)  # the README shows every command
    for command in workflow():
        words = shlex.split(command)[1:]
        for flag, value in SMALL.items():
            if flag in words:
                words[words.index(flag) + 1] = value
        assert rvqlm(words) == 0, f"{command}\n{capsys.readouterr().err}"
    page = (tmp_path / "exp" / "mine" / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 5  # recordings, a continuation, four from nothing


class Read(Exception):
    """The command line was accepted."""


def read_only(words: list[str], monkeypatch) -> int:
    """Let a rvqlm command read its flags and stop."""
    import importlib

    import rvqlm.cli as cli
    from rvqlm.bin.main import _FILES

    def stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Read

    parse = cli.parse
    module = importlib.import_module(f"rvqlm.bin.{_FILES.get(words[0], words[0])}")
    monkeypatch.setattr(cli, "parse", stop)
    if hasattr(module, "parse"):
        monkeypatch.setattr(module, "parse", stop)
    return rvqlm(words)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_accepted(command, monkeypatch):
    if command in SHELL_ONLY:
        return
    words = shlex.split(command)
    if words[0] == "rvqlm":
        with pytest.raises(Read):
            read_only(words[1:], monkeypatch)
    elif words[0] == "tools/test.sh":
        assert os.access(ROOT / words[0], os.X_OK)  # its arguments are pytest's
    elif words[0].endswith(".sh") or words[0] == "python":
        assert (ROOT / (words[1] if words[0] == "python" else words[0])).exists()
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
