"""Token metrics: sums of nats, hits and counts per level, and what they mean.

Training, validation and `rvqlm evaluate` all add up `LMOutput`s here, so their figures agree. The
yardstick is the unigram: what a model that knows only how frequent each code of a level is in the
training data would need.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import exp, log

import numpy as np
import torch
from torch import Tensor

from rvqlm.batch import PAD, Batch
from rvqlm.codec_info import CodecInfo


class Totals:
    """Running sums on the device, without a synchronisation per batch.

    >>> totals = Totals(num_codebooks=2)
    >>> totals.sums[0] += 6.0; totals.sums[2] += 3.0  # 6 nats over 3 codes, per level
    >>> totals.metrics(Fraction(50))["loss"]
    2.0
    """

    def __init__(self, num_codebooks: int, device: torch.device | str = "cpu"):
        # MPS has no float64
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.sums = torch.zeros(3, num_codebooks, dtype=dtype, device=device)
        """(3, K): nats, correct, count."""
        self.extra: dict[str, Tensor] = {}
        """Name -> (2,): sum, count."""
        self.frames = 0
        self.cells = 0
        """Frames with padding."""

    def add(self, out, frames: int, cells: int) -> None:
        """Add the sums of an `LMOutput` over `frames` real of `cells` frames."""
        self.sums += torch.stack([out.nats, out.correct, out.count]).to(self.sums.dtype)
        for name, pair in out.extra.items():
            value = torch.stack([p.detach() for p in pair]).to(self.sums.dtype)
            self.extra[name] = self.extra[name] + value if name in self.extra else value
        self.frames += frames
        self.cells += cells

    def merge(self, other: Totals) -> None:
        self.sums += other.sums
        for name, value in other.extra.items():
            self.extra[name] = self.extra[name] + value if name in self.extra else value
        self.frames += other.frames
        self.cells += other.cells

    def reduce(self, all_reduce) -> None:
        """Sum over ranks; `all_reduce` adds a tensor up in place."""
        all_reduce(self.sums)
        for name in sorted(self.extra):
            all_reduce(self.extra[name])
        counts = torch.tensor([self.frames, self.cells], device=self.sums.device)
        all_reduce(counts)
        self.frames, self.cells = counts.tolist()

    def metrics(self, frame_rate: Fraction) -> dict:
        """loss (nats per code), its exponential and its bits, nats (K), accuracy (K),
        bits_per_second, padding, means of `extra`; all Python floats. Where nothing was scored the
        loss is None. A level that was not scored, as in a training of some levels
        only, has None, and bits per second are None then."""
        nats, correct, count = self.sums.double().cpu()
        scored = (count > 0).tolist()
        per_level = [n if c else None for n, c in zip((nats / count).tolist(), scored)]
        hits = [n if c else None for n, c in zip((correct / count).tolist(), scored)]
        loss = float(nats.sum() / count.sum()) if any(scored) else None
        out = {
            "loss": loss,
            "perplexity": exp(min(loss, 700.0)) if loss is not None else None,
            "bits_per_token": loss / log(2) if loss is not None else None,
            "nats": per_level,
            "accuracy": hits,
            "bits_per_second": bits_per_second(per_level, frame_rate) if all(scored) else None,
            "frames": self.frames,
            "padding": 1 - self.frames / max(1, self.cells),
        }
        for name, value in self.extra.items():
            total, number = value.tolist()
            out[name] = total / max(number, 1.0)
        return out

    def state_dict(self) -> dict:
        return {
            "sums": self.sums.cpu().clone(),
            "extra": {k: v.cpu().clone() for k, v in self.extra.items()},
            "frames": self.frames,
            "cells": self.cells,
        }

    def load_state_dict(self, state: dict) -> None:
        self.sums.copy_(state["sums"])
        self.extra = {k: v.to(self.sums) for k, v in state["extra"].items()}
        self.frames, self.cells = state["frames"], state["cells"]


def bits_per_second(nats: Iterable[float], frame_rate: Fraction) -> float:
    """Bits per second of audio from the mean nats of each level: sum / ln 2 * frame rate."""
    return sum(nats) / log(2) * float(frame_rate)


@torch.inference_mode()
def evaluate_batches(
    model,
    batches: Iterable[Batch],
    info: CodecInfo,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Totals:
    """Sums of `model` over `batches`, without dropout; `dtype` is that of autocast."""
    totals = Totals(info.num_codebooks, device)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            cells = batch.codes.shape[0] * batch.codes.shape[1]
            frames = batch.num_frames
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                out = model(batch.to(device))
            totals.add(out, frames, cells)
    finally:
        model.train(training)
    return totals


def count_codes(arrays: Iterable[np.ndarray], info: CodecInfo) -> np.ndarray:
    """(K, V) int64: how often each code occurs on each level of (..., K) arrays; `PAD` is left
    out."""
    K, V = info.num_codebooks, info.codebook_size
    offsets = np.arange(K) * V
    counts = np.zeros(K * V, np.int64)
    for codes in arrays:
        flat = codes.reshape(-1, K).astype(np.int64)
        flat = flat[flat[:, 0] != PAD] + offsets
        counts += np.bincount(flat.ravel(), minlength=K * V)
    return counts.reshape(K, V)


def unigram_nats(train: np.ndarray, held_out: np.ndarray) -> list[float]:
    """Mean nats per code, level by level, of codes counted in `held_out` (K, V) under the
    frequencies in `train` (K, V), one added to each so that no code is impossible."""
    log_p = np.log((train + 1) / (train + 1).sum(1, keepdims=True))
    return (-(held_out * log_p).sum(1) / held_out.sum(1)).tolist()
