"""The package as a wheel, in an environment without the checkout: nothing is left out."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHAT_IT_NEEDS = """
import importlib, pkgutil
from pathlib import Path

import rvqlm
assert not Path(rvqlm.__file__).is_relative_to({root!r}), rvqlm.__file__
for module in pkgutil.walk_packages(rvqlm.__path__, "rvqlm."):
    importlib.import_module(module.name)

import torch
from rvqlm.codecs.registry import load_codec
codes, lengths = load_codec("spectral").encode(torch.zeros(1, 1, 16000))  # weights are data files
assert codes.shape == (1, 50, 8), codes.shape
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Python of a new environment with the wheel and, from this one, only what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind, which later wheels would take in
    shutil.copytree(ROOT / "rvqlm", source / "rvqlm", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True, timeout=300,
    )  # fmt: skip
    (wheel,) = folder.glob("rvqlm-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env/bin/python"
    subprocess.run(
        [*pip, "--python", python, "install", "--quiet", "--no-deps", wheel],
        check=True, timeout=300,
    )  # fmt: skip
    # packages of this environment are importable there, its link to the checkout is not followed
    scheme = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *args: str) -> str:
    done = subprocess.run(
        [python, *args], cwd=python.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_modules_and_data_files_are_in_it(python):
    run(python, "-c", WHAT_IT_NEEDS.format(root=str(ROOT)))


def test_the_command_works(python):
    assert "\n  train " in run(python, str(python.parent / "rvqlm"), "--help")


def test_every_file_of_the_package_is_in_it(python):
    where = "import rvqlm; print(rvqlm.__path__[0])"
    installed = Path(run(python, "-c", where).strip())
    for folder in (ROOT / "rvqlm", installed):
        assert folder.is_dir()
    ours, theirs = (
        {p.relative_to(f) for p in f.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        for f in (ROOT / "rvqlm", installed)
    )
    assert ours == theirs
