"""Every command and every line of Python in the documentation is executed as it is written.

The README's workflow runs on a few seconds of noise, with only budgets made small; each page of
docs/ runs in the folder that it leaves, and so needs nothing of another page. The equivalents of
other projects' commands run on small random codecs of the published names. What needs weights, a
compiler or hours of audio is read by the program it names and not run, of a recipe what each of its
stages would run. The two commands of the README's first block run in tests/egs/test_mini_run.py.
"""

import glob
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from midi_files import write_midi

from rvqlm.bin.main import COMMANDS
from rvqlm.bin.main import main as rvqlm
from rvqlm.cli import parse

ROOT = Path(__file__).resolve().parents[1]
SHELL_ONLY = {"git clone REPOSITORY rvqlm && cd rvqlm"}
SMALL = {
    "--max-minutes": "0.02",
    "--seconds": "0.5",
    "--sample-seconds": "0.5",
    "--sample-prompt-seconds": "0.2",
    "--archive-every": "1",
    "--long-seconds": "1",
}
SENTENCES = ("Good morning to you, and good night.", "What the prompt says, and what is to follow.")
NOT_RUN = {"--codec", "--compile", "--window-schedule", "--mix-dirs"}
NOT_RUN |= {"--corpus-dir", "--meta", "--list-judges"}
"""Flags that need other codecs' weights, a C++ compiler, hours of audio, corpora, every judge."""
ENDLESS = ("serve",)
"""Commands that run until they are stopped."""
OTHER_PROJECTS = "docs/from-other-projects.md"
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCS = [page for page in DOCS if page not in (OTHER_PROJECTS, "docs/LOG.md")]
PAGES = (
    "README.md", "CONTRIBUTING.md", OTHER_PROJECTS, *DOCS,
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("egs/**/README.md")),
)  # fmt: skip


