"""A training that is preempted again and again, and moves between two machines.

    python tools/bench/soak.py                    # 20 preemptions: some minutes on two cores
    python tools/bench/soak.py --preemptions 2 --ranks 1

Two "machines" (caches of their own) train one experiment in one bucket, of moto's S3 server on
this machine, by turns. Each is sent SIGTERM in the middle of its work and has 30 seconds to save,
to bring all to the bucket and to exit; the next goes on with what the bucket has, first with two
ranks, later with one, in the end with three. The weights are compared with those of one process
that was never interrupted and saw the same batches in the same order (those of several ranks one
after another, as micro-batches). Fails where they differ by more than roundings, where a machine
takes longer, or ends with a status that a scheduler would not start again.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from entropy_source import MarkovSource

from rvqlm.bin.trainer import read_flags
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.cli import parse, run_main
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import build_index
from rvqlm.data.store import RvqMmapWriter, token_cut
from rvqlm.errors import UserError
from rvqlm.files import sha256_of, write_json
from rvqlm.remote.bucket import Bucket
from rvqlm.runtime import describe_machine
from rvqlm.training.distributed import World
from rvqlm.training.run import Setup

GRACE_SECONDS = 30.0
CLOSE = 2e-6
"""Weights may differ by so much: ranks add gradients in another order than micro-batches."""
FLAGS = [
    *("--decoder-dim", "32", "--nhead", "2", "--num-decoder-layers", "2", "--num-threads", "1"),
    *("--max-duration", "6", "--precision", "fp32", "--no-mfu", "--log-every-steps", "1"),
    *("--save-every-minutes", "0.05", "--valid-max-batches", "2", "--dropout", "0"),
    *("--eps", "1e-4", "--quiet"),  # of Adam: without it roundings grow in weights that stand still
]


@dataclass
class Args:
    preemptions: int = 20
    """How often a machine is taken away."""
    ranks: tuple[int, ...] = (2, 1, 3)
    """Ranks, each for a like share of the preemptions."""
    steps: int = 100
    """Steps from one preemption to the next, about."""
    seed: int = 0
    """Of when they come."""


def make_tokens(directory: Path) -> None:
    """A token directory of a source with little to learn."""
    info = CodecInfo("soak", "0123456789abcdef", 16000, 320, 2, 8)
    codes = MarkovSource(2, 8).sample(400, 60, seed=1)
    shard = directory / "codes" / "shard-00000.rvq"
    lines = []
    with RvqMmapWriter(shard, dtype="int16") as writer:
        for n, one in enumerate(codes):
            key = writer.write("", one[: 20 + n % 40])
            lines.append(json.dumps(token_cut(f"cut-{n}", shard, key, info, f"{n}").to_dict()))
    sidecar = {
        "codec": info.to_dict(), "dtype": "int16", "num_cuts": len(codes), "num_frames": 0,
        "hours": 0.0, "skipped": 0, "shards": [
            {"path": f"codes/{shard.name}", "bytes": shard.stat().st_size,
             "sha256": sha256_of(shard)}
        ],
    }  # fmt: skip
    write_json(directory / "tokens.json", sidecar, checksum=True)
    for split, of in (("train", lines[:-20]), ("valid", lines[-20:])):
        with gzip.open(directory / f"cuts_{split}.jsonl.gz", "wt") as file:
            file.write("\n".join(of) + "\n")
        build_index(directory, split)


def begin(machine: Path, ranks: int, flags: list[str], log) -> subprocess.Popen:
    """Start the trainer on a machine."""
    program = [sys.executable, "-m"]
    if ranks > 1:
        program += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = os.environ | {"RVQLM_CACHE": str(machine), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*program, "rvqlm.bin.trainer", *flags], env=environment, stdout=log, stderr=log
    )


def last_step(machine: Path) -> int:
    """Of the log that a machine has of the experiment."""
    for path in machine.glob("*/exp/metrics.jsonl"):
        lines = path.read_text().rsplit("\n", 2)
        try:
            return json.loads(lines[-2])["step"]
        except (IndexError, ValueError, KeyError):
            return 0
    return 0


def step_in(bucket: Bucket, folder: Path) -> int:
    """Of latest.pt in the bucket; 0 if there is none."""
    entry = bucket.entry("latest.pt")
    if entry is None:
        return 0
    bucket.get("latest.pt", entry, folder / "latest.pt")
    return load_checkpoint(folder / "latest.pt")["step"]


class Replay:
    """Batches of several ranks, one after another: `lives` says how many ranks there were up to
    which step."""

    def __init__(self, setup: Setup, trainer, lives: list[tuple[int, int]]):
        self.setup, self.trainer, self.lives = setup, trainer, lives
        self.loaders, self.taken = [], 0

    def __next__(self):
        if self.taken == 0:
            ranks = next(r for r, until in self.lives if self.trainer.step < until)
            if ranks != len(self.loaders):
                self._begin(ranks)
            self.trainer.config.optim.accum = ranks
        batch = next(self.loaders[self.taken])
        self.taken = (self.taken + 1) % len(self.loaders)
        return batch

    def _begin(self, ranks: int) -> None:
        state = self.loaders[0].state_dict() if self.loaders else None
        config = self.setup.config
        make = type(self.setup.loader)
        for loader in self.loaders:
            loader.close()
        data = self.setup.train_data
        self.loaders = [make(data, config.data, config.seed, r, ranks) for r in range(ranks)]
        for loader in self.loaders if state else ():
            loader.load_state_dict(state)

    def __getattr__(self, name: str):  # epoch, step, epoch_steps, state_dict
        return getattr(self.loaders[0] if self.loaders else self.setup.loader, name)


def uninterrupted(flags: list[str], lives: list[tuple[int, int]]) -> dict:
    """The checkpoint of one process that sees what all lives saw."""

    class Alone(Setup):
        def _make_trainer(self):
            trainer = super()._make_trainer()
            trainer.train = Replay(self, trainer, lives)
            return trainer

    config = read_flags(flags)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    Alone(config, device, torch.float32, World(device), None, None).run("soak")
    return load_checkpoint(Path(config.exp_dir) / "latest.pt")


def distance(a: dict, b: dict) -> float:
    """Largest difference of weights, averaged ones included."""
    pairs = [(a[k][n], b[k][n]) for k in ("model", "ema") for n in a[k]]
    return max(float((x - y).abs().max()) for x, y in pairs)


def soak(args: Args, folder: Path, endpoint: str) -> float:
    """Preempt and compare; the largest difference of weights."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    url = f"s3://soak-{uuid.uuid4().hex[:8]}"
    make_tokens(folder / "tokens")
    data, experiment = Bucket(f"{url}/tokens"), Bucket(f"{url}/exp")
    data.fs.mkdir(url)
    for path in (p for p in (folder / "tokens").rglob("*") if p.is_file()):
        data.put(path, path.relative_to(folder / "tokens").as_posix())
    total = args.steps * (args.preemptions + 1)
    flags = [*FLAGS, "--max-steps", str(total)]
    remote = [*flags, "--exp-dir", f"{url}/exp", "--manifest-dir", f"{url}/tokens"]
    rng, lives = random.Random(args.seed), []
    print("| life | machine | ranks | steps | seconds from SIGTERM to exit | status |")
    print("|---|---|---|---|---|---|")
    for life in range(args.preemptions + 1):
        ranks = args.ranks[life * len(args.ranks) // (args.preemptions + 1)]
        machine = folder / f"machine-{life % 2}"
        machine.mkdir(exist_ok=True)
        done = lives[-1][1] if lives else 0
        wanted = args.steps * life + rng.randint(args.steps // 2, args.steps)
        log = folder / f"life-{life}.txt"
        with open(log, "w") as file:
            process = begin(machine, ranks, remote, file)
            if life == args.preemptions:
                process.wait()
                took = 0.0
            else:
                while last_step(machine) < wanted or last_step(machine) <= done:
                    if process.poll() is not None:
                        break
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                asked = time.monotonic()
                process.wait()
                took = time.monotonic() - asked
        step = step_in(experiment, folder)
        lives.append((ranks, step))
        row = [life + 1, life % 2, ranks, f"{done} to {step}", f"{took:.1f}", process.returncode]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        finished = life == args.preemptions
        if took > GRACE_SECONDS or step <= done or (process.returncode == 0) != finished:
            raise UserError(f"life {life + 1} did not end as it should; see what it said:\n"
                            + log.read_text()[-3000:])  # fmt: skip
    if lives[-1][1] != total:
        raise UserError(f"training ended with step {lives[-1][1]} of {total}")
    local = ["--exp-dir", str(folder / "alone"), "--manifest-dir", str(folder / "tokens")]
    return distance(load_checkpoint(folder / "latest.pt"), uninterrupted([*flags, *local], lives))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "soak")


def _run(argv: Sequence[str] | None) -> int:
    from moto.server import ThreadedMotoServer

    args = parse(Args, "soak.py", "A training that is preempted and moves.", argv)
    os.environ |= {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with tempfile.TemporaryDirectory() as folder:
            found = soak(args, Path(folder), f"http://{host}:{port}")
    finally:
        server.stop()
    machine = describe_machine()
    print(f"\n{args.preemptions} preemptions; largest difference of weights {found:.2g}")
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, "
          f"commit {machine['commit']}")  # fmt: skip
    if not np.isfinite(found) or found > CLOSE:
        raise UserError(f"the weights differ by {found:.2g}, more than roundings ({CLOSE:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
