"""tools/setup.sh against a pretend interpreter that writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAKE_PYTHON = """#!/bin/bash
echo "$@" >> {log}
case "$1 $2" in
  "-c "*) exit {too_old} ;;
  "-V "*) echo Python {version} ;;
  "-m venv") mkdir -p "${{!#}}/bin" && cp "$0" "${{!#}}/bin/python" ;;
  "- "*) cat > /dev/null; echo "pinned==1" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with nothing in it but what setup.sh reads."""
    root = tmp_path / "checkout"
    (root / "tools").mkdir(parents=True)
    for name in ("setup.sh", "constraints.txt"):
        shutil.copy(ROOT / "tools" / name, root / "tools" / name)
    (root / "setup.py").write_text("# as good as any\n")
    return root


def fake_python(path: Path, log: Path, too_old: int = 0, version: str = "3.11.7") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE_PYTHON.format(log=log, too_old=too_old, version=version))
    path.chmod(0o755)
    return path


def setup(root: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items()
             if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")}  # fmt: skip
    return subprocess.run(
        [str(root / "tools" / "setup.sh"), *args],
        env=clean | env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def installs(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if "pip install" in line]


def test_makes_venv_once_and_answers_quickly_after(checkout, tmp_path):
    log = tmp_path / "log"
    python = str(fake_python(tmp_path / "bin" / "mypython", log))
    done = setup(checkout, PYTHON=python)
    assert done.returncode == 0, done.stderr
    assert f"-m venv {checkout}/.venv" in log.read_text()
    (line,) = installs(log)
    assert f"-c {checkout}/tools/constraints.txt -e {checkout}" in line
    assert line.endswith("[mini]")

    log.unlink()
    began = time.monotonic()
    assert setup(checkout, PYTHON=python).returncode == 0
    assert setup(checkout).returncode == 0  # PYTHON need not be repeated
    assert setup(checkout, VIRTUAL_ENV=f"{checkout}/.venv").returncode == 0
    assert time.monotonic() - began < 3
    assert not log.exists()


def test_installs_again_when_something_changed(checkout, tmp_path):
    log = tmp_path / "log"
    python = str(fake_python(tmp_path / "mypython", log))
    setup(checkout, PYTHON=python)
    with open(checkout / "tools" / "constraints.txt", "a") as f:
        f.write("another==1\n")
    setup(checkout)
    assert len(installs(log)) == 2
    setup(checkout, "--dev")
    assert len(installs(log)) == 3 and f"{checkout}[dev]" in installs(log)[2]
    setup(checkout)  # dev includes user
    assert len(installs(log)) == 3
    log.unlink()
    other = str(fake_python(tmp_path / "other", log))
    setup(checkout, PYTHON=other)
    assert f"-m venv {checkout}/.venv" in log.read_text()


def test_extras_are_added_once_and_stay(checkout, tmp_path):
    log = tmp_path / "log"
    setup(checkout, PYTHON=str(fake_python(tmp_path / "mypython", log)))
    for words, extras in [
        (("--extra", "jazz"), "[mini,jazz]"),
        (("--extra", "jazz"), None),
        ((), None),
        (("--dev",), "[dev,jazz]"),
        (("--extra", "jazz", "--extra", "text"), "[dev,jazz,text]"),
        (("--dev", "--extra", "text"), None),
    ]:
        before = len(installs(log))
        assert setup(checkout, *words).returncode == 0
        new = installs(log)[before:]
        assert [line.endswith(extras) for line in new] == [True] * (extras is not None)
    for words in (("--extra",), ("--extra", "--dev"), ("--extra", "a b")):
        done = setup(checkout, *words)
        assert done.returncode != 0 and "--extra needs the name" in done.stderr


def test_active_environment_keeps_its_packages(checkout, tmp_path):
    log = tmp_path / "log"
    env = tmp_path / "theirs"
    fake_python(env / "bin" / "python", log)
    done = setup(checkout, VIRTUAL_ENV=str(env))
    assert done.returncode == 0, done.stderr
    assert not (checkout / ".venv").exists()
    assert len(installs(log)) == 1
    assert f"{checkout}/tools/constraints.txt" not in installs(log)[0]  # a filtered copy
    assert setup(checkout, VIRTUAL_ENV=str(env)).returncode == 0
    assert len(installs(log)) == 1


def test_a_failed_installation_is_not_taken_for_a_finished_one(checkout, tmp_path):
    log = tmp_path / "log"
    python = fake_python(tmp_path / "mypython", log)
    python.write_text(python.read_text() + 'case "$*" in *"pip install"*) exit 1;; esac\n')
    assert setup(checkout, PYTHON=str(python)).returncode != 0
    assert setup(checkout, PYTHON=str(python)).returncode != 0
    assert len(installs(log)) == 2


@pytest.mark.parametrize("where", ["PYTHON", "VIRTUAL_ENV"])
def test_old_python_is_one_clear_line(checkout, tmp_path, where):
    log = tmp_path / "log"
    env = tmp_path / "old"
    python = fake_python(env / "bin" / "python", log, too_old=1, version="3.8.18")
    done = setup(checkout, **{where: str(python if where == "PYTHON" else env)})
    assert done.returncode != 0
    assert "3.8.18" in done.stderr and "3.10 or newer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not installs(log)


def test_unknown_argument_and_missing_interpreter(checkout):
    done = setup(checkout, "--gpu")
    assert done.returncode != 0 and "--gpu" in done.stderr
    done = setup(checkout, PYTHON="/nowhere/python3")
    assert done.returncode != 0 and "/nowhere/python3" in done.stderr
    assert "--dev" in setup(checkout, "--help").stdout


def shell_files() -> list[Path]:
    patterns = ("tools/**/*.sh", "egs/*/*.sh", ".ci/run")
    return [f for p in patterns for f in ROOT.glob(p) if ".venv" not in f.parts]


@pytest.mark.parametrize("path", shell_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_shell_files_stop_at_errors(path):
    text = path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    if os.access(path, os.X_OK):  # sourced files inherit it
        assert "set -euo pipefail" in text
    # where packages come from is pip's own configuration; where corpora lie, an option's default
    text = re.sub(r"^download_from=.*", "", text, flags=re.M)
    assert "index-url" not in text and not re.search(r"https?://", text)
