"""`Trainer`: the loop for every model.

It knows a model only as something that takes a `Batch` and returns an `LMOutput` of sums, and a
loader as an endless iterator that can tell and restore its position. The gradient of a step is the
sum over micro-batches and ranks divided by the sum of their tokens, so accumulation and data
parallelism equal one large batch exactly. Given steps or epochs as the budget, a run on a CPU is
reproduced bit for bit after any interruption: what is random depends on (seed, rank, step) alone.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import time
from itertools import islice
from math import exp, isfinite
from pathlib import Path

import torch
from torch import nn

from rvqlm import __version__
from rvqlm.cli import flatten
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.evaluation.losses import evaluate_batches
from rvqlm.training.checkpoint import FORMAT, save_checkpoint
from rvqlm.training.config import TrainerConfig
from rvqlm.training.distributed import World
from rvqlm.training.ema import EMA
from rvqlm.training.logger import MetricsLog, Progress, clock
from rvqlm.training.meter import Meter
from rvqlm.training.optim import build_optimizer
from rvqlm.training.schedule import Budget, Schedule


class Trainer:
    """Trains `model` on the batches of `train` as `config` says.

    Parameters
    ----------
    model: `rvqlm.models.base.TokenModel` or anything alike, on `device`.
    train: iterator of `Batch` with ``epoch``, ``step``, ``epoch_steps``, ``state_dict()`` and
        ``load_state_dict()``.
    valid: has ``epoch_batches()``, the same batches every time; None: no validation, no best.pt.
    """

    def __init__(
        self,
        model: nn.Module,
        train,
        valid,
        config: TrainerConfig,
        info: CodecInfo,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
    ):
        self.model, self.train, self.valid = model, train, valid
        self.config, self.info = config, info
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.world = world or World()
        self.exp_dir = Path(config.exp_dir)
        self.module = self.world.wrap(model)
        self.optimizers = build_optimizer(model, config.optim)
        self.ema = EMA(model, config.optim.ema_decay) if config.optim.ema_decay else None
        o = config.optim
        self.schedule = Schedule(o)
        self.budget = Budget(config.num_epochs, config.max_steps, config.max_minutes)
        self.step = 0
        self.total_frames = 0
        self.elapsed = 0.0
        self.lr = 0.0
        self.best: dict = {"loss": float("inf"), "step": 0}
        self.validated = {"step": -1, "loss": None, "elapsed": 0.0}
        self.saved_elapsed = 0.0
        self.interval = Meter(info.num_codebooks, self.device)
        self.epoch_meter = Meter(info.num_codebooks, self.device)
        self.signal: int | None = None
        self._signalled = 0.0
        self._ended: int | None = None
        """Epoch that ended in this step; a step may reach into the next."""
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    # ---------------------------------------------------------------------------------- loop

    @property
    def epochs(self) -> float:
        """Passes over the data so far."""
        return self.train.epoch + self.train.step / self.train.epoch_steps

    @property
    def progress(self) -> float:
        """Used share of the budget."""
        return self.budget.progress(self.step, self.epochs, self.elapsed)

    def fit(self) -> str:
        """Train until the budget is used up; returns ``finished``, ``SIGINT`` or ``SIGTERM``.

        The signals end the step that is running, save latest.pt and return; another one, two
        seconds later or more, stops at once. Raises `UserError` when the loss is no longer a number
        or the disk refuses.
        """
        self.log = MetricsLog(self.exp_dir, self.step, self.world.main)
        start = time.monotonic() - self.elapsed
        self.bar = Progress(self.progress, self.world.main)
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.model.train()
            while self.progress < 1:
                began = time.monotonic()
                self._train_step(self.schedule.factor(self.step, self.epochs, self.progress))
                self.step += 1
                self.interval.seconds += time.monotonic() - began
                self.elapsed, stop = self.world.agree(
                    time.monotonic() - start, float(self.signal or 0)
                )
                self._after_step(finished=self.progress >= 1, stop=bool(stop))
                if stop and self.progress < 1:
                    return signal.Signals(int(stop)).name
            return "finished"
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.bar.close()
            self.log.close()

    def _on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.signal is not None:
            # Ctrl-C under torchrun comes twice, from the terminal and from torchrun
            if now - self._signalled > 2:
                raise KeyboardInterrupt
            return
        self.signal, self._signalled = number, now
        if self.world.main:  # not print: the signal may have come in the middle of one
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving at the end of this step\n".encode())

    def _train_step(self, factor: float) -> None:
        """One optimizer step over ``--accum`` micro-batches (fewer at the end of the last
        epoch)."""
        optim, world = self.config.optim, self.world
        # own random numbers for each step: nothing random has to be saved or restored
        torch.manual_seed(step_seed(self.config.seed, world.rank, self.step))
        self.optimizers.zero_grad()
        self.model.progress = self.progress
        self._ended = None
        tokens = torch.zeros((), device=self.device)  # counts up to 2^24 are exact
        for micro in range(optim.accum):
            batch = next(self.train)
            if self.train.step == self.train.epoch_steps:
                self._ended = self.train.epoch
            last = micro == optim.accum - 1 or self._data_is_used_up()
            frames = batch.num_frames
            cells = batch.codes.shape[0] * batch.codes.shape[1]
            batch = batch.to(self.device)
            with world.no_sync(self.module, skip=not last):
                with torch.autocast(
                    self.device.type, self.dtype, enabled=self.dtype != torch.float32
                ):
                    out = self.module(batch, label_smoothing=self.config.loss.label_smoothing)
                out.loss.backward()
            tokens += out.normalizer.detach()
            self.interval.totals.add(out, frames, cells)
            if last:
                break
        self._update(tokens, factor)

    @torch.no_grad()
    def _update(self, tokens: torch.Tensor, factor: float) -> None:
        """Scale and clip the summed gradients, step, average. No value leaves the device."""
        grads = [p.grad for p in self.optimizers.params if p.grad is not None]
        # DDP left the mean over ranks of sums over tokens; what is wanted is the mean over tokens
        scale = self.world.size / self.world.all_reduce(tokens)
        norm = torch.nn.utils.get_total_norm(grads) * scale
        if self.config.optim.clip_grad_norm:
            scale = scale * (self.config.optim.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
        self.lr = self.config.optim.base_lr * factor
        self.optimizers.set_factor(factor)
        self.optimizers.step()
        if self.ema is not None:
            self.ema.update()
        self.interval.grad_norm += norm
        self.interval.steps += 1
        self._finite &= norm.isfinite()

    def _data_is_used_up(self) -> bool:
        return bool(self.config.num_epochs) and self.epochs >= self.config.num_epochs

    # -------------------------------------------------------------------------------- events

    def _after_step(self, finished: bool, stop: bool) -> None:
        """Log, validate and save, in this order, where due: a checkpoint implies its log."""
        log, save_flags, step, elapsed = self.config.log, self.config.save, self.step, self.elapsed
        epoch_ended = self._ended is not None
        if epoch_ended or finished or step % log.log_every_steps == 0:
            self._log_interval()
        if log.valid_every_steps:
            due = step % log.valid_every_steps == 0
        elif log.valid_every_minutes:
            due = elapsed - self.validated["elapsed"] >= 60 * log.valid_every_minutes
        else:
            due = epoch_ended
        improved = self._validate() if (due or finished) and self.valid is not None else False
        if epoch_ended or finished:
            self._log_epoch(self.train.epoch if self._ended is None else self._ended)
        every = save_flags.save_every_steps
        save = finished or stop or (every and step % every == 0)
        if save_flags.save_every_minutes:
            save = save or elapsed - self.saved_elapsed >= 60 * save_flags.save_every_minutes
        if save or improved:
            self._save(improved)

    def _check_finite(self) -> None:
        if not bool(self._finite):
            raise UserError(
                f"training diverged: the gradient is not finite by step {self.step}; the last good "
                f"checkpoint in {self.exp_dir} is untouched: lower --base-lr or --clip-grad-norm, "
                "or lengthen the warm-up, and --resume"
            )

    def _log_interval(self) -> None:
        """Line of the steps since the last one."""
        meter = self.interval
        if not meter.steps:
            return
        meter.reduce(self.world)
        self._check_finite()
        self.total_frames += meter.totals.frames
        speed = meter.totals.frames / max(meter.seconds, 1e-9)
        values = meter.totals.metrics(self.info.frame_rate)
        values |= {
            "lr": self.lr,
            "grad_norm": float(meter.grad_norm) / meter.steps,
            "total_frames": self.total_frames,
            "frames_per_second": speed,
            "elapsed": self.elapsed,
            "memory_mb": memory_mb(self.device),
        }
        self.log.write("train", self.step, self.train.epoch, values)
        self.bar.update(self.progress, self.step, values["loss"], speed)
        self.epoch_meter.merge(meter)
        self.interval = Meter(self.info.num_codebooks, self.device)

    def _validate(self) -> bool:
        """Loss of the averaged weights on the validation split; whether it is the lowest yet."""
        began = time.monotonic()
        batches = self.valid.epoch_batches()
        if self.config.log.valid_max_batches:
            batches = islice(batches, self.config.log.valid_max_batches)
        if self.ema is not None:
            with self.ema.swapped():
                totals = evaluate_batches(self.model, batches, self.info, self.device, self.dtype)
        else:
            totals = evaluate_batches(self.model, batches, self.info, self.device, self.dtype)
        totals.reduce(self.world.all_reduce)
        values = totals.metrics(self.info.frame_rate)
        loss = values["loss"]
        if not isfinite(loss):
            raise UserError(
                f"training diverged: validation loss is {loss} at step {self.step}; the "
                f"checkpoints in {self.exp_dir} are older: lower --base-lr and --resume"
            )
        improved = loss < self.best["loss"]
        if improved:
            self.best = {"loss": loss, "step": self.step}
        self.validated = {"step": self.step, "loss": loss, "elapsed": self.elapsed}
        values |= {"elapsed": self.elapsed, "seconds": time.monotonic() - began, "best": improved}
        self.log.write("valid", self.step, self.train.epoch, values)
        bits = values["bits_per_second"]
        self.bar.say(
            f"step {self.step} valid {loss:.4f} nats/code"
            + (f", {bits:,.0f} bits/s" if bits is not None else "")
            + (" (best)" if improved else "")
        )
        return improved

    def _log_epoch(self, epoch: int) -> None:
        """Line of an epoch, up to the step that ended it: train, valid, perplexity, nats, times."""
        meter = self.epoch_meter
        if not meter.steps:
            return
        values = meter.totals.metrics(self.info.frame_rate)
        valid = self.validated["loss"] if self.validated["step"] == self.step else None
        values |= {"valid_loss": valid, "seconds": meter.seconds, "elapsed": self.elapsed}
        self.log.write("epoch", self.step, epoch, values)
        levels = " ".join("-" if n is None else f"{n:.2f}" for n in values["nats"])
        left = self.elapsed * (1 - self.progress) / max(self.progress, 1e-9)
        self.bar.say(
            f"epoch {epoch + 1} step {self.step} train {values['loss']:.4f}"
            + (f" valid {valid:.4f} ppl {exp(valid):.1f}" if valid is not None else "")
            + f" levels {levels} | {clock(meter.seconds)} this epoch, "
            f"{clock(self.elapsed)} in all, ETA {clock(left)}"
        )
        self.epoch_meter = Meter(self.info.num_codebooks, self.device)

    # --------------------------------------------------------------------------- checkpoints

    def _save(self, improved: bool) -> None:
        self._check_finite()
        self.saved_elapsed = self.elapsed
        self.interval.gather(self.world)
        if self.world.main:
            self.log.sync()
            latest, best = self.exp_dir / "latest.pt", self.exp_dir / "best.pt"
            state = self.state_dict()
            if improved:
                save_checkpoint(state, best, also=latest)
            else:
                save_checkpoint(state, latest)
        self.world.barrier()

    def state_dict(self) -> dict:
        """Everything needed to go on; plain values and tensors."""
        return {
            "format": FORMAT,
            "rvqlm_version": __version__,
            "model_name": self.model.name,
            "model_config": dataclasses.asdict(self.model.config),
            "codec": self.info.to_dict(),
            "conditions": {k: c.to_dict() for k, c in self.model.conditions.items()},
            "config": flatten(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(self.model) if self.ema is not None else None,
            "ema_updates": self.ema.updates if self.ema is not None else 0,
            "optimizer": self.optimizers.state_dict(),
            "schedule": {"progress": self.progress, "lr": self.lr},
            "loader": self.train.state_dict(),
            "rng": {"seed": self.config.seed},
            "step": self.step,
            "epoch": self.train.epoch,
            "total_frames": self.total_frames,
            "elapsed": self.elapsed,
            "best": self.best,
            "validated": self.validated,
            "interval": self.interval.state_dict(),
            "epoch_meter": self.epoch_meter.state_dict(),
        }

    def load_state_dict(self, state: dict, where: str = "the checkpoint") -> None:
        """Continue from a checkpoint; `UserError` if model, codec, optimizer, seed or data
        differ."""
        require_same_run(self, state, where)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizer"])
        self.train.load_state_dict(state["loader"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"], state["ema_updates"])
        self.step, self.total_frames = state["step"], state["total_frames"]
        self.elapsed = self.saved_elapsed = state["elapsed"]
        self.best, self.validated = dict(state["best"]), dict(state["validated"])
        if self.world.main:
            self.interval.load_state_dict(state["interval"])
            self.epoch_meter.load_state_dict(state["epoch_meter"])


def require_same_run(trainer: Trainer, state: dict, where: str) -> None:
    """Refuse a checkpoint that this command line does not continue, naming every difference."""
    model, config = trainer.model, trainer.config
    mine = {
        "--model-name": model.name,
        "--seed": config.seed,
        "--optimizer": config.optim.optimizer,
    }
    theirs = {
        "--model-name": state["model_name"],
        "--seed": state["rng"]["seed"],
        "--optimizer": state["config"].get("optimizer"),
    }
    if model.name == state["model_name"]:
        for name, value in dataclasses.asdict(model.config).items():
            flag = f"--{name.replace('_', '-')}"
            mine[flag], theirs[flag] = value, state["model_config"].get(name)
    mine["averaging (--ema-decay above 0)"] = trainer.ema is not None
    theirs["averaging (--ema-decay above 0)"] = state["ema"] is not None
    differing = [f"{k} was {theirs[k]}, is {mine[k]}" for k in mine if mine[k] != theirs[k]]
    if differing:
        raise UserError(
            f"{where} is of another run: {'; '.join(differing)}; give the same flags "
            f"(--config {Path(where).parent / 'config.yaml'}), another --exp-dir, or --resume no"
        )
    for kind, info in model.conditions.items():
        before = ConditionInfo.from_dict(state["conditions"][kind])
        info.require_same(before, config.manifest_dir, where)
    trainer.info.require_same(CodecInfo.from_dict(state["codec"]), config.manifest_dir, where)


def step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed of its own for each (seed, rank, step): splitmix64 of the three in turn."""
    mask, x = (1 << 64) - 1, 0
    for value in (seed, rank, step):
        x = (x + value + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return x >> 1


def memory_mb(device: torch.device) -> float:
    """Peak memory so far: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
