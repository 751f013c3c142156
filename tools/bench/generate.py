"""Decoding side by side with transformers' MusicGen decoder in a plain cached loop.

    OMP_NUM_THREADS=1 python tools/bench/generate.py --size small --batches 1 8

All sides make the same number of frames of K levels with the delay pattern, unprompted, with top-k
sampling, with random weights of the same shape, in turns, so that what else the machine does falls
on all. Times are those of the processor, not of the clock (but see --wall). ``frames/s`` is of all
steps; ``undisturbed`` of the fastest tenth of them, which is nearer to what an idle machine does:
where others take turns on a core, the weights are read from memory anew after each.

GB/s: weights that such a step reads, in the type it reads them in, over its time.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
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
    batches: tuple[int, ...] = (1, 8)
    """Sequences decoded together."""
    frames: int = 100
    """Frames of each sequence and turn."""
    turns: int = 3
    """Of each side."""
    codebooks: int = 8
    codebook_size: int = 1024
    top_k: int = 50
    sides: tuple[str, ...] = ("fp32", "bf16", "peer")
    """Ours in two precisions; MusicGen (needs transformers) in float32, and cast to bf16."""
    wall: bool = False
    """Seconds of the clock, for several threads or a GPU."""


def ours(args: Args, precision: str):
    """(batch, after_step) -> None."""
    from rvqlm.codec_info import CodecInfo
    from rvqlm.generation.sampling import SamplingConfig
    from rvqlm.models.factory import build_model

    width, layers, heads = SIZES[args.size]
    info = CodecInfo("bench", "", 44100, 512, args.codebooks, args.codebook_size)
    shape = {"decoder_dim": width, "nhead": heads, "num_decoder_layers": layers}
    torch.manual_seed(0)
    model = build_model("codec-lm", shape, info, {}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.03, 0.03)
    from rvqlm.modules.packed import with_weights_in

    form, _, k = precision.partition("-")
    model = with_weights_in(
        model, torch.bfloat16 if form == "bf16" else torch.float32, form == "int8", k or "native"
    )
    sampling = SamplingConfig(top_k=args.top_k)

    def run(batch: int, after_step: Callable) -> None:
        made = model.generate(
            batch_size=batch,
            max_new_frames=args.frames,
            min_new_frames=args.frames,
            sampling=sampling,
            progress=after_step,
        )
        assert made.codes.shape[1] == args.frames

    return run


def peer(args: Args, dtype: torch.dtype):
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    width, layers, heads = SIZES[args.size]
    K, V = args.codebooks, args.codebook_size
    config = MusicgenDecoderConfig(
        vocab_size=V,
        hidden_size=width,
        num_hidden_layers=layers,
        ffn_dim=4 * width,
        num_attention_heads=heads,
        num_codebooks=K,
        max_position_embeddings=args.frames + K,
        dropout=0.0,
        pad_token_id=V,
        bos_token_id=V,
    )
    model = MusicgenForCausalLM(config).eval().to(dtype)

    @torch.inference_mode()
    def run(batch: int, after_step: Callable) -> None:
        """K rows an item; level k comes k steps late, as its `generate` masks them."""
        ids, past = torch.full((batch * K, 1), V), None
        level = torch.arange(K).repeat(batch)
        for s in range(args.frames + K - 1):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            values, order = out.logits[:, -1].float().topk(args.top_k)
            drawn = order.gather(1, values.softmax(-1).multinomial(1))
            real = (s >= level) & (s < level + args.frames)
            ids = torch.where(real[:, None], drawn, V)
            after_step()

    return run


def weights(args: Args, size: int) -> int:
    """Bytes that a step reads."""
    width, layers, _ = SIZES[args.size]
    return size * (12 * layers * width**2 + args.codebooks * args.codebook_size * width)


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "generate.py", "Decoding, beside MusicGen's decoder.", argv)
    from rvqlm.runtime import tune_malloc

    tune_malloc()
    clock = time.perf_counter if args.wall else time.process_time
    width, layers, _ = SIZES[args.size]
    print(
        f"d{width} x {layers}, {args.codebooks} levels of {args.codebook_size}, {args.frames} "
        f"frames, {torch.get_num_threads()} threads"
    )
    sides = {}
    for side in args.sides:
        dtype = torch.bfloat16 if "bf16" in side else torch.float32
        made = peer(args, dtype) if side.startswith("peer") else ours(args, side)
        sides[side] = made, dtype.itemsize
    for batch in args.batches:
        seconds = {side: [] for side in sides}  # of steps
        for _ in range(args.turns):
            for side, (run, _) in sides.items():
                times = [clock()]
                run(batch, lambda *_, times=times: times.append(clock()))
                seconds[side] += [b - a for a, b in itertools.pairwise(times)]
        each = {side: sum(s) / len(s) for side, s in seconds.items()}
        best = {side: sorted(s)[len(s) // 10] for side, s in seconds.items()}
        for side, (_, size) in sides.items():
            line = f"batch {batch:3}  {side:10}{batch / each[side]:7,.0f} frames/s"
            line += f"{batch / best[side]:8,.0f} undisturbed"
            line += f"{weights(args, size) / best[side] / 1e9:7.1f} GB/s"
            if "peer" in best:
                ratios = (times["peer"] / times[side] for times in (each, best))
                line += "{:8.2f} {:.2f} x peer".format(*ratios)
            print(line, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "generate.py")


if __name__ == "__main__":
    sys.exit(main())
