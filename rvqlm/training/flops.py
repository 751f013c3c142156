"""Floating-point operations of a model, and how many a device can do: what MFU is made of."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rvqlm.batch import Batch

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense operations per second with 16-bit inputs, by a part of the GPU's name, from NVIDIA's data
sheets (SXM versions; those of cards are lower)."""


def forward_flops(model, batch: Batch) -> int:
    """Operations of the matrix products and attention of a forward pass, a multiply-add as two, the
    masked half of causal attention counted too (as in Chowdhery et al., 2022)."""
    training = model.training
    model.eval()
    try:
        # the counter does not know the attention kernel of CPUs; the plain one, which it knows,
        # would hold all scores of a long batch in a GPU's memory
        on_cpu = next(model.parameters()).device.type == "cpu"
        plain = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            model(batch)
    finally:
        model.train(training)
    return counter.get_total_flops()


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of large matrix products: from the table for a GPU that is in it, with
    16-bit inputs; measured in a moment on a CPU; None where neither is known."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((v for k, v in PEAKS.items() if k in name), None)
        return known if dtype in (torch.bfloat16, torch.float16) else None
    if device.type != "cpu":
        return None
    n, best = 1024, float("inf")
    generator = torch.Generator().manual_seed(0)  # not the training's random numbers
    x = torch.randn(n, n, generator=generator).to(dtype)
    for _ in range(4):
        began = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
