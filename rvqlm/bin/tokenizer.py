#!/usr/bin/env python3
"""``rvqlm tokenize``: a folder of audio or a lhotse manifest becomes a token directory.

rvqlm tokenize --codec spectral --input my_audio --out-dir data/tokens

(The file has another name than the command: as ``tokenize.py`` it would hide Python's own module
from everything in this folder that is run as a script.)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import parse, run_main
from rvqlm.runtime import tune_malloc


def run(argv: Sequence[str] | None) -> int:
    tune_malloc()
    from rvqlm.tokenizing.config import TokenizeConfig

    description = (
        "Encode audio into tokens. Stopped at any moment and started again, it resumes where it "
        "was; bad files are skipped and listed. Under torchrun or srun each rank encodes its share."
    )
    config = parse(TokenizeConfig, "rvqlm tokenize", description, argv)
    from rvqlm.tokenizing.tokenize import tokenize

    tokenize(config)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="tokenize")


if __name__ == "__main__":
    sys.exit(main())
