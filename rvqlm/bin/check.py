#!/usr/bin/env python3
"""``rvqlm check EXP``: what a model must not do before it is given to others.

    rvqlm check exp/tts --manifest-dir data/tokens --recognizer exp/recognizer

Makes samples, measures them beside recordings that passed through the codec, and prints a table:
pass, fail or not run, and the sample to hear. Exit status 0 where nothing failed, 1 otherwise.
Writes EXP/check/check.json beside the samples.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tyro.conf import Positional

from rvqlm.cli import command_line, counted, parse, run_main
from rvqlm.codecs.registry import load_codec_like
from rvqlm.files import write_json
from rvqlm.judging.check_samples import CheckConfig, SampleMaker
from rvqlm.judging.release_checks import ReleaseChecks
from rvqlm.locks import locked
from rvqlm.runtime import tune_malloc


@dataclass
class CheckArgs(CheckConfig):
    exp_dir: Positional[str]
    """Experiment of rvqlm train, a checkpoint file or an exported model."""


def _run(argv: Sequence[str] | None) -> int:
    config = parse(CheckArgs, "rvqlm check", "Is a model fit to be released?", argv)
    config.check()
    tune_malloc()
    maker = SampleMaker(config, load_codec_like)
    found = []
    with locked(config.folder, "rvqlm check", make=True):
        config.folder.mkdir(parents=True, exist_ok=True)
        print(f"{maker.path} (step {maker.state['step']}), samples in {config.folder}")
        for check in ReleaseChecks(maker).run():
            found.append(check)
            wanted = f", {check.wanted}" if check.wanted else ""
            hear = f"  {check.sample}" if check.sample else ""
            print(f"{check.verdict:8} {check.name:26} {check.found}{wanted}{hear}", flush=True)
        result = {
            "checkpoint": str(maker.path),
            "step": int(maker.state["step"]),
            "recognizer": config.recognizer or None,
            "command": command_line("check", argv),
            "checks": [asdict(check) for check in found],
        }
        write_json(config.folder / "check.json", result, checksum=True)
    failed = sum(check.verdict == "fail" for check in found)
    left = sum(check.verdict == "not run" for check in found)
    print(
        f"{failed} failed of {counted(len(found) - left, 'check')}, {left} not run; wrote "
        f"{config.folder / 'check.json'}"
    )
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "check")


if __name__ == "__main__":
    sys.exit(main())
