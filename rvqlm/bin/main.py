#!/usr/bin/env python3
"""The ``rvqlm`` command: ``rvqlm COMMAND --flags``.

Each command is the module of the same name in this folder (`_FILES` lists the exceptions); only the
one asked for is imported, so that ``rvqlm --help`` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {  # in the order of the workflow
    "tokenize": "audio -> codes: run a codec over lhotse manifests or a folder of audio",
    "split": "divide the cuts into train, valid and test, disjoint by speaker or recording",
    "index": "build the memory-mapped index of each split that training reads",
    "validate": "check a token directory and print its statistics",
    "trainer": "train a model on codes",
    "evaluate": "loss, accuracy and bits per second of a trained model on a split",
    "generate": "continue a prompt, or make audio from nothing, as wav files",
    "report": "one HTML page: audio, curves, statistics, the commands behind them",
}

# run as a script, this folder leads sys.path: a tokenize.py here would hide the standard library's
_FILES = {"tokenize": "tokenizer"}


def usage() -> str:
    lines = ["usage: rvqlm COMMAND [flags]    (rvqlm COMMAND --help lists the flags)", ""]
    lines += ["language models over neural-codec tokens; commands in the order of the work:", ""]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("--version", "-V"):
        from rvqlm import __version__

        print(f"rvqlm {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see rvqlm --help"
        print(f"rvqlm: error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"rvqlm.bin.{_FILES.get(name, name)}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
