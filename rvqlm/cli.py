"""Flags for every command: a typed dataclass in, an instance out; progress bars; exit statuses.

`parse` shows the fields of a dataclass as flat kebab-case flags through tyro. Nested dataclasses
become groups of the help, the docstring under a field is its help. A flag has the value given on
the command line, else that of the ``--config`` YAML file, else that of the caller (`parse`'s
`beneath`: a preset, the flags of a run that resumes), else its default. `run_main` turns a
`UserError` into one line and an exit status. Importing this module costs nothing: tyro, yaml and
tqdm load when they are needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Meta

from rvqlm.errors import UserError, reason_of
from rvqlm.files import fits, read_yaml
from rvqlm.remote.session import finish, localize, named, naming_urls

T = TypeVar("T")


def kebab(name: str) -> str:
    return name.replace("_", "-")


def _is_positional(marks: tuple) -> bool:
    known = ("_PositionalMarker", "Positional")  # of one tyro and of another
    return any(type(mark).__name__ in known or str(mark) in known for mark in marks)


def class_flags(cls: type) -> tuple[dict[str, Any], dict[str, str]]:
    """Every flag of `cls` by kebab-case name, with its type, groups flattened; and second names of
    flags (`tyro.conf.arg(aliases=...)`) with the flags that they stand for."""
    leaves: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        bare = hint.__origin__ if marks else hint
        for mark in marks:
            for alias in getattr(mark, "aliases", None) or ():
                aliases[alias.removeprefix("--")] = kebab(field.name)
        if not field.init or _is_positional(marks):
            continue
        if dataclasses.is_dataclass(bare):
            for found, of_group in zip((leaves, aliases), class_flags(bare)):
                found.update(of_group)
        else:
            leaves[kebab(field.name)] = bare
    return leaves, aliases


def flatten(config: Any) -> dict[str, Any]:
    """Resolved flags of an instance as ``{kebab-name: plain value}``, groups flattened.

    Values are what YAML and a weights-only checkpoint can hold: tuples become lists, paths strings,
    and what stands here for a URL is the URL again.
    """
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out.update(flatten(value))
        else:
            out[kebab(field.name)] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return named(str(value)) if isinstance(value, (str, Path)) else value


def _tokens(value: Any, hint: Any) -> list[str]:
    """Command-line words for a YAML value of type `hint`; ValueError if it doesn't fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return ["None"]
        for option in (a for a in args if a is not type(None)):
            try:
                return _tokens(value, option)
            except ValueError:
                continue
        raise ValueError
    if origin is typing.Literal:
        if value not in args:
            raise ValueError
        return [str(value)]
    if origin in (list, tuple) or hint in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ValueError
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise ValueError
            kinds = args
        else:
            kinds = [args[0] if args else str] * len(value)
        return [word for v, kind in zip(value, kinds) for word in _tokens(v, kind)]
    if value is None or isinstance(value, (list, tuple, dict)):
        raise ValueError
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError
    elif isinstance(value, bool) and hint in (int, float):
        raise ValueError
    elif hint is int:
        if float(value) != int(float(value)):
            raise ValueError
        return [str(int(float(value)) if not isinstance(value, int) else value)]
    elif hint is float:
        return [repr(float(value))]  # PyYAML reads 1e-3 as a string
    return [str(value)]


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _read_yaml(path: str | Path) -> dict:
    """The keys and values of a ``--config`` file; `UserError` where there are none to read."""
    values = read_yaml(localize(path), f"--config {path}")
    if not isinstance(values, dict | None):
        raise UserError(f"--config {path}: expected lines of the form `flag: value`")
    return values or {}


