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
from rvqlm.metrics.uncertainty import ByRecording


class Totals:
    """Running sums of metrics by name, on the device, without a synchronisation per batch. A metric
    that a model returns under a name of its own is summed, reduced, saved and reported like all.

    >>> totals = Totals(num_codebooks=2)
    >>> totals.sums["nats"] += torch.tensor([[6.0], [3.0]])  # 6 nats over 3 codes, per level
    >>> totals.metrics(Fraction(50))["loss"]
    2.0
    """

    def __init__(self, num_codebooks: int, device: torch.device | str = "cpu"):
        # MPS has no float64
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        zeros = torch.zeros(2, num_codebooks, dtype=dtype, device=device)
        self.sums = {"nats": zeros, "accuracy": zeros.clone()}
        """Name -> (2, K) sum and count per level, or (2,) for a metric of whole batches."""
        self.frames = 0
        self.cells = 0
        """Frames with padding."""

    def add(self, out, frames: int, cells: int) -> None:
        """Add the sums of an `LMOutput` over `frames` real of `cells` frames."""
        self.add_sums(out.sums, frames, cells)

    def add_sums(self, sums: dict[str, tuple[Tensor, Tensor]], frames: int = 0, cells: int = 0):
        """Add sums and counts by name, as an `LMOutput` has them."""
        like = self.sums["nats"]
        added = {name: torch.stack(pair).detach().to(like) for name, pair in sums.items()}
        self._add(added, frames, cells)

    def merge(self, other: Totals) -> None:
        self._add(other.sums, other.frames, other.cells)

    def _add(self, sums: dict[str, Tensor], frames: int, cells: int) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.frames += frames
        self.cells += cells

    def clear(self) -> None:
        """Back to zero; names stay, since ranks reduce them name by name."""
        self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}
        self.frames = self.cells = 0

    def reduce(self, all_reduce) -> None:
        """Sum over ranks; `all_reduce` adds a tensor up in place."""
        for name in sorted(self.sums):
            all_reduce(self.sums[name])
        counts = torch.tensor([self.frames, self.cells], device=self.sums["nats"].device)
        all_reduce(counts)
        self.frames, self.cells = counts.tolist()

    def metrics(self, frame_rate: Fraction) -> dict:
        """The mean of each metric by name, a list for one per level; and of ``nats`` the loss per
        code, its exponential and bits, and bits per second; frames and padding. Python floats.

        The loss is the mean over levels of their mean nats: where levels were not scored equally
        often, as when an item scores one level at random, none counts by how often it was. A level
        that was not scored, as in a training of some levels only, has None and no part in the loss,
        and bits per second are None then; where nothing was scored the loss is None too.
        """
        means = {}
        for name, value in self.sums.items():
            total, count = value.tolist()
            if value.ndim == 1:
                means[name] = total / max(count, 1.0)
            else:
                means[name] = [t / n if n else None for t, n in zip(total, count)]
        scored = [nats for nats in means["nats"] if nats is not None]
        loss = sum(scored) / len(scored) if scored else None
        complete = None not in means["nats"]
        return {
            "loss": loss,
            "perplexity": exp(min(loss, 700.0)) if loss is not None else None,
            "bits_per_token": loss / log(2) if loss is not None else None,
            **means,
            "bits_per_second": bits_per_second(means["nats"], frame_rate) if complete else None,
            "frames": self.frames,
            "padding": 1 - self.frames / max(1, self.cells),
        }

    def state_dict(self) -> dict:
        """Nats, hits and count in one tensor (3, K), the others by name, as checkpoints have it."""
        (nats, count), (hits, _) = self.sums["nats"], self.sums["accuracy"]
        others = {k: v.cpu().clone() for k, v in self.sums.items() if k not in ("nats", "accuracy")}
        sums = torch.stack([nats, hits, count]).cpu()
        return {"sums": sums, "extra": others, "frames": self.frames, "cells": self.cells}

    def load_state_dict(self, state: dict) -> None:
        nats, hits, count = state["sums"].to(self.sums["nats"])
        self.sums = {"nats": torch.stack([nats, count]), "accuracy": torch.stack([hits, count])}
        self.sums |= {name: value.to(self.sums["nats"]) for name, value in state["extra"].items()}
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
    recordings: ByRecording | None = None,
) -> Totals:
    """Sums of `model` over `batches`, without dropout; `dtype` is that of autocast. ``recordings``
    gets those of each recording."""
    totals = Totals(info.num_codebooks, device)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            cells = batch.cells
            frames = batch.num_frames
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                out = model(batch.to(device))
            totals.add(out, frames, cells)
            if recordings is not None:
                recordings.add(batch.index, out.items)
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
