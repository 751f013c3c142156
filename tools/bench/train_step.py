"""Frames per second of a training step, against transformers' MusicGen decoder and the matmul peak.

    python tools/bench/train_step.py                      # small: d256 x 6, K=9, V=1024, 8 x 400
    python tools/bench/train_step.py --size large         # d768 x 16, 2 x 512
    python tools/bench/train_step.py --size custom --dim 384 --layers 8 --batch 4 --frames 300

Ours is the whole trainer loop (forward, loss, backward, clipping, AdamW, EMA, logging) on codec-lm
with the delay pattern. The peer is `MusicgenForCausalLM` of the same width, depth, K, V and batch:
forward with labels, backward, AdamW, nothing else. Each measurement is a process of its own, the
two in turn, and the median over all steps after warm-up counts. The peak is the best of a few
square matmuls in the same precision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {
    "small": {"dim": 256, "layers": 6, "heads": 4, "batch": 8, "frames": 400},
    "large": {"dim": 768, "layers": 16, "heads": 12, "batch": 2, "frames": 512},
    "tiny": {"dim": 64, "layers": 2, "heads": 2, "batch": 2, "frames": 40},
}


class EndlessBatches:
    """One batch for ever, as the loader would yield it."""

    def __init__(self, codes, lengths, torch):
        from rvqlm.data.batch import Batch

        ends = torch.ones(len(lengths), dtype=torch.bool)
        self.batch = Batch(codes, lengths, ends, torch.arange(len(lengths)))
        self.epoch, self.step, self.epoch_steps = 0, 0, 1 << 30

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        return self.batch

    def state_dict(self):
        return {"step": self.step}


def run_ours(a, torch):
    from rvqlm.codec_info import CodecInfo
    from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
    from rvqlm.training.config import LogConfig, SaveConfig, TrainerConfig
    from rvqlm.training.trainer import Trainer

    info = CodecInfo("bench", "", 44100, 512, a.codebooks, a.codebook_size)
    config = CodecLMConfig("delay", a.dim, a.heads, a.layers, norm=a.norm, activation=a.activation)
    model = CodecLM(config, info)
    lengths = torch.full((a.batch,), a.frames)
    batches = EndlessBatches(random_codes(a, torch).to(torch.int16), lengths, torch)
    with tempfile.TemporaryDirectory() as folder:
        flags = TrainerConfig(
            folder,
            "",
            max_steps=a.warmup + a.steps,
            log=LogConfig(log_every_steps=1),
            save=SaveConfig(save_every_minutes=0),
        )
        trainer = Trainer(model, batches, None, flags, info, dtype=getattr(torch, a.dtype))
        trainer.fit()
        with open(os.path.join(folder, "metrics.jsonl")) as file:
            rows = [json.loads(line) for line in file]
    rates = [r["frames_per_second"] for r in rows if r["kind"] == "train"][a.warmup :]
    return [a.batch * a.frames / r for r in rates], matmul_parameters(model)


def matmul_parameters(model):
    """Weights that every frame is multiplied with (not the looked-up embeddings)."""
    return sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n)


def run_peer(a, torch):
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = MusicgenDecoderConfig(
        vocab_size=a.codebook_size,
        hidden_size=a.dim,
        num_hidden_layers=a.layers,
        ffn_dim=4 * a.dim,
        num_attention_heads=a.heads,
        num_codebooks=a.codebooks,
        max_position_embeddings=a.frames,
        dropout=0.0,
        pad_token_id=a.codebook_size,
        bos_token_id=a.codebook_size,
    )
    model = MusicgenForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    codes = random_codes(a, torch).long()  # (B, T, K)
    ids = codes.transpose(1, 2).reshape(a.batch * a.codebooks, a.frames)
    dtype = getattr(torch, a.dtype)
    times = []
    for _ in range(a.warmup + a.steps):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=codes).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return times[a.warmup :], 0


def random_codes(a, torch):
    torch.manual_seed(0)
    return torch.randint(a.codebook_size, (a.batch, a.frames, a.codebooks))


def run_peak(a, torch):
    """Best seconds per FLOP of square matmuls."""
    dtype, best = getattr(torch, a.dtype), float("inf")
    for n in (1024, 2048, 3072):
        x, y = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        x @ y
        for _ in range(4):
            began = time.perf_counter()
            x @ y
            best = min(best, (time.perf_counter() - began) / (2 * n**3))
    return [best], 0


def flops_per_frame(a, parameters):
    """6 per weight and frame; attention: 12 d T per layer, halved by causality."""
    return 6 * parameters + 6 * a.layers * a.dim * a.frames


def child(a):
    if a.tuned or a.child == "ours":
        from rvqlm.runtime import tune_malloc

        tune_malloc()
    import torch

    torch.set_num_threads(a.threads)
    times, parameters = {"ours": run_ours, "peer": run_peer, "peak": run_peak}[a.child](a, torch)
    print(json.dumps({"times": times, "parameters": parameters}))


def spawn(a, kind, dtype, tuned=False):
    words = [sys.executable, __file__, "--child", kind, "--dtype", dtype]
    for name in ("dim", "layers", "heads", "batch", "frames", "codebooks", "codebook_size",
                 "steps", "warmup", "threads", "norm", "activation"):  # fmt: skip
        words += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
    done = subprocess.run(words + ["--tuned"] * tuned, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{kind} {dtype} failed")
    return json.loads(done.stdout.splitlines()[-1])


def parse():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--size", choices=[*SIZES, "custom"], default="small")
    for name, value, text in [
        ("dim", 256, "width"),
        ("layers", 6, "layers"),
        ("heads", 4, "attention heads"),
        ("batch", 8, "items per batch"),
        ("frames", 400, "frames per item"),
        ("codebooks", 9, "K"),
        ("codebook-size", 1024, "V"),
        ("steps", 8, "measured steps per process"),
        ("warmup", 2, "steps not counted"),
        ("rounds", 2, "processes of each kind"),
        ("threads", len(os.sched_getaffinity(0)), "CPU threads"),
    ]:
        p.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    p.add_argument("--norm", default="layernorm", help="of ours (default layernorm, like the peer)")
    p.add_argument("--activation", default="gelu", help="of ours (default gelu, like the peer)")
    p.add_argument("--bf16", choices=["auto", "yes", "no"], default="auto",
                   help="measure bf16 too; auto: where the CPU has it")  # fmt: skip
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--dtype", help=argparse.SUPPRESS)
    p.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child is None and a.size != "custom":
        vars(a).update(SIZES[a.size])
    return a


def main() -> int:
    a = parse()
    if a.child:
        child(a)
        return 0
    import torch

    from rvqlm.runtime import describe_machine, has_fast_bf16

    machine = describe_machine()
    print(f"{machine['cpu']}, {a.threads} threads, {machine['cpu_capability']}, torch "
          f"{machine['torch']}, commit {machine['commit']}")  # fmt: skip
    print(
        f"d{a.dim} x {a.layers}, K={a.codebooks}, V={a.codebook_size}, batch {a.batch} x {a.frames}"
    )
    bf16 = a.bf16 == "yes" or (a.bf16 == "auto" and has_fast_bf16(torch.device("cpu")))
    if not bf16:
        print("bf16: emulated on this CPU, not measured (--bf16 yes measures it all the same)")
    precisions = ["float32"] + ["bfloat16"] * bf16
    kinds = [
        (k, d, t) for d in precisions for k, t in (("ours", True), ("peer", False), ("peer", True))
    ]
    times: dict = {kind: [] for kind in kinds}
    peaks: dict = {d: [] for d in precisions}
    parameters = 0
    for _ in range(a.rounds):
        for d in precisions:
            peaks[d] += spawn(a, "peak", d)["times"]
        for kind in kinds:
            result = spawn(a, *kind)
            times[kind] += result["times"]
            parameters = max(parameters, result["parameters"])
    frames = a.batch * a.frames
    rate = {kind: frames / statistics.median(t) for kind, t in times.items()}
    ours = rate[("ours", precisions[-1], True)]
    print(f"\n{'':34}{'frames/s':>10}{'ours (' + precisions[-1] + ') / this':>24}")
    for (k, d, tuned), r in rate.items():
        name = f"{'rvqlm trainer' if k == 'ours' else 'MusicGen'} {d}"
        name += ", tuned malloc" if k == "peer" and tuned else ""
        print(f"{name:34}{r:10.0f}{ours / r:24.2f}")
    for d in precisions:
        peak = 1 / min(peaks[d])
        achieved = rate[("ours", d, True)] * flops_per_frame(a, parameters)
        print(f"{d}: {achieved / 1e9:.0f} GFLOP/s of a matmul peak of {peak / 1e9:.0f}: "
              f"{100 * achieved / peak:.0f} %")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
