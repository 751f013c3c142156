"""Training steps of padded batches and of packed rows, over the same cuts.

    python tools/bench/packing.py                          # codec-lm d256 x 6, cuts of 1 to 15 s
    python tools/bench/packing.py --text spread            # given texts of a symbol every 5 frames
    python tools/bench/packing.py --device cuda --size base

Frames a second of one epoch's batches, forward and backward, in turn; padding is the share of what
was computed that is none. With ``--shuffle-window`` small, batches are of unlike lengths.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import parse, run_main
from rvqlm.runtime import tune_malloc


@dataclass
class Args:
    size: Literal["tiny", "small", "base", "large"] = "small"
    """As of tools/bench/train_step.py."""
    families: tuple[str, ...] = ("delay", "masked", "valle")
    """Names of tools/bench/train_step.py."""
    text: Literal["no", "prefix", "cross", "spread"] = "no"
    """--conditions text, and how it is given."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware has it."""
    row: int = 1000
    """Frames of a row."""
    rows: int = 2
    """Rows of a batch; as many frames with their padding are in a padded one."""
    seconds: float = 10.0
    """Of each family and way."""
    windows: tuple[int, ...] = (20000, 20)
    """--shuffle-window, of both ways."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""
    codebooks: int = 9
    """Levels K."""
    codebook_size: int = 1024
    """Codes V of each."""
    checkpointing: bool = False
    """Activation checkpointing."""


def run(argv: Sequence[str] | None = None) -> int:
    args = parse(Args, "packing.py", __doc__.splitlines()[0], argv)
    tune_malloc()
    import numpy as np
    import torch

    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))
    from condition_fixtures import make_steps
    from token_fixtures import make_tokens
    from train_step import SIZES
    from train_step_cases import FRAMES_PER_SYMBOL, clock, make_model

    from rvqlm.codec_info import CodecInfo
    from rvqlm.data.conditions import ConditionSet
    from rvqlm.data.index import TokenDataset
    from rvqlm.data.loader import TokenLoader
    from rvqlm.data.plan_config import PlanConfig
    from rvqlm.runtime import describe_machine, pick_device, pick_precision
    from rvqlm.training.meter import rehearse

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device)
    machine = describe_machine()
    print(
        f"{(machine['gpus'] or [machine['cpu']])[0]}, {torch.get_num_threads()} threads, commit "
        f"{machine['commit']}, {dtype}, {args.size}"
    )
    frames = np.random.default_rng(0).gamma(2.0, 130.0, 400).clip(40, args.row).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        info = CodecInfo("bench", "", 44100, 512, args.codebooks, args.codebook_size)
        make_tokens(Path(folder), frames.tolist(), info)
        data = TokenDataset.open(folder, "train")
        given, shape = None, {}
        if args.text != "no":
            make_steps(Path(folder), "text", rate=FRAMES_PER_SYMBOL)
            given = ConditionSet.open(data, ["text"])
            shape = {"conditions": ("text",), "fusion": args.text}
        seconds = float(args.rows * args.row / data.info.frame_rate) + 1e-3
        for family in args.families:
            model = make_model(args, SIZES[args.size], family, **shape).to(device).train()
            for window in args.windows:
                for packing in (0, args.row):
                    plan = PlanConfig(seconds, shuffle_window=window, packing=packing)
                    loader = TokenLoader(data, plan, seed=0, conditions=given)
                    rehearse(model, next(loader).to(device), dtype)
                    done, cells, began = 0, 0, clock(device)
                    while time.perf_counter() - began < args.seconds:
                        batch = next(loader)
                        rehearse(model, batch.to(device), dtype)
                        done, cells = done + batch.num_frames, cells + batch.cells
                    spent = clock(device) - began
                    loader.close()
                    print(
                        f"{family:14}window {window:6}  {'packed' if packing else 'padded':8}"
                        f"{done / spent:10,.0f} frames/s, padding {1 - done / cells:6.1%}",
                        flush=True,
                    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, argv, "packing.py")


if __name__ == "__main__":
    sys.exit(main())
