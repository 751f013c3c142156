#!/usr/bin/env python3
"""``rvqlm audio``: lists of audio (manifests), and preparations on the way to tokens.

    rvqlm audio manifest --input my_audio --out-dir data/manifests

Each of the other subcommands reads such a list of audio and writes another one; none changes a file
of yours. The same input gives the same output, byte for byte.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rvqlm.audio.config import ActivityConfig, AugmentConfig, LoudnessConfig, ManifestConfig
from rvqlm.cli import dispatch, parse, run_main
from rvqlm.locks import locked

COMMANDS = {  # what each does; in the order of their use
    "manifest": "list a folder of audio, with transcripts and speakers where there are any",
    "loudness": "bring all recordings to one loudness",
    "activity": "keep the stretches above a level",
    "augment": "add copies of other speed, tempo or pitch",
}
_FUNCTIONS = {  # flags, module below rvqlm.audio and function of each
    "manifest": (ManifestConfig, "manifest", "make_manifest"),
    "loudness": (LoudnessConfig, "loudness_cuts", "normalize_loudness"),
    "activity": (ActivityConfig, "activity", "find_activity"),
    "augment": (AugmentConfig, "augment", "augment"),
}


def run(name: str, argv: Sequence[str]) -> int:
    config_class, module, function = _FUNCTIONS[name]

    def command(argv: Sequence[str]) -> int:
        description = " ".join(config_class.__doc__.split())
        config = parse(config_class, f"rvqlm audio {name}", description, argv)
        # lhotse takes seconds to import, and the help does not need it
        work = getattr(importlib.import_module(f"rvqlm.audio.{module}"), function)
        folder = config.out_dir if name == "manifest" else Path(config.out).parent
        with locked(folder, f"rvqlm audio {name}", make=True):
            print(work(config))
        return 0

    return run_main(command, argv, f"audio {name}")


def main(argv: Sequence[str] | None = None) -> int:
    description = "lists of audio, and preparations of it, in the order of their use:"
    return dispatch("rvqlm audio", description, COMMANDS, run, argv)


if __name__ == "__main__":
    sys.exit(main())
