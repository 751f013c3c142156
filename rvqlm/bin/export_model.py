#!/usr/bin/env python3
"""``rvqlm export-model``: a trained model as a folder, to be kept, copied, published or served.

    rvqlm export-model exp/small --out small-model
    rvqlm generate --exp-dir small-model --num-samples 2

The directory holds ``model.safetensors``, a file that cannot run code, and ``config.json``: options
of the model, codec, conditions and flags of the training but for its paths. Other commands take it
for an experiment, ``rvqlm.from_pretrained`` loads it. For other engines it has the codec, the
symbols of texts, and a stand-alone decoder to compare with (its README.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rvqlm.cli import parse, run_main
from rvqlm.locks import locked


@dataclass
class Args:
    exp: Annotated[str, tyro.conf.Positional]
    """Experiment of `rvqlm trainer`, or a checkpoint file."""
    out: Path
    """Directory to make."""
    which: str = "best"
    """best, latest, average or a path."""
    raw_weights: bool = False
    """The weights as the last step left them, not their moving average."""


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm export-model", "A trained model as a folder.", argv)
    from rvqlm.checkpoints.exported import save_pretrained
    from rvqlm.checkpoints.loading import load_model

    model, _, state = load_model(args.exp, args.which, use_ema=not args.raw_weights)
    # an exported model, which can be exported again, says what it has
    averaged = state.get("averaged_weights", state.get("ema") is not None and not args.raw_weights)
    with locked(args.out, "rvqlm export-model", beside=True):
        out = save_pretrained(model, args.out, state, averaged)
    size = sum(p.stat().st_size for p in out.iterdir())
    kind = "averaged weights" if averaged else "weights"
    print(f"wrote {out}: {model.name}, {kind} of step {state['step']:,}, {size / 1e6:,.1f} MB")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "export-model")


if __name__ == "__main__":
    sys.exit(main())
