#!/usr/bin/env python3
"""``rvqlm train`` or ``rvqlm trainer``: train a model on the codes of a token directory.

    rvqlm train --exp-dir exp/small --manifest-dir data/tokens --max-minutes 7

Run again with the same flags it continues where it stopped, or says that it is done. Under
torchrun and srun every process is a rank. After Ctrl-C (exit status 130) or SIGTERM (143) the run
has been saved and continues likewise.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rvqlm.cli import command_line, parse, peek, run_main
from rvqlm.remote.session import localize
from rvqlm.runtime import tune_malloc


def main(argv: Sequence[str] | None = None) -> int:
    faulthandler.enable(2)  # what a library breaks leaves a word
    tune_malloc()
    return run_main(_main, argv)


def _main(argv: Sequence[str] | None) -> int:
    from rvqlm.training.config import check

    def read():
        config = read_flags(argv, flags_of_the_run(argv))
        check(config)
        return config

    return train(read, command_line("trainer", argv))


def read_flags(argv: Sequence[str] | None, before: dict | None = None):
    """`flags_class` of the chosen family from the command line, its ``--config`` and, beneath them,
    the flags `before` of the run to resume and those of ``--size``."""
    from rvqlm.models.factory import model_entry
    from rvqlm.training.config import flags_class
    from rvqlm.training.sizes import with_size

    before = before or {}
    name = peek(argv, "model-name", str(before.get("model-name", "codec-lm")))
    config_class, _ = model_entry(name)
    return parse(
        flags_class(config_class),
        "rvqlm train",
        "Train a model on the codes of audio.",
        argv,
        beneath=with_size(argv, before),
    )


def flags_of_the_run(argv: Sequence[str] | None) -> dict:
    """Flags of the training that this command continues, or nothing: they hold where the command
    says nothing else."""
    from rvqlm.checkpoints.file import load_checkpoint
    from rvqlm.training.config import OF_A_START

    exp_dir, resume = (localize(peek(argv, *f)) for f in (("exp-dir", ""), ("resume", "auto")))
    if not exp_dir or resume == "no":
        return {}
    stage = peek(argv, "train-stage", "0")
    of_stage = Path(
        exp_dir, peek(argv, "tag", ""), "" if stage == "0" else f"stage{stage}", "latest.pt"
    )
    path = of_stage if resume == "auto" else Path(resume)
    path = path / "latest.pt" if path.is_dir() else path
    if not path.is_file():
        return {}
    flags = load_checkpoint(path, mapped=True, gather=False).get("config", {})
    return {k: v for k, v in flags.items() if k not in (*OF_A_START, "exp-dir", "init-from")}


def train(read: Callable, command: str) -> int:
    """Run a training; returns the exit status.

    :param read: gives its flags (`flags_class`), some of which may be those of the run in its
        folder.
    :param command: what run.json records.
    """
    import torch

    from rvqlm import runtime
    from rvqlm.errors import UserError
    from rvqlm.modules import native_training
    from rvqlm.slurm import join_step
    from rvqlm.training.distributed import World
    from rvqlm.training.run import Setup, lock_folder

    config = read()
    if config.num_threads not in ("auto", 0):
        torch.set_num_threads(config.num_threads)
    device = runtime.pick_device(config.device)
    dtype = runtime.pick_precision(config.precision, device)
    if device.type == "cuda":
        runtime.set_tf32(config.tf32)
    elif not config.tf32:
        raise UserError(f"--no-tf32 means nothing on {device.type}: only NVIDIA GPUs have TF32")
    if (ranks := join_step()) and not config.quiet:
        print(ranks, file=sys.stderr, flush=True)
    said = native_training.choose(config.kernels, device, dtype)
    world = World(device, config.parallel)
    if said and world.main and not config.quiet:
        print(said, file=sys.stderr)
    if world.size == 1 and config.parallel == "fsdp":
        raise UserError(
            "--parallel fsdp shards over several processes and there is one: start with "
            "torchrun --nproc-per-node N or srun --ntasks-per-node N, or give --parallel ddp"
        )
    if world.gpu is not None:
        device = torch.device("cuda", world.gpu)
    runtime.use_device(device)
    try:
        with ExitStack() as stack:
            if not config.dry_run and lock_folder(config, world, stack):
                config = read()  # the run that was waited for has left its own
            return Setup(config, device, dtype, world, make_samples, code_vectors).run(command)
    except UserError as e:
        if world.size > 1 and not world.main:  # the main rank says what all of them found
            raise UserError(f"rank {world.rank}: {e}") from None
        raise
    finally:
        world.close()


def make_samples(setup, log):
    """What makes the samples of a training (`Setup`) with this `MetricsLog`; imported only where
    samples are asked for, for the codec's sake."""
    from rvqlm.inference.training_samples import SampleWriter

    config = setup.config
    return SampleWriter(
        config.log, setup.valid_data, config.condition_prompt_seconds, setup.exp_dir, log,
        config.seed,
    )  # fmt: skip


def code_vectors(info):
    """`rvqlm.codecs.vectors.vectors_like`; imported only where a training asks for them."""
    from rvqlm.codecs.vectors import vectors_like

    return vectors_like(info)


if __name__ == "__main__":
    sys.exit(main())
