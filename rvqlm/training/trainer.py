"""`Trainer`: the loop for every model.

It knows a model only as something that takes a `Batch` and returns an `LMOutput` of sums, and a
loader as an endless iterator that can tell and restore its position. Steps are taken by `Stepper`
(step.py), what happens between them is decided by `what_is_due` (due.py), what is said about them
is put in words by reporting.py. Given steps or epochs as the budget, a run on a CPU is reproduced
bit for bit after any interruption: what is random depends on (seed, rank, step) alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from torch import nn

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.metrics.losses import evaluate_batches
from rvqlm.runtime import step_seed
from rvqlm.training import saving
from rvqlm.training.bad_batch import save_bad_batch
from rvqlm.training.config import TrainerConfig
from rvqlm.training.distributed import World
from rvqlm.training.due import what_is_due
from rvqlm.training.ema import EMA
from rvqlm.training.guards import LossGuard
from rvqlm.training.logger import MetricsLog, Progress
from rvqlm.training.meter import Meter
from rvqlm.training.optim import build_optimizer
from rvqlm.training.reporting import Speed, epoch_line, interval_values, valid_line
from rvqlm.training.schedule import Budget, Schedule
from rvqlm.training.step import Outcome, Stepper
from rvqlm.training.stopwatch import Stopwatch
from rvqlm.training.watchdog import Watchdog


class Trainer:
    """Trains `model` on the batches of `train` as `config` says.

    Parameters
    ----------
    model: `rvqlm.models.base.TokenModel` or anything alike, on `device`.
    train: iterator of `Batch` with ``epoch``, ``step``, ``epoch_steps``, ``state_dict()`` and
        ``load_state_dict()``.
    valid: has ``epoch_batches()``, the same batches every time; None: no validation, no best.pt.
    make_samples: called with the `MetricsLog`; returns a `SampleWriter`. None: no samples.
    speed: what the model's figures are compared with, for MFU.
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
        make_samples: Callable | None = None,
        speed: Speed | None = None,
    ):
        self.model, self.train, self.valid = model, train, valid
        self.config, self.info = config, info
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.world = world or World()
        self.exp_dir = Path(config.exp_dir)
        self.make_samples, self.speed = make_samples, speed or Speed()
        self.module = self.world.wrap(model)
        o = config.optim
        self.optimizers = build_optimizer(model, o)
        self.ema = EMA(model, o.ema_decay, o.ema_warmup) if o.ema_decay else None
        self.schedule = Schedule(o)
        self.budget = Budget(config.num_epochs, config.max_steps, config.max_minutes)
        self.guard = LossGuard(config.guard)
        self.watch = Stopwatch(self.device)
        self.stepper = Stepper(
            self.module, self.optimizers, self.ema, self.guard, config, info, self.device, dtype,
            self.world, self.watch, self._beat,
        )  # fmt: skip
        self.watchdog: Watchdog | None = None
        self.step = 0
        self.total_frames = 0
        self.elapsed = 0.0
        self.lr = 0.0
        self.best: dict = {"loss": float("inf"), "step": 0}
        self.validated = {"step": -1, "loss": None}
        self.since = {"valid": 0.0, "sample": 0.0, "save": 0.0}
        """Seconds of training at which each was done last."""
        self.interval = Meter(info.num_codebooks, self.device)
        self.epoch_meter = Meter(info.num_codebooks, self.device)
        self.signal: int | None = None
        self._signalled = 0.0
        self._ended: int | None = None
        """Epoch that ended in this step; a step may reach into the next."""

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
        seconds later or more, stops at once. Raises `UserError` when training diverged for good or
        the disk refuses.
        """
        self.log = MetricsLog(self.exp_dir, self.step, self.world.main)
        self.samples = self.make_samples(self.log) if self.make_samples else None
        self.bar = Progress(self.progress, self.world.main)
        start = time.monotonic() - self.elapsed
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._start_watchdog()
        try:
            self.model.train()
            while self.progress < 1:
                began = time.monotonic()
                outcome = self._train_step()
                self.step += 1
                self.interval.add(outcome)
                if outcome.verdict != "good":
                    self._after_skip(outcome)
                self.interval.seconds += time.monotonic() - began
                self._beat("agreeing")
                self.elapsed, stop = self.world.agree(
                    time.monotonic() - start, float(self.signal or 0)
                )
                self._after_step(finished=self.progress >= 1, stop=bool(stop))
                if stop and self.progress < 1:
                    return signal.Signals(int(stop)).name
            return "finished"
        finally:
            if self.watchdog is not None:
                self.watchdog.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.bar.close()
            self.log.close()

    def _start_watchdog(self) -> None:
        minutes = self.config.guard.hang_minutes
        if minutes:
            world = self.world
            self.watchdog = Watchdog(self.exp_dir, world.rank, world.size, minutes)
            self.watchdog.start()

    def _beat(self, where: str) -> None:
        if self.watchdog is not None:
            self.watchdog.beat(self.step, where)

    def _beating(self, where: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._beat(where)
            yield batch

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

    def _train_step(self) -> Outcome:
        """One optimizer step over ``--accum`` micro-batches (fewer at the end of the last
        epoch)."""
        # own random numbers for each step: nothing random has to be saved or restored
        torch.manual_seed(step_seed(self.config.seed, self.world.rank, self.step))
        self.model.progress = self.progress
        factor = self.schedule.factor(self.step, self.epochs, self.progress)
        factor *= self.guard.lr_factor
        self.lr = self.config.optim.base_lr * factor
        self.optimizers.set_factor(factor)
        return self.stepper.run(self._micro_batches())

    def _micro_batches(self) -> Iterator[tuple[Batch, bool]]:
        self._ended = None
        for micro in range(self.config.optim.accum):
            batch = next(self.train)
            if self.train.step == self.train.epoch_steps:
                self._ended = self.train.epoch
            last = micro == self.config.optim.accum - 1 or self._data_is_used_up()
            yield batch, last
            if last:
                return

    def _data_is_used_up(self) -> bool:
        return bool(self.config.num_epochs) and self.epochs >= self.config.num_epochs

    # --------------------------------------------------------------------------- bad steps

    def _after_skip(self, outcome: Outcome) -> None:
        """Keep the batches of a step that was not taken; after too many in a row, roll back."""
        if outcome.verdict == "overflow":  # the loss scale found its place
            return
        g = self.config.guard
        path = save_bad_batch(
            self.exp_dir, outcome.batches, step=self.step - 1, rank=self.world.rank,
            seed=self.config.seed, reason=outcome.verdict, loss=outcome.loss,
            grad_norm=outcome.grad_norm, progress=self.model.progress, keep=g.keep_bad_batches,
        )  # fmt: skip
        self.bar.say(
            f"step {self.step}: {outcome.verdict} (loss {outcome.loss:.4g}, gradient "
            f"{outcome.grad_norm:.4g}), not taken" + (f"; batch in {path}" if path else "")
        )
        if self.guard.must_roll_back:
            self.roll_back(f"{self.guard.in_a_row} steps in a row could not be taken")

    def roll_back(self, why: str) -> None:
        """Weights, moments and averages of the last good checkpoint, with a lower learning rate;
        step and data go on, so that the same batches don't come again.

        The second time in a run best.pt is taken where there is one: latest.pt may have been
        written when it was too late already.

        :raises UserError: no checkpoint, or rolled back often enough.
        """
        latest, best = self.exp_dir / "latest.pt", self.exp_dir / "best.pt"
        path = best if self.guard.rollbacks and best.exists() else latest
        remedy = "lower --base-lr or --clip-grad-norm, or lengthen the warm-up"
        if self.guard.exhausted or not path.exists():
            after = f" after {self.guard.rollbacks} returns to a checkpoint"
            raise UserError(
                f"training diverged at step {self.step}: {why}{after if path.exists() else ''}; "
                + (f"the checkpoints in {self.exp_dir} are good" if path.exists() else
                   "no checkpoint was saved yet")
                + f": {remedy}, and start again; `rvqlm doctor {self.exp_dir}` says more"
            )  # fmt: skip
        step = saving.restore_weights(self, path)
        self.guard.rolled_back()
        self.interval.rollbacks += 1
        self.bar.say(
            f"step {self.step}: {why}; back to the weights of {path} (step {step}) with "
            f"{self.guard.lr_factor:g} of the learning rate; the data goes on"
        )

    # -------------------------------------------------------------------------------- events

    def _after_step(self, finished: bool, stop: bool) -> None:
        """Log, validate, sample and save, in this order, where due: a checkpoint implies its
        log."""
        due = what_is_due(
            self.config, self.step, self.elapsed, self._ended, finished, stop, self.since
        )
        if due.log:
            self._log_interval()
        improved = self._validate() if due.valid and self.valid is not None else False
        if self._ended is not None or finished:
            self._log_epoch(self.train.epoch if self._ended is None else self._ended)
        if due.sample and self.samples is not None:
            self._sample()
        # weights on the way to a rollback are no checkpoint to roll back to
        if (due.save and (finished or stop or not self.guard.in_a_row)) or improved:
            self._save(improved, due.archive)

    def _log_interval(self) -> None:
        """Line of the steps since the last one."""
        meter = self.interval
        if meter.empty:
            return
        meter.reduce(self.world)
        self.total_frames += meter.totals.frames
        values = interval_values(self, meter, self.watch.take())
        self.log.write("train", self.step, self.train.epoch, values)
        self.bar.update(self.progress, self.step, values["loss"], values["frames_per_second"])
        self.epoch_meter.merge(meter)
        self.interval = Meter(self.info.num_codebooks, self.device)

    def _validate(self) -> bool:
        """Loss of the averaged weights on the validation split; whether it is the lowest yet."""
        self._beat("validation")
        began = time.monotonic()
        batches = self._beating("validation", self.valid.epoch_batches())
        if self.config.log.valid_max_batches:
            batches = islice(batches, self.config.log.valid_max_batches)
        arguments = batches, self.info, self.device, self.dtype
        if self.ema is not None:
            with self.ema.swapped():
                totals = evaluate_batches(self.model, *arguments)
        else:
            totals = evaluate_batches(self.model, *arguments)
        totals.reduce(self.world.all_reduce)
        values = totals.metrics(self.info.frame_rate)
        loss = values["loss"]
        self.since["valid"] = self.elapsed
        if loss is None or not isfinite(loss):
            self.roll_back(f"the validation loss is {loss}")
            return False
        self.schedule.observe(loss)
        # averages may look well when the weights below them are spoilt already
        improved = loss < self.best["loss"] and not self.guard.in_a_row
        if improved:
            self.best = {"loss": loss, "step": self.step}
        self.validated = {"step": self.step, "loss": loss}
        values |= {"elapsed": self.elapsed, "seconds": time.monotonic() - began, "best": improved}
        self.log.write("valid", self.step, self.train.epoch, values)
        self.bar.say(valid_line(self.step, values))
        return improved

    def _log_epoch(self, epoch: int) -> None:
        """Line of an epoch, up to the step that ended it."""
        meter = self.epoch_meter
        if not meter.steps:
            return
        values = meter.totals.metrics(self.info.frame_rate)
        valid = self.validated["loss"] if self.validated["step"] == self.step else None
        values |= {"valid_loss": valid, "seconds": meter.seconds, "elapsed": self.elapsed}
        values |= {f"skipped_{k}": n for k, n in meter.skipped.items()}
        self.log.write("epoch", self.step, epoch, values)
        self.bar.say(epoch_line(self.step, epoch, values, self.progress))
        self.epoch_meter = Meter(self.info.num_codebooks, self.device)

    def _sample(self) -> None:
        """Sounds of the averaged weights; a failure costs a line, never the training."""
        self._beat("samples")
        with saving.weights_for_samples(self) as model:
            if self.world.main:
                beat = partial(self._beat, "samples")
                self.samples.write(model, self.step, self.train.epoch, beat)
        self.since["sample"] = self.elapsed
        self.world.barrier()

    # --------------------------------------------------------------------------- checkpoints

    def _save(self, improved: bool, archived: bool) -> None:
        self._beat("saving")
        self.since["save"] = self.elapsed
        self.interval.gather(self.world)
        if self.world.main:
            self.log.sync()
        saving.save(self, improved, archived)
        self.world.barrier()

    def state_dict(self) -> dict:
        """Everything needed to go on; plain values and tensors."""
        return saving.state_of(self)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint file."""
        self.load_state_dict(saving.load(self, path), str(path))

    def load_state_dict(self, state: dict, where: str = "the checkpoint") -> None:
        """Continue from a checkpoint; `UserError` if model, codec, optimizer, seed or data
        differ."""
        saving.restore(self, state, where)
