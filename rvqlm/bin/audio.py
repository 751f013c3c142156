#!/usr/bin/env python3
"""``rvqlm audio``: lists of audio (manifests), and preparations on the way to tokens.

    rvqlm audio manifest --input my_audio --out-dir data/manifests

Each of the other subcommands reads such a list of audio and writes another one; none changes a file
of yours. The same input gives the same output, byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvqlm.cli import dispatch, parse, run_main

COMMANDS = {  # in the order of their use
    "manifest": "list a folder of audio, with transcripts and speakers where there are any",
    "loudness": "bring all recordings to one loudness",
    "activity": "keep the stretches in which something is to be heard",
    "augment": "add copies of other speed, tempo or pitch",
}


def _manifest(argv: Sequence[str]) -> int:
    from rvqlm.audio.manifest import ManifestConfig, make_manifest

    description = (
        "List the audio files of a folder for the other commands: where each lies, how long it is, "
        "what is said in it and by whom where that is known. Writes recordings.jsonl.gz, "
        "supervisions.jsonl.gz and cuts.jsonl.gz, the last of which the other commands read."
    )
    print(make_manifest(parse(ManifestConfig, "rvqlm audio manifest", description, argv)))
    return 0


def _loudness(argv: Sequence[str]) -> int:
    from rvqlm.audio.loudness_cuts import LoudnessConfig, normalize_loudness

    description = (
        "Measure the loudness of each recording (ITU-R BS.1770) and write a list in which each has "
        "a gain that brings it to one level. Whatever reads the list applies the gain; the audio "
        "files stay as they are."
    )
    print(normalize_loudness(parse(LoudnessConfig, "rvqlm audio loudness", description, argv)))
    return 0


def _activity(argv: Sequence[str]) -> int:
    from rvqlm.audio.activity import ActivityConfig, find_activity

    description = (
        "Keep the stretches in which the level stays above a threshold, each as an item of its own "
        "of the new list: a track with long rests becomes several pieces. The audio files stay as "
        "they are."
    )
    print(find_activity(parse(ActivityConfig, "rvqlm audio activity", description, argv)))
    return 0


def _augment(argv: Sequence[str]) -> int:
    from rvqlm.audio.augment import AugmentConfig, augment

    description = (
        "Write copies of the audio that are faster or slower, stretched, or shifted in pitch, and "
        "list them. Each copy names its original, so that rvqlm split keeps them together."
    )
    print(augment(parse(AugmentConfig, "rvqlm audio augment", description, argv)))
    return 0


_RUN = {"manifest": _manifest, "loudness": _loudness, "activity": _activity, "augment": _augment}


def run(name: str, argv: Sequence[str]) -> int:
    return run_main(_RUN[name], argv, f"audio {name}")


def main(argv: Sequence[str] | None = None) -> int:
    description = "lists of audio, and preparations of it, in the order of their use:"
    return dispatch("rvqlm audio", description, COMMANDS, run, argv)


if __name__ == "__main__":
    sys.exit(main())
