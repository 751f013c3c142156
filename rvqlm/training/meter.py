"""Figures of training steps: each has an `Outcome`, `Meter` adds them up between two lines of the
log, `Stopwatch` tells where their time goes, `Speed` and `memory_mb` how much of the machine they
use; `training_flops` and `peak_flops` are what MFU is made of.

Meters are saved with checkpoints, so that log lines survive a kill.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from rvqlm.batch import Batch
from rvqlm.metrics.losses import Totals
from rvqlm.modules import native_training
from rvqlm.modules.transformer import Transformer
from rvqlm.training.distributed import World

SKIPS = ("nonfinite", "outlier", "overflow")
"""Why a step was not taken; overflow: of a float16 gradient, by the loss scale."""
# fmt: off
PEAKS = {
    "B200": 2250, "GB200": 2500, "H200": 989, "GH200": 989, "H100": 989, "H100 PCIe": 756,
    "H100 NVL": 835, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165,
    "A10": 125, "A10G": 70, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65,
    "RTX PRO 6000": 504, "RTX 6000 Ada": 364, "RTX 5000 Ada": 261, "RTX 4000 Ada": 107,
    "RTX A6000": 155, "RTX A5000": 111, "RTX A4000": 77, "RTX A2000": 32,
    "RTX 5090": 210, "RTX 5080": 113, "RTX 5070 Ti": 88, "RTX 5070": 62, "RTX 5060 Ti": 47,
    "RTX 5060": 38, "RTX 4090": 165, "RTX 4080 SUPER": 104, "RTX 4080": 97,
    "RTX 4070 Ti SUPER": 88, "RTX 4070 Ti": 80, "RTX 4070 SUPER": 71, "RTX 4070": 58,
    "RTX 4060 Ti": 44, "RTX 4060": 30, "RTX 3090 Ti": 80, "RTX 3090": 71, "RTX 3080 Ti": 68,
    "RTX 3080": 60, "RTX 3080 12GB": 61, "RTX 3070 Ti": 43, "RTX 3070": 41, "RTX 3060 Ti": 32,
    "RTX 3060": 25,
}
BANDWIDTHS = {
    "H200": 4800, "H100 80GB HBM3": 3350, "H100 NVL": 3900, "H100 PCIe": 2000,
    "A100 SXM4 80GB": 2039, "A100 80GB PCIe": 1935, "A100 SXM4 40GB": 1555, "A100 PCIE 40GB": 1555,
    "A40": 696, "A30": 933, "A10": 600, "A10G": 600, "L40S": 864, "L40": 864, "L4": 300,
    "V100": 900, "T4": 320, "RTX 6000 Ada": 960, "RTX 5000 Ada": 576, "RTX 4000 Ada": 360,
    "RTX A6000": 768, "RTX A5000": 768, "RTX A4000": 448, "RTX A2000": 288,
    "RTX 5090": 1792, "RTX 5080": 960, "RTX 5070 Ti": 896, "RTX 5070": 672, "RTX 5060 Ti": 448,
    "RTX 5060": 448, "RTX 4090": 1008, "RTX 4080 SUPER": 736, "RTX 4080": 717,
    "RTX 4070 Ti SUPER": 672, "RTX 4070 Ti": 504, "RTX 4070 SUPER": 504, "RTX 4070": 504,
    "RTX 4060 Ti": 288, "RTX 4060": 272, "RTX 3090 Ti": 1008, "RTX 3090": 936, "RTX 3080 Ti": 912,
    "RTX 3080 12GB": 912, "RTX 3080 10GB": 760, "RTX 3070 Ti": 608, "RTX 3070": 448,
    "RTX 3060 12GB": 360,
}
# fmt: on
"""Dense TFLOP/s with 16-bit inputs, summed in float32, and GB/s of the memory, by words of the
GPU's name and its size; from NVIDIA's data sheets and its comparison of GeForce cards, at the boost
clock. Those of laptops are other chips and not among them, nor are cards whose name and size leave
the memory open (RTX 3060 Ti, H20, GH200, B200); the RTX 4070 is that with GDDR6X."""
_FIGURES = ("grad_norm", "steps", "skipped", "rollbacks", "seconds")
"""What a checkpoint has of a `Meter` beside its token sums."""


@dataclass
class Outcome:
    """What became of a step."""

    verdict: str
    """``good`` steps were taken; those of `SKIPS` left weights, moments and averages alone."""
    loss: float
    """Mean over tokens of what is minimised, over all ranks."""
    grad_norm: float
    """Before clipping."""
    totals: Totals
    """Token sums of this rank."""
    batches: list[Batch]
    """The micro-batches of this rank, for the file of a bad step."""


class Meter:
    """Token sums, gradient norms, steps, skips and seconds since the last line of the log.

    Steps that were not taken are counted and leave no other trace: one NaN loss would hide all the
    others of a line.
    """

    def __init__(self, num_codebooks: int, device: torch.device):
        self.totals = Totals(num_codebooks, device)
        self.grad_norm = 0.0
        """Sum over steps taken; the same on all ranks, like all that follows but `seconds`."""
        self.steps = 0
        """Taken."""
        self.skipped = dict.fromkeys(SKIPS, 0)
        self.rollbacks = 0
        self.seconds = 0.0

    @property
    def empty(self) -> bool:
        return not (self.steps or self.rollbacks or any(self.skipped.values()))

    def add(self, outcome: Outcome) -> None:
        if outcome.verdict != "good":
            self.skipped[outcome.verdict] += 1
            return
        self.totals.merge(outcome.totals)
        self.grad_norm += outcome.grad_norm
        self.steps += 1

    def merge(self, other: Meter) -> None:
        self.totals.merge(other.totals)
        self.grad_norm += other.grad_norm
        self.steps += other.steps
        self.rollbacks += other.rollbacks
        self.seconds += other.seconds
        for reason, count in other.skipped.items():
            self.skipped[reason] += count

    def gather(self, world: World) -> None:
        """Move the token sums of all ranks to the main one, before it saves them. (Meters that were
        merged from reduced ones hold all ranks' sums already.)"""
        if world.size > 1:
            self.totals.reduce(world.all_reduce)
            if not world.main:
                self.totals.clear()

    def values(self, frame_rate: Fraction) -> dict:
        """Entries of a log line: metrics of the tokens (`Totals.metrics`) and counts of skips."""
        skipped = {f"skipped_{reason}": count for reason, count in self.skipped.items()}
        return self.totals.metrics(frame_rate) | skipped

    def state_dict(self) -> dict:
        figures = {name: copy(getattr(self, name)) for name in _FIGURES}
        return {"totals": self.totals.state_dict(), **figures}

    def load_state_dict(self, state: dict, sums: bool = True) -> None:
        """:param sums: whether this rank takes the token sums, which are those of all ranks."""
        self.totals.load_state_dict(state["totals"])
        for name in _FIGURES:
            setattr(self, name, copy(state[name]))
        if not sums:
            self.totals.clear()


class Stopwatch:
    """Sums up seconds by name. On a GPU, work is measured by events on its stream, which are read
    only when asked, so that nothing waits.

    >>> watch = Stopwatch(torch.device("cpu"))
    >>> with watch("data"):
    ...     pass
    >>> list(watch.take()), watch.take()
    (['data'], {})
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.cuda and name != "data":  # data is the CPU's work
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.events.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call."""
        if self.events:
            self.events[-1][2].synchronize()
        for name, first, last in self.events:
            spent = first.elapsed_time(last) / 1000
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        taken, self.seconds, self.events = self.seconds, {}, []
        return taken


@dataclass(frozen=True)
class Speed:
    """What the speed of a model is compared with."""

    flops_per_frame: float | None = None
    """Floating-point operations of forward and backward for one frame, padding included."""
    peak: float | None = None
    """Operations per second that the device (one rank) can do in this precision."""

    def mfu(self, frames_per_second: float, ranks: int) -> float | None:
        """Share of the peak that goes into the model (model FLOPs utilisation, Chowdhery et al.,
        2022, arXiv:2204.02311)."""
        if not self.flops_per_frame or not self.peak:
            return None
        return frames_per_second * self.flops_per_frame / (self.peak * ranks)


def memory_mb(device: torch.device) -> float:
    """Peak memory so far: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Flops(TorchDispatchMode):
    """Counts operations of matrix products, convolutions and attention, a multiply-add as two; the
    masked half of causal attention too (as in Chowdhery et al., 2022), but not the scores that
    fused kernels compute again in the backward pass.

    As torch's `FlopCounterMode`, which knows neither products added in place nor the attention of
    CPUs, and whose hooks on modules a loss that calls autograd in its forward pass does not bear.
    """

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        kind = function._overloadpacket
        name = kind.__name__
        if "attention" in name:
            backward = name.endswith("_backward")
            query, key, value = (t.shape for t in args[backward : backward + 3])
            self.total += (2 if backward else 1) * sdpa_flop_count(query, key, value)
        elif counted := flop_registry.get(IN_PLACE.get(kind, kind)):
            self.total += counted(*args, **kwargs, out_val=out)
        return out


IN_PLACE = {
    torch.ops.aten.addmm_: torch.ops.aten.addmm,
    torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm,
}


def training_flops(model, batch: Batch, dtype: torch.dtype = torch.float32) -> int:
    """Operations of the forward and backward pass of a micro-batch as training makes them: one
    random level where training scores one, and what is frozen or not used not at all. What
    activation checkpointing computes again is left out. Leaves no gradients, and the random numbers
    as they were."""
    configs = [m.config for m in model.modules() if isinstance(m, Transformer)]
    again = [c for c in configs if c.activation_checkpointing]
    for config in again:
        config.activation_checkpointing = False
    try:
        with native_training.without(), Flops() as counter:
            rehearse(model, batch, dtype)
    finally:
        for config in again:
            config.activation_checkpointing = True
    return counter.total


def rehearse(model, batch: Batch, dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward pass of a micro-batch as training makes them. Leaves no gradients, and
    the random numbers as they were."""
    device, training = batch.codes.device, model.training
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(batch).loss
            loss.backward()
    finally:
        model.train(training)
        model.zero_grad()


def _of_sheet(table: dict[str, float], device: torch.device) -> float | None:
    """By the longest of its entries that are words of a GPU's name and size."""
    size = round(torch.cuda.mem_get_info(device)[1] / 2**30)
    words = f" {torch.cuda.get_device_name(device)} {size}GB ".replace("-", " ")
    found = max((k for k in table if f" {k} " in words), key=len, default=None)
    part = " Laptop " in words or " MIG " in words
    return None if found is None or part else table[found]


def peak_bandwidth(device: torch.device) -> float | None:
    """Bytes per second of a GPU's memory, from the table; None where it is not in it."""
    found = _of_sheet(BANDWIDTHS, device)
    return None if found is None else found * 1e9


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of large matrix products: from the table for a GPU that is in it, with
    16-bit inputs; measured in a moment on a CPU; None where neither is known."""
    if device.type == "cuda":
        if dtype not in (torch.bfloat16, torch.float16):
            return None
        found = _of_sheet(PEAKS, device)
        return None if found is None else found * 1e12
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
