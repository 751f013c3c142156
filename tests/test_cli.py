import dataclasses
import errno
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
import yaml
from msgspec import Meta

from rvqlm.bin import main as rvqlm_main
from rvqlm.cli import command_line, flatten, parse, peek, run_main
from rvqlm.errors import UserError


@dataclass
class Group:
    """A group."""

    base_lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Two of them."""
    average: bool = True
    """On or off."""


@dataclass
class Config:
    """Flags of a test."""

    exp_dir: str
    """Where."""
    names: list[str] = field(default_factory=list)
    """Some names."""
    seed: int | None = None
    """Or none."""
    kind: Literal["small", "large"] = "small"
    """Which."""
    where: Path = Path("here")
    """A path."""
    group: Group = field(default_factory=Group)


def run(*argv: str) -> Config:
    return parse(Config, "rvqlm test", "A test.", argv)


def config_file(tmp_path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


def test_flags_are_flat_and_kebab_case():
    config = run("--exp-dir", "x", "--base-lr", "0.5", "--no-average", "--betas", "0.1", "0.2")
    assert type(config) is Config
    assert config == Config("x", group=Group(0.5, (0.1, 0.2), False))


def test_help_has_groups_and_docstrings(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for text in ("rvqlm test", "A test.", "--base-lr", "Peak learning rate.", "group options"):
        assert text in out
    assert "--config" in out and "--group" not in out


def test_config_lies_under_the_flags(tmp_path):
    path = config_file(
        tmp_path,
        "exp_dir: -dash\nbase-lr: 1e-4\naverage: false\nnames: [a, b]\nseed: null\nkind: large\n",
    )
    config = run("--config", path)
    assert config == Config("-dash", ["a", "b"], kind="large", group=Group(1e-4, average=False))
    config = run("--config", path, "--base_lr", "2", "--average", "--names", "c", "--seed", "3")
    assert config == Config("-dash", ["c"], seed=3, kind="large", group=Group(2.0))


def test_command_line_before_file_before_the_callers_values(tmp_path):
    """`beneath` gives what neither says; what is no flag there is left out."""
    path = config_file(tmp_path, "seed: 2\nbase-lr: 0.2\n")
    preset = {"exp-dir": "p", "seed": 1, "base-lr": 0.1, "average": False, "no-flag": 9}
    argv = ["--config", path, "--seed", "3"]
    config = parse(Config, "rvqlm test", "A test.", argv, beneath=preset)
    assert config == Config("p", seed=3, group=Group(0.2, average=False))
    config = parse(Config, "rvqlm test", "A test.", [*argv, "--average"], beneath=preset)
    assert config.group.average


def test_what_is_saved_can_be_read_back(tmp_path):
    config = Config("e", ["n"], seed=1, where=Path("/a"), group=Group(0.25, (0.5, 0.5), False))
    flat = flatten(config)
    assert flat["base-lr"] == 0.25 and flat["where"] == "/a" and flat["betas"] == [0.5, 0.5]
    assert run("--config", config_file(tmp_path, yaml.safe_dump(flat))) == config


def test_unknown_keys_name_file_key_and_the_nearest(tmp_path):
    path = config_file(tmp_path, "exp_dir: x\nbase_l: 1\nzzz: 2\n")
    with pytest.raises(UserError) as error:
        run("--config", path)
    message = str(error.value)
    assert path in message and "'base_l'; did you mean 'base-lr'?" in message and "'zzz'" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exp_dir: x\nseed: 1.5", "seed: 1.5 is not a int | None"),
        ("exp_dir: x\nbetas: [1]", "betas: [1] is not"),
        ("exp_dir: x\naverage: 3", "average: 3 is not a bool"),
        ("exp_dir: x\nkind: huge", "kind: 'huge' is not"),
        ("exp_dir: x\nbase-lr: true", "base-lr: True is not a float"),
        ("exp_dir: x\nexp-dir: y", "key 'exp-dir' given twice"),
        ("exp_dir: {a: 1}", "exp_dir: {'a': 1} is not a str"),
        ("- exp_dir", "expected lines of the form"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = config_file(tmp_path, text)
    with pytest.raises(UserError) as error:
        run("--config", path)
    assert message in str(error.value) and path in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file():
    with pytest.raises(UserError, match=r"--config nowhere\.yaml: No such file"):
        run("--config", "nowhere.yaml")
    with pytest.raises(UserError, match="--config needs the path"):
        run("--config")


def test_wrong_flags_exit_with_2(capsys):
    for argv in (["--exp-dir", "x", "--base-l", "1"], ["--exp-dir", "x", "--seed", "a"], []):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        assert stop.value.code == 2
    assert "--base-lr" in capsys.readouterr().err


def test_checks_of_the_class_run_once():
    seen = []

    @dataclass(frozen=True)
    class Checked:
        """Checks itself."""

        value: int = 1
        """A value."""

        def __post_init__(self):
            seen.append(self.value)

    assert parse(Checked, "p", "d", ["--value", "3"]) == Checked(3)
    assert seen == [3, 3]  # once parsed, once built in the line above


def test_positional_arguments():
    @dataclass
    class Positional:
        """With a positional."""

        path: tyro.conf.Positional[str]
        """Which."""
        size: int = 1
        """How large."""

    assert dataclasses.astuple(parse(Positional, "p", "d", ["f", "--size", "2"])) == ("f", 2)


def test_peek(tmp_path):
    path = config_file(tmp_path, "model_name: b\n")
    assert peek(["--x", "1"], "model-name", "d") == "d"
    assert peek(["--config", path], "model-name", "d") == "b"
    assert peek(["--config", path, "--model_name", "c"], "model-name", "d") == "c"
    assert peek(["--model-name=a", "--model-name=b"], "model-name", "d") == "b"
    assert peek(["--config", "nowhere"], "model-name", "d") == "d"


def test_command_line(monkeypatch):
    assert command_line("x", ["--a", "b c"]) == "rvqlm x --a 'b c'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/rvqlm", "x", "--a"])
    assert command_line("x") == "rvqlm x --a"
    monkeypatch.setattr(sys, "argv", ["egs/mini/bin/x.py", "--a"])
    assert command_line("x") == "rvqlm x --a"


def raising(error):
    def body(argv):
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a.wav: empty; remove it"), 2, "rvqlm x: error: a.wav: empty; remove it\n"),
        (KeyboardInterrupt(), 130, "rvqlm x: interrupted\n"),
        (OSError(errno.ENOSPC, "No space", "f"), 2, "rvqlm x: error: f: the disk is full; "),
        (PermissionError(errno.EACCES, "no", "f"), 2, "rvqlm x: error: f: permission denied\n"),
        (OSError(errno.EFBIG, "File too large", "f"), 2, "rvqlm x: error: f: larger than files"),
        (FileExistsError(errno.EEXIST, "exists", "f"), 2, "rvqlm x: error: f: there is a file"),
        (IsADirectoryError(errno.EISDIR, "is", "f"), 2, "rvqlm x: error: f: a folder, where a f"),
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_run_main_turns_errors_into_a_line(capsys, error, status, line):
    assert run_main(raising(error), [], "x") == status
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == bool(line)


def test_errors_of_libraries_are_a_line(capsys):
    """Theirs for a damaged file and for a full disk, which no number tells apart."""
    import soundfile
    from safetensors import SafetensorError

    for error in (soundfile.LibsndfileError(2, "x: "), SafetensorError("IoError(28)")):
        assert run_main(raising(error), [], "x") == 2
        err = capsys.readouterr().err
        assert "disk full" in err and err.count("\n") == 1


def test_a_lack_of_memory_is_a_line(capsys):
    import torch

    errors = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB")]
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    for error in (*errors, refused.value):
        assert run_main(raising(error), [], "x") == 2
        err = capsys.readouterr().err
        assert "more memory than there is" in err and err.count("\n") == 1


def test_a_terminal_without_unicode():
    """A name that it cannot show ends no command."""
    code = "from rvqlm.cli import run_main\nrun_main(lambda a: print('\\u2581\\udcff é'), [], 'x')"
    for coding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONIOENCODING": coding},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0 and rb"\udcff" in done.stdout and not done.stderr


@dataclass
class Ranged:
    """Numbers."""

    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    """A range."""
    free: int | None = None
    """Any."""
    limit: float = math.inf
    """Infinite by default."""
    group: Group = field(default_factory=Group)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--base-lr nan", "--base-lr nan: give a number up to 1e+09"),
        ("--betas 0.1 inf", "--betas inf: give a number up to 1e+09"),
        ("--limit nan", "--limit nan: give a number up to 1e+09"),
        ("--threads -1", "--threads -1: expected int >= 0"),
        ("--betas 1 1e30", "--betas 1e+30: give a number up to 1e+09"),
        ("--free 99999999999999999999", "--free 99999999999999999999: give a number up to 9.2"),
        ("--threads 65 --base-lr=-inf", "--threads 65: expected int <= 64; --base-lr -inf"),
    ],
)
def test_numbers_are_within_their_ranges(words, message):
    with pytest.raises(UserError) as error:
        parse(Ranged, "p", "d", words.split())
    assert message in str(error.value)
    assert parse(Ranged, "p", "d", ["--threads", "64", "--limit", "inf"]) == Ranged(64)


def test_a_config_file_has_ranges_too(tmp_path):
    for text in ("threads: -1", "base-lr: .nan"):
        with pytest.raises(UserError, match=r"^--"):
            parse(Ranged, "p", "d", ["--config", config_file(tmp_path, text)])


def test_run_main_keeps_the_traceback_of_a_bug():
    with pytest.raises(ZeroDivisionError):
        run_main(raising(ZeroDivisionError()), [], "x")
    with pytest.raises(FileNotFoundError):
        run_main(raising(FileNotFoundError(errno.ENOENT, "no", "f")), [], "x")


def test_run_main_names_the_command_by_its_file(capsys):
    assert run_main(lambda argv: None, []) == 0
    run_main(raising(UserError("no")), [])
    assert capsys.readouterr().err == "rvqlm test_cli: error: no\n"


def test_dispatch(capsys):
    assert rvqlm_main.main(["--help"]) == 0
    out = capsys.readouterr().out
    names = [n for n in rvqlm_main.COMMANDS]
    assert [out.index(f"\n  {n} ") for n in names] == sorted(out.index(f"\n  {n} ") for n in names)
    assert rvqlm_main.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert rvqlm_main.main(["--version"]) == 0
    assert rvqlm_main.main([]) == 2


def test_every_command_has_a_module_that_hides_no_other():
    folder = Path(rvqlm_main.__file__).parent
    for name in rvqlm_main.COMMANDS:
        assert (folder / f"{rvqlm_main._FILES.get(name, name)}.py").exists(), name
    # run as scripts, they lead sys.path
    assert not {p.stem for p in folder.glob("*.py")} & set(sys.stdlib_module_names)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from rvqlm.bin.main import main; main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'tyro', 'yaml', 'lhotse') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.splitlines()[-1] == "[]"


def test_second_names_of_flags(tmp_path):
    @dataclass
    class Other:
        num_codebooks: Annotated[int, tyro.conf.arg(aliases=("--codebooks",))] = 1
        """How many."""

    def run(*argv):
        return parse(Other, "rvqlm test", "A test.", argv).num_codebooks

    path = config_file(tmp_path, "codebooks: 2\n")
    assert run("--codebooks", "3") == run("--codebooks=3") == run("--num-codebooks", "3") == 3
    assert run("--config", path) == 2
    assert run("--config", path, "--codebooks", "4") == 4
    path = config_file(tmp_path, "codebooks: 2\nnum-codebooks: 3\n")
    with pytest.raises(UserError, match="key 'num-codebooks' given twice"):
        run("--config", path)
