#!/usr/bin/env python3
"""`rvqlm serve`: trained models behind OpenAI's audio API, and a page to use them in a browser.

``rvqlm serve --exp-dir exp/mine`` answers on http://127.0.0.1:8000/: ``POST /v1/audio/speech`` of
models with text, ``POST /v1/audio/continuation`` of all, ``WS /v1/audio/stream`` for text that
arrives in pieces. Requests join a running batch. docs/serving.md has the paths and their fields.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.cli import counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.model_args import DrawingArgs
from rvqlm.runtime import tune_malloc
from rvqlm.serving.config import Door, Limits, Setup


@dataclass
class ServeArgs:
    exp_dir: tuple[str, ...]
    """Directories of trainings, checkpoint files or exported models; the first is the default."""
    model_names: tuple[str, ...] = ()
    """What clients call them; empty: the names of the folders."""
    setup: Setup = field(default_factory=Setup)
    door: Door = field(default_factory=Door)
    limits: Limits = field(default_factory=Limits)
    model: DrawingArgs = field(default_factory=DrawingArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)

    def problems(self) -> list[str]:
        groups = (self.setup, self.door, self.limits, self.sampling, self.demask, self.speech)
        found = [problem for group in groups for problem in group.problems()]
        if not self.exp_dir:
            found.append("--exp-dir: give one or more")
        if self.model_names and len(self.model_names) != len(self.exp_dir):
            found.append(
                f"--model-names: {len(self.model_names)} names of {len(self.exp_dir)} models"
            )
        return found

    def names(self) -> list[str]:
        """:raises UserError: two models of one name."""
        names = list(self.model_names) or [
            path.name if path.is_dir() or not path.suffix else path.parent.name
            for path in (Path(exp).resolve() for exp in self.exp_dir)
        ]
        if len(set(names)) < len(names):
            raise UserError(f"--exp-dir: two models are called {names[0]}; give --model-names")
        return names


def run(argv: Sequence[str] | None) -> int:
    args = parse(ServeArgs, "rvqlm serve", "Serve trained models over HTTP.", argv)
    if problems := args.problems():
        raise UserError("; ".join(problems))
    names = args.names()
    try:
        from rvqlm.serving import server, uploads
        from rvqlm.serving.service import Service
    except ImportError as e:
        raise UserError(f"serving needs {e.name}: pip install 'rvqlm[serve]'") from None
    from rvqlm.serving.metrics import Metrics
    from rvqlm.serving.opening import open_model
    from rvqlm.serving.worker import declare

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("rvqlm.serve").setLevel(logging.INFO)
    tune_malloc()
    door, metrics = args.door.resolved(), Metrics()
    listening = server.listen(door.host, door.port)
    declare(metrics)
    uploads.begin()
    models = {}
    draws = {"sampling": args.sampling, "demask": args.demask, "pace": args.speech}
    for name, exp in zip(names, args.exp_dir):
        models[name] = served = open_model(
            name, exp, args.setup, args.model, args.limits, metrics, **draws
        )
        said = f"speaks, {counted(len(served.voices), 'voice')}" if served.speaks else "continues"
        print(f"{name}: {served.model.name} of {exp}, {said}", file=sys.stderr)
    print(f"listening on {server.url_of(listening)}", file=sys.stderr, flush=True)
    server.serve(Service(models, door, args.limits, metrics), listening)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, name="serve")


if __name__ == "__main__":
    sys.exit(main())
