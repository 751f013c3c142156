"""Models and batches of the benchmark of training steps, and what it compares them with."""

from __future__ import annotations

import time

import torch

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.factory import build_model

FAMILIES = {
    "delay": ("codec-lm", {}),
    "delay_text": ("codec-lm", {"conditions": ("text",), "fusion": "cross"}),
    "parallel": ("codec-lm", {"pattern": "parallel"}),
    "flatten": ("codec-lm", {"pattern": "flatten"}),
    "coarse_first": ("codec-lm", {"pattern": "coarse_first"}),
    "depth": ("codec-lm", {"pattern": "parallel", "head": "depth"}),
    "valle": ("valle", {}),
    "masked": ("masked", {}),
    "recognizer": ("recognizer", {"conditions": ("text",), "dropout": 0.0}),
}
SYMBOLS = 40
FRAMES_PER_SYMBOL = 5.0


class Loader:
    """One batch for ever, behind what the trainer asks of a loader."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.epoch, self.step, self.epoch_steps = 0, 0, 1 << 30

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        self.step += 1
        return self.batch

    def epoch_batches(self, epoch: int = 0):
        yield self.batch

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]


def random_codes(args, size: dict) -> torch.Tensor:
    """(B, T, K)"""
    generator = torch.Generator().manual_seed(0)
    shape = (size["batch"], size["frames"], args.codebooks)
    return torch.randint(args.codebook_size, shape, generator=generator)


def make_batch(args, size: dict, family: str) -> Batch:
    codes, given = random_codes(args, size), {}
    if "text" in FAMILIES[family][1].get("conditions", ()):
        symbols = round(size["frames"] / FRAMES_PER_SYMBOL)
        shape = (size["batch"], symbols, 1)
        given["text"] = list(torch.randint(1, SYMBOLS, shape))
    batch = Batch.from_codes(list(codes), conditions=given)
    batch.codes = batch.codes.to(torch.int16)
    return batch


def make_model(args, size: dict, family: str, **more) -> torch.nn.Module:
    info = CodecInfo("bench", "", 44100, 512, args.codebooks, args.codebook_size)
    name, changes = FAMILIES[family]
    torch.manual_seed(0)
    shape = {
        "decoder_dim": size["dim"],
        "nhead": size["heads"],
        "num_decoder_layers": size["layers"],
        "activation_checkpointing": args.checkpointing,
    }
    text = ConditionInfo("text", (SYMBOLS,), rate=FRAMES_PER_SYMBOL)
    return build_model(name, {**shape, **changes, **more}, info, {"text": text})


def peak(device, dtype) -> float:
    """Operations per second of the best of a few square matmuls."""
    best = 0.0
    for n in (1024, 2048, 3072) if device.type == "cpu" else (4096, 8192):
        x = torch.randn(n, n, dtype=dtype, device=device)
        for _ in range(5):
            began = clock(device)
            x @ x
            best = max(best, 2 * n**3 / (clock(device) - began))
    return best


def clock(device) -> float:
    """Seconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make_musicgen(args, size: dict) -> torch.nn.Module:
    """transformers' MusicGen decoder of the same width, depth, K and V."""
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = MusicgenDecoderConfig(
        vocab_size=args.codebook_size,
        hidden_size=size["dim"],
        num_hidden_layers=size["layers"],
        ffn_dim=4 * size["dim"],
        num_attention_heads=size["heads"],
        num_codebooks=args.codebooks,
        max_position_embeddings=size["frames"],
        dropout=0.0,
        pad_token_id=args.codebook_size,
        bos_token_id=args.codebook_size,
    )
    return MusicgenForCausalLM(config).train()
