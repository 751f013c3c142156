"""`Trainer`: the loop for every model, `fit`; one step of it, `train_step`; what follows a step,
`_after_step`.

It knows a model only as something that takes a `Batch` and returns an `LMOutput` of sums, and a
loader as an endless iterator that can tell and restore its position. The gradient is the sum over
micro-batches and ranks divided by the sum of their tokens, so accumulation and data parallelism
equal one large batch exactly. Given steps or epochs as the budget, a run on a CPU is reproduced bit
for bit after any interruption: what is random depends on (seed, rank, step) alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch
from rvqlm.checkpoints.archives import archive, archives, step_of
from rvqlm.checkpoints.file import FORMAT, require_same_run
from rvqlm.checkpoints.sharded import load_sharded, save_sharded
from rvqlm.cli import flatten
from rvqlm.codec_info import CodecInfo
from rvqlm.cores import FasterThreads, OtherCores
from rvqlm.metrics.losses import Totals, evaluate_batches
from rvqlm.models.factory import model_identity
from rvqlm.runtime import step_seed
from rvqlm.training.bad_batch import BadBatch, save_bad_batch
from rvqlm.training.config import TrainerConfig, what_is_due
from rvqlm.training.distributed import World
from rvqlm.training.ema import EMA
from rvqlm.training.guards import LossGuard, LossScale
from rvqlm.training.level_weights import LevelWeights
from rvqlm.training.logger import MetricsLog, Progress, epoch_line, valid_line
from rvqlm.training.meter import Meter, Outcome, Speed, Stopwatch, memory_mb
from rvqlm.training.optim import build_optimizer
from rvqlm.training.passes import GraphedPasses, Passes
from rvqlm.training.schedule import Budget, Schedule
from rvqlm.training.watchdog import StopSignals, Watchdog
from rvqlm.version import __version__


class Trainer:
    """Trains `model` on the batches of `train` as `config` says.

    Parameters
    ----------
    model: `rvqlm.models.base.TokenModel` or anything alike, on `device`.
    train: iterator of `Batch` with ``epoch``, ``step``, ``epoch_steps``, ``state_dict()`` and
        ``load_state_dict()``.
    valid: has ``epoch_batches()``, the same batches every time; None: no validation, no best.pt.
    make_samples: called with the `MetricsLog`; returns what has ``write(model, step, epoch, beat)``
        to make samples, where ``beat`` is to be called now and then. None: no samples.
    speed: what the model's figures are compared with, for MFU.
    threads: chooses their number as steps go by; None: it stays.
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
        threads: FasterThreads | None = None,
    ):
        self.model, self.train, self.valid = model, train, valid
        self.config, self.info = config, info
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.world = world or World()
        self.exp_dir = Path(config.exp_dir)
        self.make_samples, self.speed = make_samples, speed or Speed()
        self.threads = threads
        self.others = OtherCores()
        self.module = self.world.wrap(model, self.dtype)
        """What is called in training: the model, or what `World` put around it."""
        o = config.optim
        self.optimizers = build_optimizer(model, o)
        self.ema = EMA(model, o.ema_decay, o.ema_warmup) if o.ema_decay else None
        self.averaged = nullcontext if self.ema is None else self.ema.swapped
        """Makes a context in which the model has the averaged weights, where there are any."""
        self.schedule = Schedule(o)
        self.budget = Budget(config.num_epochs, config.max_steps, config.max_minutes)
        self.guard = LossGuard(config.guard)
        self.scale = LossScale(dtype)
        self.level_weights = LevelWeights(config.loss, info.num_codebooks)
        self.watch = Stopwatch(self.device)
        of_passes = (self.module, self.optimizers, self.device, self.dtype)
        of_passes += (config.loss.label_smoothing, self.scale, self.watch)
        graphed = partial(GraphedPasses, quiet=config.quiet)
        self.passes = (graphed if config.cuda_graphs else Passes)(*of_passes)
        self.step = 0
        self.total_frames = 0
        self.elapsed = 0.0
        self.lr = 0.0
        self.best: dict = {"loss": float("inf"), "step": 0}
        self.validated: dict = {"step": -1, "loss": None}
        self.since = {"valid": 0.0, "sample": 0.0, "save": 0.0}
        """Seconds of training at which each was done last."""
        self.interval = Meter(info.num_codebooks, self.device)
        self.epoch_meter = Meter(info.num_codebooks, self.device)
        self.watchdog = Watchdog(
            self.exp_dir, self.world.rank, self.world.size, config.guard.hang_minutes
        )
        self.stop = StopSignals(loud=self.world.main)
        self._ended: int | None = None
        """Epoch that ended in this step; a step may reach into the next."""

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
        with self._running():
            start = time.monotonic() - self.elapsed
            while self.progress < 1:
                began = time.monotonic()
                outcome = self.train_step()
                self.step += 1
                self.interval.add(outcome)
                if outcome.verdict not in ("good", "overflow"):  # the loss scale finds its place
                    self._after_skip(outcome)
                seconds = time.monotonic() - began
                self.interval.seconds += seconds
                if self.threads is not None:
                    self.threads.took(seconds, outcome.totals.cells)
                self._beat("agreeing")
                self.elapsed, stop = self.world.agree(
                    time.monotonic() - start, float(self.stop.number or 0)
                )
                self._after_step(finished=self.progress >= 1, stop=bool(stop))
                if stop and self.progress < 1:
                    return signal.Signals(int(stop)).name
            return "finished"

    def train_step(self) -> Outcome:
        """One optimizer step over ``--accum`` micro-batches (fewer at the end of the last
        epoch)."""
        # own random numbers for each step: nothing random has to be saved or restored
        torch.manual_seed(step_seed(self.config.seed, self.world.rank, self.step))
        self.model.progress = self.progress
        self.model.epoch = self.level_weights.epoch = int(self.epochs)
        factor = self.schedule.factor(self.step, self.epochs, self.progress)
        factor *= self.guard.lr_factor
        self.lr = self.config.optim.base_lr * factor
        self.optimizers.set_factor(factor)
        self.passes.begin()
        totals = Totals(self.info.num_codebooks, self.device)
        # loss and tokens of the step: float64, where counts above 2^24 and sums of ranks are exact
        minimised = torch.zeros(2, dtype=totals.sums["nats"].dtype, device=self.device)
        batches: list[Batch] = []
        later: list[Callable] = []
        self._ended, last, epochs = None, False, self.config.num_epochs
        while not last:
            self._beat("data")
            with self.watch("data"):
                batch = self.passes.sized(next(self.train))
                if self.train.step == self.train.epoch_steps:
                    self._ended = self.train.epoch
                batches.append(batch)
                used_up = bool(epochs) and self.epochs >= epochs
                last = used_up or len(batches) == self.config.optim.accum
                frames, cells = batch.num_frames, batch.cells
                batch = batch.to(self.device)
            self._beat("forward and backward")
            with self.world.no_sync(self.module, skip=not last):
                out = self.passes(batch, self.level_weights.draw(self.device))
            minimised += torch.stack([out.loss, out.normalizer.detach()]).to(minimised)
            totals.add(out, frames, cells)
            if out.later is not None:
                later.append(out.later)
        self._beat("optimizer step")
        with self.watch("step"):
            return self._update(minimised, totals, batches, later)

    @torch.no_grad()
    def _update(
        self, minimised: Tensor, totals: Totals, batches: list[Batch], later: list[Callable]
    ) -> Outcome:
        """Judge the summed gradients; scale, clip, step and average if they are good.

        The verdict comes from sums over all ranks, so all of them decide alike, and reaches Python
        in one transfer: the only point of a step where a GPU is waited for
        (``tools/bench/gpu.py --only waits``).

        :param minimised: (2,) loss and tokens of this rank.
        :param later: sums that are known then (`LMOutput.later`).
        """
        K, clip = self.info.num_codebooks, self.config.optim.clip_grad_norm
        sums = self.world.all_reduce(torch.cat([minimised, *totals.sums["nats"]]))
        grads = [p.grad for p in self.optimizers.params if p.grad is not None]
        norm = self.world.grad_norm(grads)
        loss, tokens, *levels, norm = torch.cat([sums, norm.to(sums).view(1)]).tolist()
        for known in later:
            totals.add_sums(known())
        tokens = max(tokens, 1.0)  # a step may score nothing: no text, a level that was not drawn
        # ranks left their mean of sums over tokens; what is wanted is the mean over tokens
        factor = self.world.size / (tokens * self.scale.value)
        loss, norm = loss / tokens, norm * factor
        verdict = "overflow" if self.scale.overflowed(loss, norm) else self.guard.judge(loss, norm)
        if verdict == "good":
            self.level_weights.observe(levels[:K], levels[K:])
            if clip:
                factor *= min(1.0, clip / (norm + 1e-6))
            self.optimizers.step(factor, self.ema)
        return Outcome(verdict, loss, norm, totals, batches)

    def _after_step(self, finished: bool, stop: bool) -> None:
        """Log, validate, sample and save, in this order, where due: a checkpoint implies its
        log."""
        due = what_is_due(
            self.config, self.step, self.elapsed, self._ended, finished, stop, self.since
        )
        if "log" in due:
            self._log_interval()
        improved = self._validate() if "valid" in due and self.valid is not None else False
        if self._ended is not None or finished:
            self._log_epoch(self.train.epoch if self._ended is None else self._ended)
        if "sample" in due and self.samples is not None:
            self._sample()
        # weights on the way to a rollback are no checkpoint to roll back to
        if ("save" in due and (finished or stop or not self.guard.in_a_row)) or improved:
            self._save(improved, "archive" in due)

    def _after_skip(self, outcome: Outcome) -> None:
        """Keep the batches of a step that was not taken; after too many in a row, roll back."""
        bad = BadBatch(
            self.step - 1, self.world.rank, self.config.seed, outcome.verdict, outcome.loss,
            outcome.grad_norm, self.model.progress, outcome.batches, self.model.epoch,
        )  # fmt: skip
        path = save_bad_batch(self.exp_dir, bad, self.config.guard.keep_bad_batches)
        self.bar.warn(
            f"step {self.step}: {outcome.verdict} (loss {outcome.loss:.4g}, gradient "
            f"{outcome.grad_norm:.4g}), not taken" + (f"; batch in {path}" if path else "")
        )
        if self.guard.must_roll_back:
            self.roll_back(f"{self.guard.in_a_row} steps in a row could not be taken")

    def roll_back(self, why: str) -> None:
        """Weights, moments and averages of the last good checkpoint, with a lower learning rate;
        step and data continue, so that the same batches don't come again.

        :raises UserError: no checkpoint, or rolled back often enough.
        """
        self.world.share(self.exp_dir)
        path = self.guard.rollback_target(self.exp_dir, self.step, why)
        state = load_sharded(path, self.state_dict(), self.world)
        self._load_weights(state)
        self.optimizers.zero_grad()
        self.guard.rolled_back()
        self.interval.rollbacks += 1
        self.bar.warn(
            f"step {self.step}: {why}; back to the weights of {path} (step {state['step']}) with "
            f"{self.guard.lr_factor:g} of the learning rate; the data continues"
        )

    # -------------------------------------------------------------------- log, validation, samples

    def _log_interval(self) -> None:
        """Line of the steps since the last one."""
        meter = self.interval
        if meter.empty:
            return
        meter.totals.reduce(self.world.all_reduce)
        self.total_frames += meter.totals.frames
        seconds = max(meter.seconds, 1e-9)
        values = meter.values(self.info.frame_rate) | {
            "lr": self.lr,
            "grad_norm": meter.grad_norm / meter.steps if meter.steps else None,
            "rollbacks": meter.rollbacks,
            **({"loss_scale": self.scale.value} if self.scale.enabled else {}),
            "total_frames": self.total_frames,
            "frames_per_second": meter.totals.frames / seconds,
            "mfu": self.speed.mfu(meter.totals.cells / seconds, self.world.size),
            "elapsed": self.elapsed,
            "memory_mb": memory_mb(self.device),
            **self._cores(),
            **{f"time_{part}": spent / seconds for part, spent in self.watch.take().items()},
        }
        self.log.write("train", self.step, self.train.epoch, values)
        speed = values["frames_per_second"]
        self.bar.update(self.progress, self.step, values["loss"], self.lr, speed)
        self.epoch_meter.merge(meter)
        self.interval = Meter(self.info.num_codebooks, self.device)

    def _cores(self) -> dict:
        """Entries of a log line: threads now, and cores that other processes used meanwhile."""
        if self.device.type != "cpu" or self.world.size > 1:  # other ranks are no strangers
            return {}
        others = self.others.take()
        known = {} if others is None else {"other_cores": others}
        return {"threads": torch.get_num_threads(), **known}

    def _log_epoch(self, epoch: int) -> None:
        """Line of an epoch, up to the step that ended it."""
        meter = self.epoch_meter
        if not meter.steps:
            return
        valid = self.validated["loss"] if self.validated["step"] == self.step else None
        values = meter.values(self.info.frame_rate)
        values |= {"valid_loss": valid, "seconds": meter.seconds, "elapsed": self.elapsed}
        self.log.write("epoch", self.step, epoch, values)
        line = epoch_line(self.step, epoch, values, self.progress, self.lr, meter.steps)
        self.bar.say(line)
        self.epoch_meter = Meter(self.info.num_codebooks, self.device)

    def _validate(self) -> bool:
        """Loss of the averaged weights on the validation split; whether they are the best yet."""
        self._beat("validation")
        began = time.monotonic()
        most = self.config.log.valid_max_batches or None
        batches = self._beating("validation", islice(self.valid.epoch_batches(), most))
        with self.averaged():
            totals = evaluate_batches(self.model, batches, self.info, self.device, self.dtype)
        totals.reduce(self.world.all_reduce)
        values = totals.metrics(self.info.frame_rate)
        loss = values["loss"]
        self.since["valid"] = self.elapsed
        if loss is None or not isfinite(loss):
            self.roll_back(f"the validation loss is {loss}")
            return False
        self.schedule.observe(loss)
        # averages may look well when the weights below them have diverged already
        name, unknown = self.model.judged_by, float("inf")
        found, best = ((of.get(name, unknown), of["loss"]) for of in (values, self.best))
        improved = found < best and not self.guard.in_a_row
        if improved:
            self.best = {"loss": loss, name: found[0], "step": self.step}
        self.validated = {"step": self.step, "loss": loss}
        values |= {"elapsed": self.elapsed, "seconds": time.monotonic() - began, "best": improved}
        self.log.write("valid", self.step, self.train.epoch, values)
        self.bar.say(valid_line(self.step, values))
        return improved

    def _sample(self) -> None:
        """Samples of the averaged weights; a failure costs a line, never the training."""
        self._beat("samples")
        with self.averaged(), self.world.whole(self.model) as model:  # all ranks enter
            if self.world.main:
                beat = partial(self._beat, "samples")
                self.samples.write(model, self.step, self.train.epoch, beat)
        self.since["sample"] = self.elapsed
        self.world.barrier()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Opens the log and the progress bar, watches for signals and hangs."""
        self.log = MetricsLog(self.exp_dir, self.step, self.world.main)
        self.samples = self.make_samples(self.log) if self.make_samples else None
        self.bar = Progress(self.progress, self.world.main, self.config.quiet)
        self.watchdog.start()
        try:
            with self.stop:
                self.model.train()
                yield
        finally:
            self.watchdog.stop()
            self.bar.close()
            self.log.close()

    def _beat(self, where: str) -> None:
        self.watchdog.beat(self.step, where)

    def _beating(self, where: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._beat(where)
            yield batch

    # --------------------------------------------------------------------------- checkpoints

    def _save(self, improved: bool, archived: bool) -> None:
        """Write latest.pt, with `improved` best.pt of the same content, and archives as the flags
        say. All ranks call it."""
        self._beat("saving")
        self.since["save"] = self.elapsed
        self.interval.gather(self.world)
        if self.world.main:
            self.log.sync()
        latest, best = self.exp_dir / "latest.pt", self.exp_dir / "best.pt"
        path, also = (best, latest) if improved else (latest, None)
        wanted = {"latest": archived, "best": improved and self.config.save.archive_best}
        archives = [name for name, now in wanted.items() if now]
        save_sharded({**self.state_dict(), "archives": archives}, path, self.world, also=also)
        self._archive(archives)

    def _archive(self, names: list[str]) -> None:
        """Archive these checkpoints, ``latest`` and ``best``, of this step. All ranks call it."""

        def keep() -> None:
            for name in names if self.world.main else ():
                path = self.exp_dir / f"{name}.pt"
                archive(self.exp_dir, path, self.step, self.config.save.keep_archived)

        self.world.together(keep)

    def state_dict(self) -> dict:
        """Everything needed to continue; plain values and tensors."""
        return {
            "format": FORMAT,
            "rvqlm_version": __version__,
            **model_identity(self.model),
            "config": flatten(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(self.model) if self.ema is not None else None,
            "ema_updates": self.ema.updates if self.ema is not None else 0,
            "optimizer": self.optimizers.state_dict(),
            "schedule": {"progress": self.progress, "lr": self.lr, **self.schedule.state_dict()},
            "stepper": {
                "guard": self.guard.state_dict(),
                "level_weights": self.level_weights.state_dict(),
                "loss_scale": self.scale.state_dict(),
            },
            "loader": self.train.state_dict(),
            "rng": {"seed": self.config.seed},
            "step": self.step,
            "epoch": self.train.epoch,
            "total_frames": self.total_frames,
            "elapsed": self.elapsed,
            "since": dict(self.since),
            "best": self.best,
            "validated": self.validated,
            "interval": self.interval.state_dict(),
            "epoch_meter": self.epoch_meter.state_dict(),
        }

    def load_state_dict(self, state: dict, where: str = "the checkpoint") -> None:
        """Continue from a checkpoint; `UserError` if model, codec, optimizer, seed or data
        differ."""
        require_same_run(state, where, self.model, self.info, self.config)
        self._load_weights(state)
        self.schedule.load_state_dict(state["schedule"])
        self.guard.load_state_dict(state["stepper"]["guard"])
        self.level_weights.load_state_dict(state["stepper"]["level_weights"])
        self.scale.load_state_dict(state["stepper"]["loss_scale"])
        self.train.load_state_dict(state["loader"])
        self.step, self.total_frames = state["step"], state["total_frames"]
        self.elapsed, self.since = state["elapsed"], dict(state["since"])
        self.best, self.validated = dict(state["best"]), dict(state["validated"])
        # the sums are with the main rank; what all ranks know alike is with all
        self.interval.load_state_dict(state["interval"], sums=self.world.main)
        self.epoch_meter.load_state_dict(state["epoch_meter"])

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint file. All ranks call it."""
        state = load_sharded(path, self.state_dict(), self.world)
        self.load_state_dict(state, str(path))
        if path == self.exp_dir / "latest.pt":  # a kill may have come before its archives
            kinds = {"latest": "step", "best": "best"}
            made = {n: {step_of(p) for p in archives(self.exp_dir, k)} for n, k in kinds.items()}
            names = state.get("archives", ())
            self._archive([name for name in names if self.step not in made[name]])

    def _load_weights(self, state: dict) -> None:
        """Weights, moments and averages."""
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"], state["ema_updates"])
