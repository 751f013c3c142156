"""How soon an encoder-decoder learns to write down another stream, by how the two are joined.

    python tools/bench/copying.py --seconds 60

The codes to be made are a permutation of those of the source, level by level and frame by frame, so
the best loss is 0 and the first ln V. Prints the nats of each level every so often, for every way
of joining, in CPU seconds.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rvqlm.batch import Batch
from rvqlm.cli import parse, run_main
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.factory import build_model

WAYS = {
    "spread": {"fusion": "spread"},
    "cross": {"fusion": "cross"},
    "cross by time": {"fusion": "cross", "cross_by_time": True},
}


@dataclass
class Options:
    """Copy a source."""

    seconds: float = 60.0
    """CPU time of each training."""
    dim: int = 64
    """Width of the transformer."""
    layers: int = 2
    """Of the decoder; the encoder has as many."""
    pattern: str = "delay"
    """Layout of the levels."""
    levels: int = 4
    codes: int = 32
    frames: int = 64
    items: int = 16
    """In a batch."""
    lr: float = 1e-3
    """Learning rate of AdamW, after 50 steps of warm-up."""


def train(o: Options, joined: dict) -> None:
    torch.manual_seed(0)
    info = CodecInfo("copies", "", 16000, 320, o.levels, o.codes)
    config = {"decoder_dim": o.dim, "num_decoder_layers": o.layers, "num_encoder_layers": o.layers}
    config |= {"conditions": ("source",), "pattern": o.pattern, "model_end": False}
    config |= {"condition_dropout": 0.0} | joined
    source_info = {"source": ConditionInfo.of_codes("source", info)}
    model = build_model("codec-lm", config, info, source_info)
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=(0.9, 0.98))
    said = torch.stack([torch.randperm(o.codes) for _ in range(o.levels)])  # (K, V)
    begin, step, due = time.process_time(), 0, 0
    while due <= 6:
        source = torch.randint(o.codes, (o.items, o.frames, o.levels))
        target = said.gather(1, source.flatten(0, 1).T).T.view(source.shape)
        out = model(Batch.from_codes(list(target), conditions={"source": list(source)}))
        for group in optimizer.param_groups:
            group["lr"] = o.lr * min(1, (step + 1) / 50)
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent, step = time.process_time() - begin, step + 1
        if spent >= due * o.seconds / 6:
            nats = out.nats / out.count
            levels = " ".join(f"{n:.2f}" for n in nats.tolist())
            print(f"  {spent:4.0f} s, step {step:5d}: {nats.mean():.2f} ({levels})", flush=True)
            due += 1


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(Options, "copying.py", "How soon a source is copied, by fusion.", argv)
    torch.set_num_threads(1)
    print(f"nats at first {math.log(options.codes):.2f}")
    for name, joined in WAYS.items():
        print(name)
        train(options, joined)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