def commands(page: str) -> list[str]:
    """Lines of the ```sh blocks, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and line[0] != "#"]


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def runs(page: str) -> list[str]:
    """The commands of a page that a test runs."""
    if page != "README.md" and page not in DOCS:
        return []
    found = [c for c in commands(page) if c.startswith("rvqlm ") and c.split()[1] not in ENDLESS]
    return [c for c in found if not NOT_RUN & set(c.split())]


def only_read() -> list[str]:
    """The other commands of all pages but that of other projects, each once."""
    pages = [page for page in PAGES if page != OTHER_PROJECTS]
    return list(dict.fromkeys(c for p in pages for c in commands(p) if c not in runs(p)))


def words_of(command: str) -> list[str]:
    """The words after `rvqlm`, unquoted patterns expanded as a shell does."""
    found = []
    for word in shlex.split(command, posix=False)[1:]:
        matches = sorted(glob.glob(word)) if word[0] not in "\"'" else []
        found += matches or shlex.split(word)
    return found


def run_all(found: list[str], small: dict[str, str]) -> None:
    for command in found:
        words = words_of(command)
        if "--max-minutes" in words and "--config" not in words:  # steps, so that no speed decides
            i = words.index("--max-minutes")
            words[i : i + 2] = ["--max-steps", str(2 + int(words[i + 1]) // 1000)]
        for flag, value in small.items():
            if flag in words:
                words[words.index(flag) + 1] = value
        if words[0] == "train" and "--manifest-dir" in words and "--max-duration" not in words:
            words += ["--max-duration", "10"]
        if "--config" in words and words[0] == "train":  # sizes are in the file
            for flag in ("--decoder-dim", "--num-decoder-layers", "--nhead", "--accum"):
                words += [flag, small[flag]] if flag in small and flag not in words else []
        # pytest shows what it wrote; a model of noise need not be fit for release
        assert rvqlm(words) in ((0, 1) if words[0] == "check" else (0,)), command


def noise(path: Path, seconds: float, rate: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, audio, rate)


def notes(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(path, [(0.1 * i, 0.2, 60 + (i * seed) % 12, 80) for i in range(12)])


def run_python(page: str) -> None:
    names: dict = {}
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), names)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with recordings of all kinds, in which the README was followed."""
    folder = tmp_path_factory.mktemp("workplace")
    for i, name in enumerate("abcdef"):
        for kind in ("my-audio", "piano", "backing", "solo"):
            noise(folder / kind / f"{name}.wav", 3, 16000, i)
        notes(folder / "scores" / f"{name}.mid", i)
        for speaker in ("ann", "bob", "cat"):
            path = folder / "speech" / speaker / f"{name}.wav"
            noise(path, 2, 16000, i)
            path.with_suffix(".txt").write_text(SENTENCES[i % 2])
    rows = ["name\tprompt\tseed", "one\tmy-audio/a.wav\t", "two\tmy-audio/b.wav\t4"]
    (folder / "list.tsv").write_text("\n".join(rows))
    (folder / "egs").symlink_to(ROOT / "egs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_all(runs("README.md"), SMALL)
        run_python("README.md")
    shutil.copytree(folder / "exp/mine", folder / "exp/other")  # to compare with
    return folder


def test_the_readme_runs_as_written(workplace):
    page = (workplace / "exp/mine/report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 3  # a recording, after the codec, continued
    assert soundfile.info(workplace / "new.wav").samplerate == 16000


@pytest.mark.parametrize("page", DOCS)
def test_a_page_runs_as_written(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    run_all(runs(page), SMALL)
    run_python(page)


def test_all_commands_are_documented():
    shown = {c.split()[1] for page in PAGES for c in commands(page) if c.startswith("rvqlm ")}
    assert shown == set(COMMANDS)


def test_commands_of_other_projects_run_as_written(tmp_path, monkeypatch):
    """With codecs of the published shapes, in rates and levels, and hardly any weights."""
    monkeypatch.syspath_prepend(str(ROOT / "egs/shared/local"))
    import stand_in_codecs

    for name in stand_in_codecs.CODECS:
        stand_in_codecs.make(tmp_path / "codecs", name)
    monkeypatch.setenv("RVQLM_CODECS", str(tmp_path / "codecs"))
    for i in range(1, 7):
        noise(tmp_path / f"data/album/track_{i:02d}.mp3", 7, 44100, i)
        noise(tmp_path / f"stems/lead/{i}.flac", 4, 8000, i)
        noise(tmp_path / f"piano/{i}.wav", 6, 32000, i)
        noise(tmp_path / f"speech/{i}.ogg", 1, 24000, i)
        noise(tmp_path / f"stems/backing/{i}.flac", 4, 8000, 10 + i)
        words = "Good morning to you, and good night."
        (tmp_path / f"speech/{i}.txt").write_text(words)
    (tmp_path / "egs").symlink_to(ROOT / "egs")
    monkeypatch.chdir(tmp_path)
    small = {
        "--num-epochs": "1", "--accum": "1", "--decoder-dim": "32", "--num-decoder-layers": "1",
        "--nhead": "2", "--codebooks": "9", "--seconds": "0.5",
        "--min-window-seconds": "3", "--rms-frame-seconds": "1",
    }  # fmt: skip
    page = commands(OTHER_PROJECTS)
    assert all(c.startswith("rvqlm ") for c in page)
    run_all(page, small)
    run_python(OTHER_PROJECTS)
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


SEEN: set[tuple] = set()


def accept_stages(words: list[str], monkeypatch) -> None:
    """What each stage of a recipe would run is read by rvqlm, commands of the same flags once."""
    found = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        [*words, "--dry-run"],
        cwd=ROOT, env=os.environ | found, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = (ROOT / words[0]).parent
    monkeypatch.chdir(folder)
    lines = [line.strip() for line in done.stdout.splitlines() if "     rvqlm " in line]
    assert lines
    for line in lines:
        run = shlex.split(line)[1:]
        kind = folder, *(w for w in run if w.startswith("--") or w.endswith(".yaml"))
        if kind not in SEEN:
            SEEN.add(kind)
            with pytest.raises(Read):
                read_only(run, monkeypatch)


@pytest.mark.parametrize("command", only_read())
def test_what_is_not_run_is_accepted(command, monkeypatch):
    if command in SHELL_ONLY:
        return
    words = shlex.split(command)
    if words[0] == "rvqlm":
        if words[1] == "train" and "--manifest-dir" not in words:
            words += ["--manifest-dir", "that of the run which is resumed"]
        with pytest.raises(Read):
            read_only(words[1:], monkeypatch)
    elif words[0] == "tensorboard":
        assert words[1:2] == ["--logdir"]
    elif words[0] == "tools/test.sh":
        assert os.access(ROOT / words[0], os.X_OK)  # its arguments are pytest's
    elif words[0] == "sbatch":  # what each job of the array runs
        last = re.fullmatch(r"--array=0-(\d+)(%\d+)?", words[1])[1]
        wrapped = shlex.split(words[words.index("--wrap") + 1])
        assert wrapped[0] == "rvqlm" and wrapped[-2:] == ["--part", f"auto/{int(last) + 1}"]
        with pytest.raises(Read):
            read_only(wrapped[1:], monkeypatch)
    elif words[0].startswith("./egs/"):
        accept_stages(words, monkeypatch)
    elif words[0].endswith(".sh") or words[0] == "python":
        assert (ROOT / (words[1] if words[0] == "python" else words[0])).exists()
        if "--" in words:  # what follows is for another program
            words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
            if words[0].endswith("slurm.sh"):  # the other launchers look at it themselves
                with pytest.raises(Read):
                    command = "tokenize" if "--parts" in words else "train"
                    read_only([command, *rest], monkeypatch)
        done = subprocess.run(
            [*words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    else:
        pytest.fail(f"this test does not know how to check: {command}")


@pytest.mark.parametrize(
    "command",
    ["rvqlm train --exp-dir x --manifest-dir y --no-such-flag 1", "rvqlm split --exp x"],
)
def test_a_wrong_flag_would_be_noticed(command, monkeypatch):
    try:
        status = read_only(shlex.split(command)[1:], monkeypatch)
    except SystemExit as end:
        status = end.code
    assert status == 2


def heading_anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in heading_anchors(file), target


def test_the_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if f"({page})" not in text] == []
