"""What the launchers written in Python share: their options, what they check, what they print.

The flags after ``--`` are those of ``rvqlm train`` or ``rvqlm tokenize``. They are read here, with
the code that will read them there, before anything is submitted: a mistake costs a second instead
of the time in a queue.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

try:
    from rvqlm.errors import UserError
except ModuleNotFoundError:
    print(
        f"{sys.argv[0]}: error: rvqlm is not installed: tools/setup.sh, then activate .venv",
        file=sys.stderr,
    )
    sys.exit(2)

AGAIN = (75, 130, 143)
"""Exit statuses after which the same command continues: a hang that was ended, Ctrl-C, SIGTERM."""
MISTAKE = 2
"""Exit status of a wrong flag or a missing file: starting again would change nothing."""
NODE_SH = "/opt/rvqlm/tools/launch/node.sh"
"""Where the Dockerfile puts tools/launch."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9][\w.\-:/]*(:[\w.\-]+|@sha256:[0-9a-f]{64})")
QUANTITY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(m|[kKMGTP]i?)?")
REMOTE = re.compile(r"(s3|gs)://[^/]+/.+")


class Parser(argparse.ArgumentParser):
    """Mistakes in one line; what the script's docstring says is its help."""

    def __init__(self, doc: str = "", **kwargs):
        super().__init__(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False, **kwargs,
        )  # fmt: skip

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def matching(pattern: re.Pattern, words: str) -> Callable[[str], str]:
    """A type of argparse: a value of this form."""

    def read(value: str) -> str:
        if not pattern.fullmatch(value):
            raise argparse.ArgumentTypeError(f"{value!r}: {words}")
        return value

    return read


def number(least: int) -> Callable[[str], int]:
    """A type of argparse: an integer, at least `least`."""

    def read(value: str) -> int:
        if not value.isascii() or not value.isdigit() or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r}: a number, at least {least}")
        return int(value)

    return read


def pair(value: str) -> tuple[str, str]:
    """A type of argparse: NAME=VALUE."""
    name, equals, rest = value.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w./\-]*", name):
        raise argparse.ArgumentTypeError(f"{value!r}: NAME=VALUE")
    return name, rest


def variable(value: str) -> tuple[str, str]:
    """A type of argparse: NAME=VALUE for the environment; secrets are refused, which would be
    readable by all who may see the job."""
    name, rest = pair(value)
    if re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", name.upper()):
        raise argparse.ArgumentTypeError(
            f"{name}: a secret does not belong in the description of a job"
        )
    return name, rest


name_type = matching(NAME, "up to 63 small letters, digits and -, a letter first")
image_type = matching(IMAGE, "REGISTRY/NAME:TAG or NAME@sha256:..., the tag included")
quantity_type = matching(QUANTITY, "a quantity such as 8, 500m or 64Gi")


def common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=name_type, default="rvqlm", help="of the job (%(default)s)")
    parser.add_argument(
        "--env", type=variable, action="append", default=[], metavar="NAME=VALUE",
        help="a variable of the job's environment; can be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check everything and print what would be submitted, instead",
    )  # fmt: skip


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's options, and the flags after ``--``."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def value_of(flags: Sequence[str], name: str) -> str | None:
    """What `flags` say of ``--name``, in either spelling (--name X, --name=X)."""
    for i, word in enumerate(flags):
        if word == f"--{name}":
            return flags[i + 1] if i + 1 < len(flags) else None
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def checked(command: str, flags: Sequence[str]) -> list[str]:
    """Flags of ``rvqlm train`` or ``rvqlm tokenize`` that this installation accepts, for a machine
    where others may have run before: a training waits for the lock of one that was taken away.

    :raises UserError: with what the command would say.
    """
    if not flags:
        raise UserError(f"no flags for rvqlm {command} after --")
    flags = list(flags)
    if command == "train" and value_of(flags, "lock-minutes") is None:
        flags += ["--lock-minutes", "5"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _read(command, flags)
    except SystemExit:
        raise UserError(f"rvqlm {command}: {_in_one_line(said.getvalue())}") from None
    except UserError as e:
        raise UserError(f"rvqlm {command}: {e}") from None
    return flags


def _in_one_line(said: str) -> str:
    """The message of tyro between its title and its hint, which have lines between them."""
    parts: list[list[str]] = [[]]
    for line in said.splitlines():
        words = line.strip("╰╯│ ")
        if not words.strip("─-"):
            parts.append([])
        elif words[0] != "╭":
            parts[-1].append(words)
    found = [" ".join(part) for part in parts if part]
    return (found[-2:] or ["wrong flags"])[0]


def _read(command: str, flags: list[str]) -> None:
    from rvqlm.remote.session import unreached

    with unreached():  # buckets are for the job to ask
        if command == "train":
            from rvqlm.bin.trainer import read_flags
            from rvqlm.training.config import check

            check(read_flags(flags))
        else:
            from rvqlm.cli import parse
            from rvqlm.tokenizing.config import TokenizeConfig

            parse(TokenizeConfig, "rvqlm tokenize", "", flags)


def with_config(flags: Sequence[str], config: Path | None) -> list[str]:
    """The flags of a training, checked together with those of a local file, which is none of them.

    :raises UserError: --config among the flags: there is no such file where the job runs.
    """
    if value_of(flags, "config") is not None:
        raise UserError("--config comes before --, for the file travels with the job")
    if config is None:
        return checked("train", flags)
    return checked("train", ["--config", str(config), *flags])[2:]


def carrying(command: Sequence[str], config: Path | None) -> tuple[list[str], dict[str, str]]:
    """A command that ends with flags, and variables of its environment, by which the job has the
    file `config` too."""
    variables = {}
    command = list(command)
    if config:
        variables["RVQLM_CONFIG"] = literal(config.read_text(encoding="utf-8"))
        script = 'printf %s "$RVQLM_CONFIG" > /tmp/config.yaml; exec "$@" --config /tmp/config.yaml'
        command = ["bash", "-c", script, "rvqlm", *command]
    return command, variables


def literal(word: str) -> str:
    """As Kubernetes and Vertex AI have to be told it, which replace $(NAME)."""
    return word.replace("$(", "$$(")


def need_remote(flags: Sequence[str], name: str, why: str) -> None:
    """``--name`` has to be in a bucket."""
    value = value_of(flags, name)
    if value is None or not REMOTE.fullmatch(value):
        raise UserError(f"--{name} {value or ''}: {why}; give s3://BUCKET/PATH or gs://BUCKET/PATH")


class _Dumper(yaml.SafeDumper):
    """Lines of a script as lines."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def as_yaml(documents: Sequence[dict]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)


def in_shell(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def run(main: Callable[[Sequence[str]], int | None]) -> int:
    """The exit status of `main`, whose `UserError` becomes one line."""
    try:
        return main(sys.argv[1:]) or 0
    except UserError as e:
        line = " ".join(str(e).split())
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        return MISTAKE
