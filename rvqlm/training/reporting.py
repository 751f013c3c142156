"""What the trainer says about its steps: entries of the log, lines on the terminal."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from math import exp

import torch

from rvqlm.training.logger import clock
from rvqlm.training.meter import Meter


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


def interval_values(trainer, meter: Meter, times: dict[str, float]) -> dict:
    """Entries of a ``train`` line; `times` are seconds by part of a step."""
    totals, seconds = meter.totals, max(meter.seconds, 1e-9)
    values = totals.metrics(trainer.info.frame_rate)
    scale = trainer.stepper.scale
    values |= {
        "lr": trainer.lr,
        "grad_norm": meter.grad_norm / meter.steps if meter.steps else None,
        **{f"skipped_{reason}": count for reason, count in meter.skipped.items()},
        "rollbacks": meter.rollbacks,
        **({"loss_scale": scale.value} if scale.enabled else {}),
        "total_frames": trainer.total_frames,
        "frames_per_second": totals.frames / seconds,
        "mfu": trainer.speed.mfu(totals.cells / seconds, trainer.world.size),
        "elapsed": trainer.elapsed,
        "memory_mb": memory_mb(trainer.device),
        **{f"time_{part}": spent / seconds for part, spent in times.items()},
    }
    return values


def valid_line(step: int, values: dict) -> str:
    bits = values["bits_per_second"]
    return (
        f"step {step} valid {values['loss']:.4f} nats/code"
        + (f", {bits:,.0f} bits/s" if bits is not None else "")
        + (" (best)" if values["best"] else "")
    )


def epoch_line(step: int, epoch: int, values: dict, progress: float) -> str:
    """Train and validation loss, perplexity, nats per level, times."""
    levels = " ".join("-" if n is None else f"{n:.2f}" for n in values["nats"])
    valid, elapsed = values["valid_loss"], values["elapsed"]
    left = elapsed * (1 - progress) / max(progress, 1e-9)
    skips = {k.removeprefix("skipped_"): n for k, n in values.items() if k.startswith("skipped_")}
    skips = ", ".join(f"{n} {reason}" for reason, n in skips.items() if n)
    return (
        f"epoch {epoch + 1} step {step} train {values['loss']:.4f}"
        + (f" valid {valid:.4f} ppl {exp(min(valid, 700)):.1f}" if valid is not None else "")
        + f" levels {levels}"
        + (f" | skipped {skips}" if skips else "")
        + f" | {clock(values['seconds'])} this epoch, {clock(elapsed)} in all, ETA {clock(left)}"
    )


def memory_mb(device: torch.device) -> float:
    """Peak memory so far: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
