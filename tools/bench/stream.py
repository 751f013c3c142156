"""What the first sound waits for, and what a frame costs as a stream goes on.

    OMP_NUM_THREADS=1 python tools/bench/stream.py --size small --seconds 30

Random weights, the embedded codec, 8 levels in the delay pattern. Times are those of the processor,
since others may use the machine; a frame is 20 ms.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rvqlm.cli import parse, run_main

SIZES = {"tiny": (64, 2, 2), "small": (256, 6, 4), "base": (768, 16, 12)}
"""Width, layers, heads."""


@dataclass
class Args:
    size: Literal["tiny", "small", "base"] = "small"
    """d64 x 2, d256 x 6, d768 x 16."""
    seconds: float = 30.0
    """Of new audio."""
    prompt_seconds: float = 3.0
    context_seconds: float | None = None
    """Go on in windows of this."""
    clients: tuple[int, ...] = (1, 4)
    """Samples together."""


def run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "stream.py", "Latency and cost of streaming.", argv)
    from rvqlm.codecs.registry import load_codec
    from rvqlm.inference.generate import OutputArgs
    from rvqlm.inference.prompts import Prompt
    from rvqlm.inference.stream import Streamer
    from rvqlm.models.factory import build_model

    codec = load_codec("spectral")
    width, layers, heads = SIZES[args.size]
    shape = {"decoder_dim": width, "nhead": heads, "num_decoder_layers": layers}
    shape["model_end"] = False
    torch.manual_seed(0)
    model = build_model("codec-lm", shape, codec.info, {}).eval()
    rate = float(codec.info.frame_rate)
    codes = torch.randint(1024, (round(args.prompt_seconds * rate), 8))
    output = OutputArgs(seconds=args.seconds)
    for clients in args.clients:
        streamer = Streamer(model, codec, clients, args.context_seconds)
        began = time.process_time()
        for row in range(clients):
            streamer.add(Prompt(codes, "p"), output, row=row)
        read = time.process_time() - began
        steps, first, marks = 0, None, []
        while streamer.free < clients:
            heard = [h.audio.shape[1] for h in streamer.step()]
            steps += 1
            if first is None and all(heard) and len(heard) == clients:
                first = steps, time.process_time() - began
            if steps % round(rate) == 0:
                marks.append(time.process_time() - began)
        each = [b - a for a, b in itertools.pairwise(marks)]  # a second of audio of every client
        print(
            f"{clients} together: prompts read in {read:.2f} s; first sound after {first[0]} "
            f"steps, {first[1]:.2f} s; then a second of audio takes {min(each[:5]) / clients:.2f} "
            f"s at the beginning and {min(each[-5:]) / clients:.2f} s at the end of "
            f"{args.seconds:g} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(run, name="stream.py"))
