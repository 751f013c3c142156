"""One optimizer step: micro-batches forward and backward, one gradient, one verdict, one update.

The gradient is the sum over micro-batches and ranks divided by the sum of their tokens, so
accumulation and data parallelism equal one large batch exactly. What decides whether the step is
taken (loss, gradient norm) is summed over ranks first, so all of them decide alike, and reaches
Python in one transfer: the only point of a step where a GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from rvqlm.batch import Batch
from rvqlm.metrics.losses import Totals
from rvqlm.training.level_weights import LevelWeights
from rvqlm.training.precision import LossScale


@dataclass
class Outcome:
    """What became of a step."""

    verdict: str
    """``good`` steps were taken; ``nonfinite``, ``outlier`` and ``overflow`` (of float16) left
    weights, moments and averages alone."""
    loss: float
    """Mean over tokens of what is minimised, over all ranks."""
    grad_norm: float
    """Before clipping."""
    totals: Totals
    """Token sums of this rank."""
    batches: list[Batch]
    """The micro-batches of this rank, for the file of a bad step."""


class Stepper:
    """Takes steps; knows nothing of epochs, logs and files.

    Parameters
    ----------
    module: what is called: the model itself or what a `World` wrapped around it.
    guard: a `LossGuard`.
    watch: a `Stopwatch`.
    beat: called with the name of the phase that begins.
    """

    def __init__(
        self, module: nn.Module, optimizers, ema, guard, config, info, device, dtype, world, watch,
        beat,
    ):  # fmt: skip
        self.module, self.optimizers, self.ema, self.guard = module, optimizers, ema, guard
        self.config, self.info, self.device, self.dtype = config, info, device, dtype
        self.world, self.watch, self.beat = world, watch, beat
        self.weights = LevelWeights(config.loss, info.num_codebooks)
        self.scale = LossScale(dtype)

    def run(self, micro_batches: Iterable[tuple[Batch, bool]]) -> Outcome:
        """:param micro_batches: batches of this rank, each with whether it is the last."""
        self.optimizers.zero_grad()
        K = self.info.num_codebooks
        totals = Totals(K, self.device)
        # loss and tokens of the step: float64, where counts above 2^24 and sums of ranks are exact
        minimised = torch.zeros(2, dtype=totals.sums.dtype, device=self.device)
        batches: list[Batch] = []
        source = iter(micro_batches)
        while True:
            self.beat("data")
            with self.watch("data"):
                batch, last = next(source)
                batches.append(batch)
                frames, cells = batch.num_frames, batch.codes.shape[0] * batch.codes.shape[1]
                moved = batch.to(self.device)
            self.beat("forward and backward")
            with self.world.no_sync(self.module, skip=not last):
                with self.watch("forward"):
                    out = self._forward(moved)
                with self.watch("backward"):
                    self.scale.apply(out.loss).backward()
            minimised += torch.stack([out.loss.detach(), out.normalizer.detach()]).to(minimised)
            totals.add(out, frames, cells)
            if last:
                break
        self.beat("optimizer step")
        with self.watch("step"):
            return self._update(minimised, totals, batches)

    def _forward(self, batch: Batch):
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            return self.module(
                batch,
                label_smoothing=self.config.loss.label_smoothing,
                level_weights=self.weights.draw(self.device),
            )

    @torch.no_grad()
    def _update(self, minimised: torch.Tensor, totals: Totals, batches: list[Batch]) -> Outcome:
        """Judge the summed gradients; scale, clip, step and average if they are good."""
        K, optim = self.info.num_codebooks, self.config.optim
        sums = self.world.all_reduce(torch.cat([minimised, totals.sums[0], totals.sums[2]]))
        grads = [p.grad for p in self.optimizers.params if p.grad is not None]
        norm = self.world.grad_norm(grads)
        loss, tokens, *levels, norm = torch.cat([sums, norm.to(sums).view(1)]).tolist()
        tokens = max(tokens, 1.0)  # a step may score nothing: no text, a level that was not drawn
        # ranks left their mean of sums over tokens; what is wanted is the mean over tokens
        factor = self.world.size / (tokens * self.scale.value)
        loss, norm = loss / tokens, norm * factor
        verdict = self._judge(loss, norm)
        if verdict == "good":
            self.weights.observe(levels[:K], levels[K:])
            if optim.clip_grad_norm:
                factor *= min(1.0, optim.clip_grad_norm / (norm + 1e-6))
            torch._foreach_mul_(grads, factor)
            self.optimizers.step()
            if self.ema is not None:
                self.ema.update()
        return Outcome(verdict, loss, norm, totals, batches)

    def _judge(self, loss: float, norm: float) -> str:
        finite = norm - norm == 0.0  # neither infinite nor NaN
        if self.scale.enabled and not finite and loss - loss == 0.0 and not self.scale.too_small:
            self.scale.update(overflowed=True)  # the scale's fault, not the data's
            return "overflow"
        verdict = self.guard.judge(loss, norm)
        if finite:
            self.scale.update(overflowed=False)
        return verdict

    def state_dict(self) -> dict:
        return {
            "guard": self.guard.state_dict(),
            "level_weights": self.weights.state_dict(),
            "loss_scale": self.scale.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.guard.load_state_dict(state["guard"])
        self.weights.load_state_dict(state["level_weights"])
        self.scale.load_state_dict(state["loss_scale"])
