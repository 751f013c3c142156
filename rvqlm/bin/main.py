#!/usr/bin/env python3
"""The ``rvqlm`` command: ``rvqlm COMMAND --flags``.

Each command is the module of the same name in this folder (`_FILES` lists the exceptions); only the
one asked for is imported, so that ``rvqlm --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from rvqlm.cli import dispatch

COMMANDS = {  # in the order of the workflow
    "codecs": "the codecs there are: shapes, rates, licences, where their weights come from",
    "audio": "manifests of audio: make them, normalise loudness, find activity, augment",
    "tokenize": "audio -> codes: run a codec over a folder of audio or a lhotse manifest",
    "combine": "what many jobs have tokenized, each a part of it, as one token directory",
    "split": "divide the cuts into train, valid and test, disjoint by speaker or recording",
    "index": "build the memory-mapped index of each split that training reads",
    "text": "texts of the cuts as symbols beside their codes: characters, phonemes, pieces",
    "midi": "MIDI files of the cuts as notes beside their codes",
    "pair": "what each cut accompanies: codes of another stream, in another token directory",
    "validate": "check a token directory and print its statistics",
    "models": "the families of models: options, parameters, what they can do",
    "train": "train a model on codes",
    "monitor": "how a training is doing, in the terminal or as a picture",
    "doctor": "what is wrong with a training: weights, optimizer, log; where it diverged",
    "evaluate": "loss, accuracy and bits per second of a trained model on a split",
    "generate": "continue a prompt, or make unprompted audio, as wav files",
    "serve": "a trained model behind OpenAI's audio API, and a page to use it in a browser",
    "grid": "settings of generation compared on the same recordings: which are best, how surely",
    "check": "is a model fit to be released: what it must not do, passed or failed, to hear",
    "average": "the mean of several checkpoints' weights, as a checkpoint",
    "export-model": "a trained model as a folder: safetensors, config.json, a reference decoder",
    "compare": "one table of several trainings: bits, speed, memory, samples",
    "recognize": "what generated or real speech says, and how far it is from its text",
    "judge": "recordings, their codec and samples before judges from outside; distances",
    "protocol": "lists of evaluations that others run: LibriSpeech, Seed-TTS; scp for versa",
    "align": "when each symbol of the texts is said, by a recogniser; TextGrids, subtitles",
    "report": "one HTML page: audio, curves, statistics, the commands behind them",
    "listen": "blind listening tests: make one as a page, sum up what raters said",
    "decode": "codes -> audio: wav files from tokens",
    "recipes": "the recipes of the repository: task, corpus, codec, family, result, command",
    "info": "what a file or folder is: tokens, manifest, shard, NPQ, checkpoint, experiment",
    "export": "tokens as lhotse Shar or .npy files",
    "import": "tokens from lhotse Shar or .npy files",
    "npq": "NPQ files: look into them, convert from and to them, decode them",
}

# where the module has another name: run as a script, this folder leads sys.path, and a tokenize.py
# or codecs.py here would hide the standard library's; `import` is no name for a module
_FILES = {
    "tokenize": "tokenizer",
    "train": "trainer",
    "codecs": "codec_cards",
    "import": "importer",
    "models": "model_cards",
    "export-model": "export_model",
}

SECOND_NAMES = {"trainer": "train"}
"""Further names of commands, which the help does not list."""


def run(name: str, argv: list[str]) -> int:
    return importlib.import_module(f"rvqlm.bin.{_FILES.get(name, name)}").main(argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("--version", "-V"):
        from rvqlm.version import __version__

        print(f"rvqlm {__version__}")
        return 0
    if argv:
        argv[0] = SECOND_NAMES.get(argv[0], argv[0])
    description = "language models over neural-codec tokens; commands in the order of the work:"
    return dispatch("rvqlm", description, COMMANDS, run, argv)


if __name__ == "__main__":
    sys.exit(main())