def read_config(path: str | Path, cls: type) -> dict[str, Any]:
    """Values of a YAML file by kebab-case flag name; `UserError` for a key that is no flag."""
    values = _read_yaml(path)
    (leaves, aliases), out, problems = class_flags(cls), {}, []
    for raw, value in values.items():
        key = kebab(str(raw))
        key = aliases.get(key, key)
        if key not in leaves:
            near = difflib.get_close_matches(key, leaves, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"unknown key {str(raw)!r}{hint}")
        elif key in out:
            problems.append(f"key {key!r} given twice")
        else:
            try:
                _tokens(value, leaves[key])
            except (ValueError, OverflowError):
                problems.append(f"{raw}: {value!r} is not a {_type_name(leaves[key])}")
            out[key] = value
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return out


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Take ``--config FILE`` out of the arguments."""
    path, rest, words = None, [], iter(argv)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise UserError("--config needs the path of a YAML file")
        elif word.startswith("--config="):
            path = word.split("=", 1)[1]
        else:
            rest.append(word)
    return path, rest


def peek(argv: Sequence[str] | None, flag: str, default: str) -> str:
    """Value that a flag will have, before the class that knows all the flags is chosen.

    Reads the command line, then its ``--config`` file, leniently: `parse` reports the mistakes.
    """
    path, rest = _split_config(list(sys.argv[1:] if argv is None else argv))
    for word, following in zip(reversed(rest), reversed([*rest[1:], None])):
        name, equals, value = word.partition("=")
        if kebab(name) == f"--{flag}":
            return value if equals else (following or default)
    try:
        values = {} if path is None else _read_yaml(path)
    except UserError:
        return default
    return str(next((v for k, v in values.items() if kebab(str(k)) == flag), default))


def _not_given(values: dict[str, Any], leaves: dict[str, Any], argv: list[str]) -> list[str]:
    """Words for those values whose flag isn't on the command line; others than flags left out."""
    given = {kebab(w.split("=", 1)[0][2:]) for w in argv if w.startswith("--")}
    words: list[str] = []
    for key, value in values.items():
        hint = leaves.get(key)
        if hint is None or key in given or (hint is bool and f"no-{key}" in given):
            continue
        if hint is bool:
            words.append(f"--{key}" if value else f"--no-{key}")
        else:
            tokens = _tokens(value, hint)
            # one word where possible: a value that begins with a dash stays a value
            words += [f"--{key}={tokens[0]}"] if len(tokens) == 1 else [f"--{key}", *tokens]
    return words


def parse(
    cls: type[T],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    beneath: dict[str, Any] | None = None,
) -> T:
    """Build a `cls` from the command line.

    cls: dataclass; fields may be dataclasses themselves (groups), `tyro.conf` markers work.
    prog: what the help calls the program, e.g. ``rvqlm trainer``.
    argv: arguments without the program's name; None: those of the process.
    beneath: values by kebab-case name for flags that are given neither on the command line nor in
        the ``--config`` file; names that are no flags are left out.

    Flags that name a place in a bucket have the path of its copy (`rvqlm.remote.session.localize`).

    Raises `UserError` for a bad ``--config`` file and for numbers that are `out_of_range`;
    SystemExit (0 after ``--help``, 2 for bad flags, after a message on stderr).
    """
    import tyro

    path, rest = _split_config(list(sys.argv[1:] if argv is None else argv))
    leaves, aliases = class_flags(cls)
    for alias, name in aliases.items():  # one name each, so that flags override the file
        given = (f"--{alias}", f"--{kebab(alias)}")
        rest = [f"--{name}{w[len(given[0]) :]}" if w.split("=", 1)[0] in given else w for w in rest]
    if path is not None:
        rest += _not_given(read_config(path, cls), leaves, rest)
    rest += _not_given(beneath or {}, leaves, rest)

    shown = tyro.conf.arg(help="YAML file of flag values; flags given here override it.")
    params = cls.__dataclass_params__  # type: ignore[attr-defined]
    extra = dataclasses.field(default=None, kw_only=True)
    with_config = dataclasses.make_dataclass(
        cls.__name__,
        [("config", typing.Annotated[str | None, shown], extra)],
        bases=(cls,),
        frozen=params.frozen,
        namespace={"__post_init__": lambda self: None, "__doc__": cls.__doc__ or cls.__name__},
    )  # fmt: skip
    parsed = tyro.cli(
        with_config, prog=prog, description=description, args=rest,
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    if problems := out_of_range(parsed):
        raise UserError("; ".join(problems))
    return localize(
        cls(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(cls) if f.init})
    )


_LARGEST = 1e9  # of anything that a flag counts in floats: seconds, decibels, rates


def out_of_range(config: Any) -> list[str]:
    """What is wrong with the numbers of an instance, groups included, by the names of flags.

    Every float lies within `_LARGEST`, unless it is what the flag has by default, and an int has 63
    bits. A field annotated with `msgspec.Meta` has that range: ``threads: Annotated[int,
    Meta(ge=0)] = 0``.
    """
    found = []
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += out_of_range(value)
            continue
        for number in value if isinstance(value, tuple | list) else (value,):
            most = _LARGEST if isinstance(number, float) else (1 << 63) - 1
            if (
                isinstance(number, float | int)
                and not abs(number) <= most
                and value != field.default
            ):
                found.append(f"--{kebab(field.name)} {number}: give a number up to {most:g}")
        if any(isinstance(mark, Meta) for mark in getattr(hints[field.name], "__metadata__", ())):
            try:
                fits(value, hints[field.name])
            except ValueError as e:
                found.append(f"--{kebab(field.name)} {value}: {e}")
    return found


