"""From flags to a running training: data, model, checkpoint, checks before the first step; and the
files of an experiment beside its checkpoints and logs.

Stage N of a family that is trained in stages works in EXP/stageN and begins from the best of the
stage before, so that one experiment directory holds the whole model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from math import ceil
from pathlib import Path

import torch

from rvqlm.checkpoints.file import differing_flags, load_checkpoint, told_times
from rvqlm.checkpoints.init_from import init_from
from rvqlm.checkpoints.loading import find_checkpoint
from rvqlm.cli import counted, flatten, span
from rvqlm.condition_info import ConditionInfo
from rvqlm.cores import FasterThreads, fastest
from rvqlm.data.conditions import open_conditions, text_times_paths
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.errors import UserError, reason_of
from rvqlm.files import write_json, write_text
from rvqlm.locks import locked
from rvqlm.models.factory import build_model, model_entry
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.remote.session import named
from rvqlm.runtime import describe_machine, seed_everything
from rvqlm.training.announce import (
    batches_words,
    budget_words,
    epoch_words,
    items_words,
    length_words,
    schedule_words,
)
from rvqlm.training.config import OF_A_START, TrainerConfig
from rvqlm.training.distributed import World
from rvqlm.training.memory import (
    Memory,
    batch_maker,
    describe_plan,
    items_of,
    largest_max_duration,
    optimizer_bytes,
    prescan,
)
from rvqlm.training.meter import Speed, peak_flops, rehearse, training_flops
from rvqlm.training.passes import require_few, why_not_graphed
from rvqlm.training.trainer import Trainer

FLOPS_OF_ITEMS = 8
"""Items whose floating-point operations stand for those of all, at most."""


class Setup:
    """Everything that a training needs, made in order; `run` trains.

    :param make_samples: called with this `Setup` and the `MetricsLog` where samples are asked for;
        returns what makes them (`Trainer`).
    :param code_vectors: called with a `CodecInfo` where --code-vectors asks for them; returns the
        codec's own vectors of the codes, (K, V, D), or raises `UserError`.
    """

    def __init__(
        self,
        config: TrainerConfig,
        device: torch.device,
        dtype: torch.dtype,
        world: World,
        make_samples: Callable,
        code_vectors: Callable,
    ):
        self.config = config
        self.device, self.dtype, self.world = device, dtype, world
        self.make_samples, self.code_vectors = make_samples, code_vectors
        levels = config.num_quantizers or None
        if config.mix_dirs:
            from rvqlm.data.mixed import open_mixed

            folders = [config.manifest_dir, *config.mix_dirs]
            self.train_data = open_mixed(folders, config.train_split, num_codebooks=levels)
        else:
            self.train_data = TokenDataset.open(
                config.manifest_dir, config.train_split, num_codebooks=levels
            )
        self.valid_data = TokenDataset.open(
            config.manifest_dir, config.valid_split, num_codebooks=levels
        )
        self.info = self.train_data.info
        self.config = dataclasses.replace(config, exp_dir=str(stage_dir(config)), tag="")
        self.exp_dir = Path(self.config.exp_dir)
        self.state_path = self._checkpoint_to_resume()
        aligned, self.times_line = self._text_times()
        self.conditions, self.valid_conditions = (
            open_conditions(
                data, config.model.conditions, config.condition_prompt_seconds, config.seed, aligned
            )
            for data in (self.train_data, self.valid_data)
        )
        seed_everything(config.seed)
        infos = self.conditions.infos if self.conditions else {}
        self.model = build_model(config.model_name, config.model, self.info, infos).to(device)
        if config.data.packing and not self.model.packs:
            raise UserError(
                f"--packing {config.data.packing}: {self.model.name} has no rows of several cuts"
            )
        if config.cuda_graphs and (why := why_not_graphed(self.model, device, world.size)):
            raise UserError(f"--cuda-graphs: {why}; give --no-cuda-graphs")
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.memory_line = ""

    def say(self, text: str, problem: bool = False) -> None:
        """A line on the terminal; with --quiet only what is a `problem`."""
        if self.world.main and (problem or not self.config.quiet):
            print(text, file=sys.stderr, flush=True)

    def run(self, command: str) -> int:
        """Train; the exit status."""
        config = self.config
        if self.state_path is None:
            self._begin()
        if config.data.max_duration == "auto":
            self.config = config = self._with_max_duration()
        if config.num_threads == "auto" and not config.dry_run:
            self.config = config = self._with_threads()
        trainer = self.trainer = self._make_trainer()
        if config.dry_run:
            for line in describe_plan(trainer):
                if self.world.main:
                    print(line)
            return 0
        if self.world.main:
            self.exp_dir.mkdir(parents=True, exist_ok=True)
        if self.state_path is not None:
            self._resume(self.state_path)
        self._require_epoch()
        if trainer.progress >= 1:
            self.say(
                f"{self.exp_dir}: training is finished (step {trainer.step}, epoch "
                f"{trainer.epochs:.2f}, {span(trainer.elapsed)}); raise --num-epochs, "
                "--max-steps or --max-minutes to continue"
            )
            return 0
        if config.compile:
            from rvqlm.training.compiling import warm_up

            like = self.loader.worst_batch(in_rows=True)
            warm_up(trainer.module, self.compiled_shapes, like, self.dtype, self.say)
        if self.world.main:
            write_config(config)
            record = write_run(self.exp_dir, self._record(), command)
        self._announce()
        outcome = trainer.fit()
        if self.world.main:
            end_run(self.exp_dir, record, outcome, trainer.step)
        if outcome != "finished":
            self.say(
                f"{outcome}: saved {self.exp_dir / 'latest.pt'} at step {trainer.step}; run again "
                "to continue",
                problem=True,
            )
            return 128 + signal.Signals[outcome]
        best = trainer.best
        self.say(
            f"done: step {trainer.step}, epoch {trainer.epochs:.2f}, {span(trainer.elapsed)}; "
            f"best validation loss {best['loss']:.4f} at step {best['step']}"
        )
        return 0

    # -------------------------------------------------------------------------------- parts

    def _checkpoint_to_resume(self) -> Path | None:
        resume, latest = self.config.resume, self.exp_dir / "latest.pt"
        if resume == "no":
            return None
        if resume == "auto":
            return latest if latest.exists() else None
        return find_checkpoint(resume, "latest")

    def _text_times(self) -> tuple[bool, str]:
        """Whether the model is told when each symbol of a text is said, and a line about it. auto:
        as the run or stage was that this one continues, else where all of the data says it."""
        config = self.config
        if "text" not in config.model.conditions or not model_entry(config.model_name)[1].generates:
            if config.text_times == "yes":
                raise UserError(f"--text-times yes: a {config.model_name} is given no text")
            return False, ""
        if config.text_times != "auto":
            return config.text_times == "yes", ""
        paths = text_times_paths(self.train_data, self.valid_data)
        missing = [path for path in paths if not path.exists()]
        before, stage = self.state_path, getattr(config.model, "train_stage", 0)
        if before is None and stage > 1:
            before = best_of_previous(self.exp_dir, stage)
        if before is not None and before.is_file():
            state = load_checkpoint(before, mapped=True, gather=False)
            if text := state.get("conditions", {}).get("text"):
                aligned = ConditionInfo.from_dict(text).aligned
                line = f"text: by average durations, as in {before}, though rvqlm align was run"
                return aligned, "" if aligned or missing else line
        if 0 < len(missing) < len(paths):
            line = f"text: by average durations, since {missing[0]} is not there; run rvqlm align"
            return False, f"{line} on every split and folder"
        return not missing, ""

    def _begin(self) -> None:
        """Weights of a run that starts: of the stage before, of --init-from, or random ones."""
        if self.config.resume == "no" and not self.config.dry_run:
            old = move_aside(self.exp_dir) if self.world.main else None
            if old:
                self.say(f"--resume no: moved the earlier run to {old}")
        if self.config.code_vectors:
            self._begin_with_vectors()
        before = begin_from_previous(self.model, self.exp_dir)
        if before is not None:
            self.say(f"stage {self.model.stage}: begins with the weights of {before}")
        if self.config.init_from is not None:
            path = find_checkpoint(self.config.init_from, "best")
            for line in init_from(self.model, path).lines():
                self.say(line)

    def _begin_with_vectors(self) -> None:
        """Embeddings of codes begin as the codec's own vectors, where the codec has any."""
        try:
            vectors = self.code_vectors(self.info)
        except UserError as e:
            self.say(f"--code-vectors: {e}; embeddings begin at random", problem=True)
            return
        for module in self.model.modules():
            if isinstance(module, SumEmbedding):
                module.begin_with(vectors)

    def _with_max_duration(self):
        """The config with the number that --max-duration auto stands for: that of the run which is
        resumed, else the largest that fits."""
        config = self.config
        if self.state_path is not None:
            state = load_checkpoint(self.state_path, mapped=True, gather=False)
            chosen = state["loader"]["plan"]["max_duration"]
        else:
            # any batch of the data shows what items look like; of these the batches are made
            rate, plan = float(self.info.frame_rate), config.data
            if plan.packing:  # a row is an item there
                plan = dataclasses.replace(plan, max_duration=ceil(plan.packing / rate))
            else:
                plan = dataclasses.replace(plan, max_duration=1e6, max_cuts=1)
            largest = self._loader(self.train_data, self.conditions, plan).worst_batch()
            chosen = largest_max_duration(
                self._memory(), batch_maker(largest, rate), frame_rate=rate
            )
            chosen = -self.world.agree(-chosen)[0]  # what fits on every rank
            self.say(f"--max-duration auto: {chosen:g}")
        data = dataclasses.replace(config.data, max_duration=chosen)
        return dataclasses.replace(config, data=data)

    def _with_threads(self):
        """The config with the number that --num-threads auto stands for: that of the run which is
        resumed, else the faster one. Given minutes alone it is left to `FasterThreads`; so it is
        with several ranks, which wait for each other, and on a GPU to torch."""
        config, number = self.config, "auto"
        if self.device.type != "cpu" or self.world.size > 1 or self._by_the_clock:
            return config
        if self.state_path is not None:
            state = load_checkpoint(self.state_path, mapped=True, gather=False)
            number = state["config"].get("num-threads", "auto")
        if number == "auto":
            batch = next(
                self._loader(self.train_data, self.conditions, config.data).epoch_batches()
            )
            items = items_of(batch, torch.arange(min(FLOPS_OF_ITEMS, len(batch.lengths))))
            number = fastest(lambda: rehearse(self.model, items, self.dtype))
            self.say(f"--num-threads auto: {number}, of {torch.get_num_threads()}")
        torch.set_num_threads(number or torch.get_num_threads())
        return dataclasses.replace(config, num_threads=number)

    @property
    def _by_the_clock(self) -> bool:
        """Whether minutes alone are the budget, so that no two runs are the same."""
        return not (self.config.max_steps or self.config.num_epochs)

    def _memory(self) -> Memory:
        sharing = 1 if self.device.type == "cuda" else self.world.local_size
        states = optimizer_bytes(self.model, self.config.optim)
        held = self.config.optim.accum > 1 or self.world.size > 1
        return Memory(self.model, self.device, self.dtype, states, sharing, gradients=held)

    def _loader(self, data, conditions, plan) -> TokenLoader:
        return TokenLoader(
            data, plan, self.config.seed, self.world.rank, self.world.size,
            pin=self.device.type == "cuda", conditions=conditions,
        )  # fmt: skip

    def _make_trainer(self) -> Trainer:
        config, device, world = self.config, self.device, self.world
        self.loader = self._loader(self.train_data, self.conditions, config.data)
        valid = self._loader(self.valid_data, self.valid_conditions, config.data.for_validation())
        if config.guard.memory_check and not config.dry_run:
            self.memory_line = prescan(
                self._memory(), self.loader.worst_batch(),
                max_duration=config.data.max_duration, frame_rate=float(self.info.frame_rate),
            )  # fmt: skip
        if config.cuda_graphs:
            require_few(self.loader.shapes())
        speed = self._speed() if config.log.mfu else None
        if config.compile:
            from rvqlm.training.compiling import compile_model

            self.compiled_shapes = compile_model(
                self.model, self.loader.shapes(), self.say, in_rows=config.data.packing > 0
            )
        make_samples = partial(self.make_samples, self) if config.log.samples else None
        again = config.num_threads == "auto" and device.type == "cpu" and world.size == 1
        return Trainer(
            self.model, self.loader, valid, config, self.info, device, self.dtype, world,
            make_samples=make_samples, speed=speed, threads=FasterThreads() if again else None,
        )  # fmt: skip

    def _speed(self) -> Speed:
        """Counted on some items, one at a time, which takes less memory than a step: how much a
        model computes of an item depends on its length and may be random."""
        peak = peak_flops(self.device, self.dtype)
        if peak is None:
            return Speed()
        batch = next(iter(self.loader.epoch_batches()))
        number, frames = min(FLOPS_OF_ITEMS, len(batch.lengths)), batch.codes.shape[1]
        items = (items_of(batch, torch.tensor([n])).to(self.device) for n in range(number))
        flops = sum(training_flops(self.model, item, self.dtype) for item in items)
        computed = number * frames if batch.rows is None else int(batch.lengths[:number].sum())
        return Speed(flops / computed, peak)

    def _resume(self, path: Path) -> None:
        trainer = self.trainer
        trainer.resume(path)
        best = trainer.best
        self.say(
            f"resumed {path}: step {trainer.step}, epoch {trainer.epochs:.2f}, "
            f"{span(trainer.elapsed)}"
            + (f", best {best['loss']:.4f} at step {best['step']}" if best["step"] else "")
            + f"; restored weights, {'averages, ' if trainer.ema else ''}"
            f"{trainer.config.optim.optimizer}, schedule, guards, position in the data, log"
        )

    def _require_epoch(self) -> None:
        """`UserError` where training goes on with another epoch than --start-epoch."""
        wanted, now = self.config.start_epoch, int(self.trainer.epochs) + 1
        good = {0, now}
        if self.state_path is None and self.model.stage > 1:
            path = best_of_previous(self.exp_dir, self.model.stage)
            last = load_checkpoint(path, mapped=True, gather=False)["epoch"] + 1
            good |= {last, last + 1}  # the epoch of its best weights may have been at its end
        if wanted not in good:
            raise UserError(
                f"--start-epoch {wanted}: {self.state_path or self.exp_dir} "
                f"{'goes on' if self.state_path else 'begins'} with epoch {now}; leave the flag "
                "out, or give --resume with the checkpoint that is meant"
            )

    # ------------------------------------------------------------------------------- records

    def _announce(self) -> None:
        config, valid = self.config, self.trainer.valid
        kind = str(self.dtype).removeprefix("torch.")
        self.say(
            f"{self.model.name}: {self.parameters:,} parameters on {self.device} in {kind}, "
            f"{counted(self.world.size, 'rank')}"
        )
        words = epoch_words(self.loader, config)
        self.say(f"train: {length_words(self.train_data)}; {words}")
        items = items_words(valid)
        if most := config.log.valid_max_batches:
            items += f", the first {batches_words(most)} of them used"
        self.say(f"valid: {length_words(self.valid_data)}; {items}")
        steps = -(-self.loader.epoch_steps // config.optim.accum)
        self.say(f"{schedule_words(config)}; {budget_words(config, steps)}")
        if self.memory_line:
            self.say(self.memory_line)
        for kind, count in (self.conditions.missing() if self.conditions else {}).items():
            if count:
                self.say(f"{count:,} of {counted(len(self.train_data), 'cut')} without {kind}")
        if self.conditions and any(info.aligned for info in self.conditions.infos.values()):
            lost = self.conditions.without_times()
            also = f", but {lost:,} of {counted(len(self.train_data), 'cut')} by average durations"
            self.say(f"text: each symbol when rvqlm align says{also * (lost > 0)}")
        if self.times_line:
            self.say(self.times_line)

    def _record(self) -> dict:
        machine = describe_machine()
        data = {
            "manifest_dir": named(str(Path(self.config.manifest_dir).resolve())),
            "mix_dirs": [named(str(Path(p).resolve())) for p in self.config.mix_dirs],
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
            "parameters": self.parameters,
            "ranks": self.world.size,
            "data": data,
        }


# ---------------------------------------------------------------------------------------- stages


def stage_dir(config: TrainerConfig) -> Path:
    """Where the training of these flags works: --exp-dir, or its folder of the model's stage."""
    exp_dir, stage = Path(config.exp_dir, config.tag), getattr(config.model, "train_stage", 0)
    if not stage or exp_dir.name == f"stage{stage}":  # as EXP/stageN/config.yaml says it
        return exp_dir
    return exp_dir / f"stage{stage}"


def lock_folder(config: TrainerConfig, world: World, stack: contextlib.ExitStack) -> bool:
    """Take the folder of the training for all ranks until `stack` is closed; whether another
    training was waited for. The main rank holds the lock, a refusal is raised on all."""

    def lock() -> bool:
        hint = "" if config.save.lock_minutes else ", or give --lock-minutes to wait"
        wait = 60 * config.save.lock_minutes
        lock = locked(stage_dir(config), "rvqlm train", wait, make=True, hint=hint)
        return stack.enter_context(lock) if world.main else False

    waited = bool(world.agree(world.together(lock))[0])
    world.share(stage_dir(config))
    return waited


def best_of_previous(exp_dir: Path, stage: int) -> Path:
    """What the stage works on, whose folder is `exp_dir`."""
    return exp_dir.parent / f"stage{stage - 1}" / "best.pt"


@torch.no_grad()
def begin_from_previous(model, exp_dir: Path) -> Path | None:
    """Load the averaged weights of the previous stage's best checkpoint into the model; its path,
    or None in the first stage.

    :param exp_dir: of this stage.
    :raises UserError: no such checkpoint, or one of another shape.
    """
    if model.stage < 2:
        return None
    path = best_of_previous(exp_dir, model.stage)
    if not path.exists():
        raise UserError(
            f"--train-stage {model.stage} begins from {path}, which is not there: train with "
            f"--train-stage {model.stage - 1} and the same --exp-dir first, or both at once with "
            "--train-stage 0"
        )
    state = load_checkpoint(path)
    differing = differing_flags(model.config, state["model_config"], but=("train_stage",))
    told = told_times({k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()})
    if told != (now := told_times(model.conditions)):
        differing.append(f"--text-times was {told}, is {now}")
    if differing or state["model_name"] != model.name:
        raise UserError(
            f"{path} is of another model ({state['model_name']}: {'; '.join(differing)}); give the "
            "flags of the stage before"
        )
    model.load_state_dict(state["ema"] if state["ema"] is not None else state["model"])
    return path


# -------------------------------------------------------------------- files of an experiment


_OF_A_RUN = (
    *("latest.pt", "best.pt", "metrics.jsonl", "tensorboard", "run.json", "config.yaml"),
    *("samples", "eval_*.json", "recognition_*.json", "archive", "average.pt", "*.dcp"),
    *("bad_batches", "ranks", "hang-rank-*.txt"),
)


def write_config(config: TrainerConfig) -> None:
    """EXP/config.yaml: every flag but those of `OF_A_START`, to be used as ``--config``."""
    import yaml

    flags = {k: v for k, v in flatten(config).items() if k not in OF_A_START}
    write_text(Path(config.exp_dir) / "config.yaml", yaml.safe_dump(flags, sort_keys=False))


def write_run(exp_dir: str | Path, record: dict, command: str) -> dict:
    """EXP/run.json: `record` of this start, and the commands and times of all starts so far.
    Returns what it holds, for `end_run`."""
    path = Path(exp_dir) / "run.json"
    before: dict = {}
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):  # begun anew
        found = json.loads(path.read_text())
        before = {name: list(found.get(name, [])) for name in ("commands", "started", "ended")}
    history = {name: before.get(name, []) for name in ("commands", "started", "ended")}
    history["commands"].append(command)
    history["started"].append(_now())
    write_json(path, record := {**history, **record})
    return record


def end_run(exp_dir: str | Path, record: dict, outcome: str, step: int) -> None:
    """Note in EXP/run.json how this start ended; one that was killed leaves none. `record` is all
    else that stands there, whatever became of the file since."""
    # starts that were killed stand as such, so that the lists stay side by side
    killed = [{"outcome": "killed"}] * (len(record["started"]) - 1 - len(record["ended"]))
    this = {"outcome": outcome, "step": step, "time": _now()}
    path = Path(exp_dir) / "run.json"
    try:
        write_json(path, record | {"ended": [*record["ended"], *killed, this]})
    except OSError as e:  # the training itself is saved
        print(f"{path}: {reason_of(e)}; how this start ended is not noted", file=sys.stderr)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def move_aside(exp_dir: str | Path) -> Path | None:
    """Move the files of an earlier run to EXP/previous-N; None where there are none."""
    exp_dir = Path(exp_dir)
    found = [p for pattern in _OF_A_RUN for p in sorted(exp_dir.glob(pattern))]
    if not found:
        return None
    names = (exp_dir / f"previous-{number}" for number in itertools.count(1))
    target = next(path for path in names if not path.exists())
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target
