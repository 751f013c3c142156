"""From flags to a running training: data, model, checkpoint, checks before the first step."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import torch

from rvqlm.batch import Batch, Padded
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.init_from import init_from
from rvqlm.checkpoints.loading import find_checkpoint
from rvqlm.data.conditions import open_conditions
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.models.factory import build_model
from rvqlm.runtime import describe_machine, seed_everything
from rvqlm.training.estimate import describe_plan, optimizer_bytes
from rvqlm.training.experiment import (
    end_run,
    move_aside,
    remove_torn_files,
    write_config,
    write_run,
)
from rvqlm.training.flops import forward_flops, peak_flops
from rvqlm.training.prescan import batch_maker, largest_max_duration, prescan
from rvqlm.training.reporting import Speed
from rvqlm.training.stages import begin_from_previous, enter_stage
from rvqlm.training.trainer import Trainer


class Setup:
    """Everything that a training needs, made in order; `run` trains."""

    def __init__(self, config, device: torch.device, dtype: torch.dtype, world):
        self.device, self.dtype, self.world = device, dtype, world
        levels = config.num_quantizers or None
        folders = [config.manifest_dir, *config.mix_dirs]
        if config.mix_dirs:
            from rvqlm.data.mixed import open_mixed

            self.train_data = open_mixed(folders, config.train_split, num_codebooks=levels)
        else:
            self.train_data = TokenDataset.open(
                config.manifest_dir, config.train_split, num_codebooks=levels
            )
        self.valid_data = TokenDataset.open(
            config.manifest_dir, config.valid_split, num_codebooks=levels
        )
        self.info = self.train_data.info
        self.heard, self.heard_valid = (
            open_conditions(
                data, config.model.conditions, config.condition_prompt_seconds, config.seed
            )
            for data in (self.train_data, self.valid_data)
        )
        seed_everything(config.seed)
        infos = self.heard.infos if self.heard else {}
        self.model = build_model(config.model_name, config.model, self.info, infos).to(device)
        self.config = enter_stage(config, self.model)
        self.exp_dir = Path(self.config.exp_dir)
        self.state_path = self._checkpoint_to_continue()
        self.memory_line, self.compiled = "", None

    def say(self, text: str) -> None:
        if self.world.main:
            print(text, file=sys.stderr, flush=True)

    def run(self, command: str) -> int:
        """Train; the exit status."""
        config = self.config
        if self.state_path is None:
            self._begin()
        if config.data.max_duration == "auto":
            self.config = config = self._with_max_duration()
        trainer = self.trainer = self._make_trainer()
        if config.dry_run:
            for line in describe_plan(trainer, self.loader.epoch_steps):
                if self.world.main:
                    print(line)
            return 0
        if self.world.main:
            self.exp_dir.mkdir(parents=True, exist_ok=True)
            remove_torn_files(self.exp_dir)
        self._resume()
        if trainer.progress >= 1:
            self.say(
                f"{self.exp_dir}: training is finished (step {trainer.step}, epoch "
                f"{trainer.epochs:.2f}, {trainer.elapsed / 60:.1f} minutes); raise --num-epochs, "
                "--max-steps or --max-minutes to go on"
            )
            return 0
        if config.compile:
            from rvqlm.training.compiling import warm_up

            examples = self.compiled.examples(self.loader.worst_batch())
            warm_up(trainer.module, examples, self.dtype, self.say)
        if self.world.main:
            write_config(config)
            write_run(self.exp_dir, self._record(), command)
        if self.state_path is None:
            self._announce()
        outcome = trainer.fit()
        if self.world.main:
            end_run(self.exp_dir, outcome, trainer.step)
        if outcome != "finished":
            self.say(
                f"{outcome}: saved {self.exp_dir / 'latest.pt'} at step {trainer.step}; run again "
                "to go on"
            )
            return 128 + signal.Signals[outcome]
        best = trainer.best
        self.say(
            f"done: step {trainer.step}, epoch {trainer.epochs:.2f}, "
            f"{trainer.elapsed / 60:.1f} minutes; "
            f"best validation loss {best['loss']:.4f} at step {best['step']}"
        )
        return 0

    # -------------------------------------------------------------------------------- parts

    def _checkpoint_to_continue(self) -> Path | None:
        resume, latest = self.config.resume, self.exp_dir / "latest.pt"
        if resume == "no":
            return None
        if resume == "auto":
            return latest if latest.exists() else None
        return find_checkpoint(resume, "latest")

    def _begin(self) -> None:
        """Weights of a run that starts: of the stage before, of --init-from, or random ones."""
        if self.config.resume == "no" and not self.config.dry_run:
            old = move_aside(self.exp_dir) if self.world.main else None
            if old:
                self.say(f"--resume no: moved the earlier run to {old}")
        before = begin_from_previous(self.model, self.exp_dir)
        if before is not None:
            self.say(f"stage {self.model.stage}: begins with the weights of {before}")
        if self.config.init_from is not None:
            path = find_checkpoint(self.config.init_from, "best")
            for line in init_from(self.model, path).lines():
                return line

    def _with_max_duration(self):
        """The config with the number that --max-duration auto stands for: that of the run which
        goes on, else the largest that fits."""
        config = self.config
        if self.state_path is not None:
            state = load_checkpoint(self.state_path, mapped=True, gather=False)
            chosen = state["loader"]["plan"]["max_duration"]
        else:
            # any batch of the data shows what items look like; of these the batches are made
            plan = dataclasses.replace(config.data, max_duration=1e6, max_cuts=1)
            largest = self._loader(self.train_data, self.heard, plan).worst_batch()
            rate = float(self.info.frame_rate)
            chosen = largest_max_duration(
                batch_maker(largest, rate), self.model, self.device, self.dtype,
                optimizer_bytes(self.model, config.optim), frame_rate=rate,
                processes=self._processes(),
            )  # fmt: skip
            chosen = -self.world.agree(-chosen)[0]  # what fits on every rank
            self.say(f"--max-duration auto: {chosen:g}")
        data = dataclasses.replace(config.data, max_duration=chosen)
        return dataclasses.replace(config, data=data)

    def _processes(self) -> int:
        """Ranks that share this machine's memory."""
        return 1 if self.device.type == "cuda" else self.world.local_size

    def _loader(self, data, heard, plan) -> TokenLoader:
        return TokenLoader(
            data, plan, self.config.seed, self.world.rank, self.world.size,
            pin=self.device.type == "cuda", conditions=heard,
        )  # fmt: skip

    def _make_trainer(self) -> Trainer:
        config, device, world = self.config, self.device, self.world
        self.loader = self._loader(self.train_data, self.heard, config.data)
        valid = self._loader(self.valid_data, self.heard_valid, config.data.for_validation())
        if config.guard.memory_check and not config.dry_run:
            self.memory_line = self._check_memory()
        speed = self._speed() if config.log.mfu else None
        if config.compile:
            from rvqlm.training.compiling import compile_model

            self.compiled = compile_model(self.model, self.loader.shapes(), self.say)
        return Trainer(
            self.model, self.loader, valid, config, self.info, device, self.dtype, world,
            make_samples=self._make_samples if config.log.samples else None, speed=speed,
        )  # fmt: skip

    def _speed(self) -> Speed:
        batch = first_item(next(iter(self.loader.epoch_batches()))).to(self.device)
        flops = 3 * forward_flops(self.model, batch) / batch.codes.shape[1]
        return Speed(flops, peak_flops(self.device, self.dtype))

    def _make_samples(self, log):
        from rvqlm.inference.training_samples import SampleWriter

        return SampleWriter(
            self.config.log, self.valid_data, self.config.condition_prompt_seconds, self.exp_dir,
            log, self.config.seed,
        )  # fmt: skip

    def _check_memory(self) -> str:
        config = self.config
        line = prescan(
            self.model, self.loader.worst_batch(), self.device, self.dtype,
            optimizer_bytes(self.model, config.optim), max_duration=config.data.max_duration,
            frame_rate=float(self.info.frame_rate), processes=self._processes(),
        )  # fmt: skip
        return line

    def _resume(self) -> None:
        if self.state_path is None:
            return
        trainer, path = self.trainer, self.state_path
        trainer.resume(path)
        best = trainer.best
        self.say(
            f"resumed {path}: step {trainer.step}, epoch {trainer.epochs:.2f}, "
            f"{trainer.elapsed / 60:.1f} minutes"
            + (f", best {best['loss']:.4f} at step {best['step']}" if best["step"] else "")
            + f"; restored weights, {'averages, ' if trainer.ema else ''}"
            f"{trainer.config.optim.optimizer}, schedule, guards, position in the data, log"
        )

    # ------------------------------------------------------------------------------- records

    def _announce(self) -> None:
        self.say(
            f"{self.model.name}: {count_parameters(self.model):,} parameters on {self.device}, "
            f"{self.train_data.hours:.2f} h of codes, {self.loader.epoch_steps} batches an epoch"
        )
        if self.memory_line:
            self.say(self.memory_line)
        for kind, count in (self.heard.missing() if self.heard else {}).items():
            if count:
                self.say(f"{count} of {len(self.train_data)} cuts have no {kind}: trained without")

    def _record(self) -> dict:
        machine = describe_machine()
        data = {
            "manifest_dir": str(Path(self.config.manifest_dir).resolve()),
            "mix_dirs": [str(Path(p).resolve()) for p in self.config.mix_dirs],
            "codec": self.info.to_dict(),
            "batches_per_epoch": self.loader.epoch_steps,  # of this one; others differ by a few
            **{
                ds.split: {"cuts": len(ds), "frames": int(ds.num_frames), "hours": ds.hours}
                for ds in (self.train_data, self.valid_data)
            },
        }
        return {
            "commit": machine["commit"],
            "machine": machine,
            "model": self.model.name,
            "parameters": count_parameters(self.model),
            "ranks": self.world.size,
            "data": data,
        }


def first_item(batch: Batch) -> Batch:
    """The first item of a batch as a batch."""
    conditions = {kind: Padded(c.values[:1], c.lengths[:1]) for kind, c in batch.conditions.items()}
    columns = ("codes", "lengths", "ends", "index", "begins", "prompt_lengths")
    first = {n: v[:1] for n in columns if (v := getattr(batch, n)) is not None}
    return dataclasses.replace(batch, **first, conditions=conditions)


def count_parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())