def command_line(name: str, argv: Sequence[str] | None = None) -> str:
    """``rvqlm NAME flags...`` as it was given, to be pasted into a shell; what results record.

    >>> command_line("trainer", ["--exp-dir", "my exp"])
    "rvqlm trainer --exp-dir 'my exp'"
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and words[:1] == [name]:  # the console command carries the name already
        words = words[1:]
    return shlex.join(["rvqlm", name, *words])


def bar(items: Iterable, name: str, total: int | None = None, unit: str = "cuts") -> Iterable:
    """A progress bar on a terminal's stderr, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, name, total, unit=f" {unit}", leave=False, disable=None)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "cut"), counted(12000, "cut")
    ('1 cut', '12,000 cuts')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``.

    >>> clock(3723), clock(123)
    ('1:02:03', '2:03')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def span(seconds: float | None) -> str:
    """
    >>> span(0.25), span(42), span(725), span(7500), span(None)
    ('0.2 s', '42 s', '12.1 min', '2.1 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.{1 if 0 < seconds < 1 else 0}f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def dispatch(
    prog: str,
    description: str,
    commands: dict[str, str],
    run: Callable[[str, list[str]], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Hand the arguments on to the subcommand that the first of them names.

    prog: what the help calls the program, ``rvqlm`` or ``rvqlm npq``.
    commands: every subcommand and what it does, in the order of the help.
    run: called with the subcommand's name and the arguments after it; returns the exit status.

    Without arguments the help is printed and the status 2; an unknown name is one line on stderr.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(10, *map(len, commands))
        print(f"usage: {prog} COMMAND [flags]    ({prog} COMMAND --help lists the flags)\n")
        print(f"{description}\n")
        for name, what in commands.items():
            print(f"  {name:<{width}} {what}")
        return 0 if argv else 2
    name, *rest = argv
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"see {prog} --help"
        print(f"{prog}: error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return run(name, rest)


_OS_HINTS = {
    errno.ENOTDIR: "part of this path is a file, not a folder; give another path",
    errno.EISDIR: "a folder, where a file is wanted; give another path",
    errno.EEXIST: "there is a file of this name; give another path",
    errno.EFBIG: "larger than files may be here (ulimit -f, or the file system)",
    errno.EIO: "the disk or the network failed; try again, or another disk",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


_OWN_ERRORS = {
    "LibsndfileError": "is the file damaged, or the disk full?",
    "SafetensorError": "is the file damaged, or the disk full?",
    "MemoryError": "more memory than there is; ask for less at a time",
    "OutOfMemoryError": "more memory than there is; ask for less at a time",
}
"""Exceptions that say nothing of their cause, some of them of libraries."""


def _own_error(error: Exception) -> str | None:
    """The line for one of `_OWN_ERRORS`; None for a bug."""
    name = type(error).__name__
    if "can't allocate memory" in str(error) or "not enough memory" in str(error):
        name = "MemoryError"  # torch's of CPUs is a RuntimeError
    hint = _OWN_ERRORS.get(name)
    return hint and f"{reason_of(error)}; {hint}"


def run_main(
    fn: Callable[[Sequence[str] | None], int | None],
    argv: Sequence[str] | None = None,
    name: str | None = None,
) -> int:
    """Run a command's body and return the exit status of the process.

    `UserError`, full or forbidden disks, a lack of memory and `_OWN_ERRORS` become one line
    ``rvqlm NAME: error: ...`` on stderr and status 2, Ctrl-C 130; anything else is a bug and keeps
    its traceback. NAME is the file that `fn` is defined in unless given. What a terminal cannot
    show is printed escaped, and a copy of what lies in a bucket goes by its URL.
    """
    name = name or Path(fn.__code__.co_filename).stem
    for stream in (sys.stdout, sys.stderr):  # names of files that the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with naming_urls():
            status = fn(argv) or 0
            finish()
        return status
    except UserError as e:
        message = named(str(e))
    except KeyboardInterrupt:
        message = None
    except BrokenPipeError:  # `rvqlm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        if e.errno not in _OS_HINTS:
            raise
        message = f"{e.filename or 'write failed'}: {_OS_HINTS[e.errno]}"
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        raise
    except Exception as e:
        if (message := _own_error(e)) is None:
            raise
    if message is None:
        print(f"rvqlm {name}: interrupted", file=sys.stderr)
        return 130
    print(f"rvqlm {name}: error: {message}", file=sys.stderr)
    return 2
