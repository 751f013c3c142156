"""Do our losses mean what they say? Train on a source whose entropy is known exactly.

    python tools/bench/known_entropy.py --steps 1500

prints, per case, the held-out nats per frame of a small model beside the exact bound of its
factorisation and the entropy of the source. `delay` must come within 3 % of its own bound;
`flatten`, `depth` and, of two levels, `coarse_first` of the entropy; `parallel` cannot pass below
the bound of its independence assumption.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from tqdm import trange

from rvqlm.codec_info import CodecInfo
from rvqlm.data.batch import Batch
from rvqlm.evaluation.entropy_source import MarkovSource
from rvqlm.models.factory import build_model

SHAPE = {"decoder_dim": 48, "nhead": 3, "num_decoder_layers": 2, "model_end": False}
CASES = {
    "delay": {"pattern": "delay"},
    "parallel": {"pattern": "parallel"},
    "flatten": {"pattern": "flatten"},
    "coarse_first": {"pattern": "coarse_first"},
    "depth": {"pattern": "parallel", "head": "depth", "depth_dim": 32, "depth_layers": 1},
}


def train(source, case, steps, num_frames=64, items=32, seed=0, quiet=True):
    """Train on fresh samples; returns held-out nats per frame and level (K,)."""
    torch.manual_seed(seed)
    info = CodecInfo("markov", "", 50, 1, source.num_codebooks, source.codebook_size)
    model = build_model("codec-lm", {**SHAPE, **CASES[case]}, info)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    stream = torch.from_numpy(source.sample(items * steps, num_frames, seed + 1))
    lengths = torch.full((items,), num_frames)
    for step in trange(steps, desc=case, disable=quiet, leave=False):
        codes = stream[step * items : (step + 1) * items]
        out = model(Batch(codes, lengths, torch.ones(items, dtype=torch.bool), lengths))
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
        scheduler.step()
    held_out = torch.from_numpy(source.sample(2000, num_frames, seed + 2))
    with torch.no_grad():
        n = torch.full((len(held_out),), num_frames)
        out = model.eval()(Batch(held_out, n, torch.ones(len(n), dtype=torch.bool), n))
    return (out.nats / out.count).double().numpy()


def bounds(source, num_frames=64):
    """Case -> nats per frame that it can reach."""
    return {
        "delay": source.delay_bound(num_frames).sum(),
        "parallel": source.parallel_bound(num_frames).sum(),
        **dict.fromkeys(("flatten", "coarse_first", "depth"), source.entropy(num_frames)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default 1500)")
    parser.add_argument("--codebook-size", type=int, default=4, help="V (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of source and training (default 0)")
    args = parser.parse_args()
    source = MarkovSource(2, args.codebook_size, args.seed)
    print(f"source: K=2, V={args.codebook_size}, entropy {source.entropy(64):.4f} nats per frame")
    print(f"{'case':14}{'nats/frame':>12}{'bound':>10}{'ratio':>8}{'seconds':>9}")
    passed = True
    for case, bound in bounds(source).items():
        began = time.perf_counter()
        nats = train(source, case, args.steps, seed=args.seed, quiet=False).sum()
        print(
            f"{case:14}{nats:12.4f}{bound:10.4f}{nats / bound:8.4f}"
            f"{time.perf_counter() - began:9.1f}"
        )
        # held-out sampling noise is a few tenths of a per cent
        passed &= 0.99 < nats / bound < 1.03
    print("within 3 % of the bounds" if passed else "NOT within 3 % of the bounds")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
