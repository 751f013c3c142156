#!/usr/bin/env python3
"""``rvqlm trainer``: train a model on the codes of a token directory.

    rvqlm trainer --exp-dir exp/small --manifest-dir data/tokens --max-minutes 7

Run again with the same flags it continues where it stopped, or says that it is done. Under
torchrun every process is a rank. After Ctrl-C (exit status 130) or SIGTERM (143) the run has been
saved and continues likewise.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rvqlm.cli import command_line, parse, peek, run_main
from rvqlm.runtime import tune_malloc


def main(argv: Sequence[str] | None = None) -> int:
    tune_malloc()
    return run_main(_main, argv)


def _main(argv: Sequence[str] | None) -> int:
    from rvqlm.models.factory import model_entry
    from rvqlm.training.config import check, flags_class

    config_class, _ = model_entry(peek(argv, "model-name", "codec-lm"))
    config = parse(
        flags_class(config_class), "rvqlm trainer", "Train a model on the codes of audio.", argv
    )
    check(config)
    return train(config, command_line("trainer", argv))


def train(config, command: str) -> int:
    """Run a training from its flags (`flags_class`); returns the exit status. `command` is what
    run.json records."""
    import torch

    from rvqlm import runtime
    from rvqlm.training.distributed import World

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = runtime.pick_device(config.device)
    dtype = runtime.pick_precision(config.precision, device)
    world = World(device)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    try:
        return _train(config, command, device, dtype, world)
    finally:
        world.close()


def _train(config, command: str, device, dtype, world) -> int:
    from rvqlm.data.index import TokenDataset
    from rvqlm.data.loader import TokenLoader
    from rvqlm.models.factory import build_model
    from rvqlm.runtime import seed_everything
    from rvqlm.training.estimate import describe_plan
    from rvqlm.training.experiment import remove_torn_files, write_config, write_run
    from rvqlm.training.stages import begin_from_previous, enter_stage
    from rvqlm.training.trainer import Trainer

    def say(text: str) -> None:
        if world.main:
            print(text, file=sys.stderr, flush=True)

    levels = config.num_quantizers or None
    train_data = TokenDataset.open(config.manifest_dir, config.train_split, num_codebooks=levels)
    valid_data = TokenDataset.open(config.manifest_dir, config.valid_split, num_codebooks=levels)
    info = train_data.info
    kinds = config.model.conditions
    heard, heard_valid = (
        open_conditions(data, kinds, config.condition_prompt_seconds, config.seed)
        for data in (train_data, valid_data)
    )
    seed_everything(config.seed)
    infos = heard.infos if heard else {}
    model = build_model(config.model_name, config.model, info, infos).to(device)
    ranks = {"rank": world.rank, "world_size": world.size, "pin": device.type == "cuda"}
    loader = TokenLoader(train_data, config.data, config.seed, conditions=heard, **ranks)
    plan = validation_plan(config.data)
    valid = TokenLoader(valid_data, plan, config.seed, conditions=heard_valid, **ranks)
    config = enter_stage(config, model)
    exp_dir = Path(config.exp_dir)
    if config.resume == "no" or (config.resume == "auto" and not (exp_dir / "latest.pt").exists()):
        before = begin_from_previous(model, exp_dir)
        if before is not None:
            say(f"stage {model.stage}: begins with the weights of {before}")
    batches = loader.epoch_steps  # of the first epoch; the others differ by a few
    trainer = Trainer(model, loader, valid, config, info, device, dtype, world)
    if config.dry_run:
        for line in describe_plan(trainer, batches):
            if world.main:
                print(line)
        return 0

    if world.main:
        exp_dir.mkdir(parents=True, exist_ok=True)
        remove_torn_files(exp_dir)
    restored = _resume(trainer, exp_dir, say)
    if trainer.progress >= 1:
        say(
            f"{exp_dir}: training is finished (step {trainer.step}, epoch {trainer.epochs:.2f}, "
            f"{trainer.elapsed / 60:.1f} minutes); raise --num-epochs, --max-steps or "
            "--max-minutes to go on"
        )
        return 0
    if world.main:
        write_config(config)
        record = _record(trainer, batches, train_data, valid_data)
        write_run(exp_dir, record, command)
    if not restored:
        say(
            f"{model.name}: {record_parameters(model):,} parameters on {device}, "
            f"{train_data.hours:.2f} h of codes, {batches} batches an epoch"
        )
        for kind, count in (heard.missing() if heard else {}).items():
            if count:
                say(f"{count} of {len(train_data)} cuts have no {kind}: trained without it")
    outcome = trainer.fit()
    if outcome != "finished":
        say(f"{outcome}: saved {exp_dir / 'latest.pt'} at step {trainer.step}; run again to go on")
        return 128 + signal.Signals[outcome]
    minutes, best = trainer.elapsed / 60, trainer.best
    say(
        f"done: step {trainer.step}, epoch {trainer.epochs:.2f}, {minutes:.1f} minutes; "
        f"best validation loss {best['loss']:.4f} at step {best['step']}"
    )
    return 0


def open_conditions(dataset, kinds, prompt_seconds: float, seed: int):
    """The conditions of a split that a model hears, or None."""
    from rvqlm.data.conditions import ConditionSet

    if not kinds:
        return None
    frames = max(1, round(prompt_seconds * float(dataset.info.frame_rate)))
    return ConditionSet.open(dataset, kinds, prompt_frames=frames, seed=seed)


def validation_plan(plan):
    """The data flags for held-out data: every frame once, long cuts in tiles where training takes
    crops or overlapping windows of them."""
    return dataclasses.replace(
        plan, window_frames=plan.window_frames or plan.crop_frames, hop_frames=0, crop_frames=0
    )


def _resume(trainer, exp_dir: Path, say) -> bool:
    """Load the checkpoint that ``--resume`` means; returns whether there was one."""
    from rvqlm.training.checkpoint import find_checkpoint, load_checkpoint
    from rvqlm.training.experiment import move_aside

    resume = trainer.config.resume
    if resume == "no":
        old = move_aside(exp_dir) if trainer.world.main else None
        if old:
            say(f"--resume no: moved the earlier run to {old}")
        return False
    if resume == "auto":
        path = exp_dir / "latest.pt"
        if not path.exists():
            return False
    else:
        path = find_checkpoint(resume, "latest")
    state = load_checkpoint(path)
    trainer.load_state_dict(state, str(path))
    best = trainer.best
    say(
        f"resumed {path}: step {trainer.step}, epoch {trainer.epochs:.2f}, "
        f"{trainer.elapsed / 60:.1f} minutes"
        + (f", best {best['loss']:.4f} at step {best['step']}" if best["step"] else "")
        + f"; restored weights, {'averages, ' if trainer.ema else ''}"
        f"{trainer.config.optim.optimizer}, schedule, position in the data, log"
    )
    return True


def record_parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def _record(trainer, batches: int, train_data, valid_data) -> dict:
    from rvqlm.runtime import describe_machine

    machine = describe_machine()
    data = {
        "manifest_dir": str(Path(trainer.config.manifest_dir).resolve()),
        "codec": trainer.info.to_dict(),
        "batches_per_epoch": batches,
        **{
            ds.split: {"cuts": len(ds), "frames": int(ds.num_frames), "hours": ds.hours}
            for ds in (train_data, valid_data)
        },
    }
    return {
        "commit": machine["commit"],
        "machine": machine,
        "model": trainer.model.name,
        "parameters": record_parameters(trainer.model),
        "ranks": trainer.world.size,
        "data": data,
    }


if __name__ == "__main__":
    sys.exit(main())
