#!/usr/bin/env python3
"""The path of the data at a size: what it takes to combine, split, index, plan, read and resume.

    python tools/bench/scale.py --folder /tmp/scale                      # a million cuts
    python tools/bench/scale.py --folder /tmp/scale --cuts 10000000
    python tools/bench/scale.py --folder /tmp/scale --cuts 20000 --parts 8 --bucket

Made up are the cuts, of 2 to 18 s of DAC's 9 levels, in 1,000 parts as `rvqlm tokenize --part`
leaves them, and their shards, which are holes: 15 GB a million cuts that take no space on the disk.
So reading costs what it costs from the page cache, and nothing tells of a disk. All else is what
the commands do. Each stage is a process of its own; its peak of memory includes Python and torch
("imports").

With --bucket the tokens, in full, also go to a bucket of moto's S3 server on loopback, and the
loader reads them through a cache that is empty (cold) and one that has them (warm), beside what a
trainer on one thread consumes of the same.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rvqlm.audio.source import part_digest
from rvqlm.audio.sources import open_source
from rvqlm.cli import parse, run_main
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import MAGIC, TokenDataset, build_index, index_path
from rvqlm.data.loader import TokenLoader, plan_of
from rvqlm.data.mapped import map_columns, write_columns
from rvqlm.data.plan_config import PlanConfig
from rvqlm.data.schemas import IndexHeader
from rvqlm.data.splits import SplitConfig, split_manifest
from rvqlm.data.store import token_cut
from rvqlm.errors import UserError
from rvqlm.files import json_line, sha256_of, write_json
from rvqlm.remote.bucket import Bucket
from rvqlm.tokenizing.combine import combine
from rvqlm.tokenizing.parts import Part, parts_path

INFO = CodecInfo("dac", "f" * 16, 44100, 512, 9, 1024)
STRIDE = 2 * INFO.num_codebooks
STAGES = (
    "make",
    "combine",
    "list",
    "split",
    "index",
    "tile",
    "open",
    "plan",
    "batch",
    "resume",
    "loader",
)
BUCKET_STAGES = ("upload", "cold", "warm", "trainer")
URL = "s3://scale/tokens"
TRAINER = [
    *("--decoder-dim", "256", "--nhead", "4", "--num-decoder-layers", "6", "--num-threads", "1"),
    *("--max-duration", "40", "--no-mfu", "--log-every-steps", "1", "--save-every-steps", "0"),
    *("--valid-max-batches", "1", "--quiet"),
]


@dataclass
class Args:
    """Sizes and stages."""

    folder: Path
    """Where to work; taken away at the end, unless there are stages to come."""
    cuts: int = 1_000_000
    """How many."""
    parts: int = 1000
    """Parts that are combined, of eight shards each."""
    stages: list[Literal[STAGES + BUCKET_STAGES]] = field(default_factory=lambda: list(STAGES))
    """Which, in this order; each needs those before it."""
    bucket: bool = False
    """Add the stages of a bucket, which needs the disk for three copies of the codes."""
    steps: int = 12
    """Of the trainer."""
    tile: int = 1
    """Repeat the rows of the index so often (stage tile): so many more cuts for later stages,
    without the hour that making their manifest takes."""
    batches: int = 500
    """That the loader reads."""
    keep: bool = False
    """Leave the folder."""


def make(args: Args) -> str:
    """The parts, as `rvqlm tokenize --part` leaves them."""
    rng = np.random.default_rng(0)
    shared = {"audio": {}, "compute_dtype": "float32"}
    listed = {"path": "made up", "items": args.cuts, "digest": "0" * 16}
    edges = [args.cuts * n // args.parts for n in range(args.parts + 1)]
    cut, audio = _templates()
    for number in range(args.parts):
        first, last = edges[number], edges[number + 1]
        folder = Part(number, args.parts).folder(args.folder)
        (folder / "codes").mkdir(parents=True)
        frames = rng.integers(172, 1550, last - first)
        places = np.zeros(8, np.int64)
        lines: tuple[list[str], list[str]] = ([], [])
        for n, count in enumerate(frames.tolist()):
            shard = n * 8 // len(frames)
            values = (first + n, count, f"{places[shard]},{count},9,int16", shard)
            lines[0].append(_filled(cut, folder, *values))
            lines[1].append(_filled(audio, folder, *values))
            places[shard] += count * STRIDE
        for name, texts in zip(("cuts", "audio_cuts"), lines):
            with gzip.open(folder / f"{name}.jsonl.gz", "wt", compresslevel=1) as file:
                file.writelines(texts)
        (folder / "skipped.jsonl").touch()
        shards = []
        for shard, size in enumerate(places.tolist()):
            path = folder / f"codes/shard-{shard:05d}.rvq"
            path.touch()
            os.truncate(path, size)
            sha = hashlib.sha256(path.name.encode()).hexdigest()  # holes: nobody reads all of it
            shards.append({"path": f"codes/{path.name}", "bytes": size, "sha256": sha})
        of = {"number": number, "of": args.parts, "first": first, "last": last}
        digest = part_digest(listed["digest"], first, last)
        sidecar = {
            **{"codec": INFO.to_dict(), "dtype": "int16", "shards": shards, **shared, "part": of},
            **{"num_cuts": last - first, "skipped": 0, "warned": 0, "pcm_bytes": 0},
            **{"num_frames": int(frames.sum()), "hours": 0.0, "audio_manifest": "x"},
            "input": {"path": "made up", "items": last - first, "digest": digest},
        }
        write_json(folder / "tokens.json", sidecar, checksum=True)
    record = {"codec": INFO.to_dict(), "input": listed, **shared, "of": args.parts, "command": "-"}
    write_json(parts_path(args.folder), record)
    return f"{args.parts:,} parts"


def _templates() -> tuple[str, str]:
    """A line of both manifests, with marks where cuts differ."""
    made = token_cut("ID", "SHARD", "0,7,9,int16", INFO, "ID", num_samples=7 * 512).to_dict()
    source = {"type": "file", "channels": [0], "source": "audio/ID.flac"}
    recording = {"id": "ID", "sources": [source], "sampling_rate": 44100, "num_samples": 7777}
    audio = {"id": "ID", "start": 0.0, "duration": 0.7777, "channel": 0, "supervisions": []}
    audio |= {"recording": recording | {"duration": 0.7777, "channel_ids": [0]}, "type": "MonoCut"}
    made["features"]["num_frames"] = "FRAMES"
    made["custom"]["num_samples"] = "SAMPLES"
    made["duration"] = made["features"]["duration"] = "SECONDS"
    made["features"]["storage_key"] = "KEY"
    text = json_line(made).decode()
    for word in ("FRAMES", "SECONDS", "SAMPLES"):
        text = text.replace(f'"{word}"', word)
    return text, json_line(audio).decode()


def _filled(text: str, folder: Path, id: int, frames: int, key: str, shard: int) -> str:
    seconds = frames * INFO.hop / INFO.sampling_rate
    for mark, value in (
        ("SHARD", f"{folder}/codes/shard-{shard:05d}.rvq"),
        ("ID", f"corpus/speaker{id // 500:06d}/{id:09d}"),
        *(
            ("SAMPLES", str(frames * INFO.hop)),
            ("FRAMES", str(frames)),
            ("SECONDS", repr(seconds)),
            ("KEY", key),
        ),
    ):
        text = text.replace(mark, value)
    return text


def size(path: Path) -> str:
    return f"{path.name} {path.stat().st_size / 1e6:,.1f} MB"


def bench_combine(args: Args) -> str:
    made = combine(args.folder)
    return f"{made.num_cuts:,} cuts, {made.hours:,.0f} h; {size(args.folder / 'cuts.jsonl.gz')}"


def bench_list(args: Args) -> str:
    """What each job of an array does before it begins."""
    listing = open_source(str(args.folder / "audio_cuts.jsonl.gz")).scan()
    return f"{len(listing.split(args.parts)):,} parts"


def bench_split(args: Args) -> str:
    return f"by {split_manifest(SplitConfig(args.folder, valid=0.001, test=0.001)).by}"


def bench_index(args: Args) -> str:
    return size(build_index(args.folder, "train"))


def bench_tile(args: Args) -> str:
    path = index_path(args.folder, "train")
    header, columns = map_columns(path, MAGIC, IndexHeader)
    count = header["num_cuts"]
    frames, places = columns[: 4 * count].tobytes(), columns[-8 * count :].tobytes()
    totals = {k: header[k] * args.tile for k in ("num_cuts", "num_frames", "hours")}
    header = {k: v for k, v in header.items() if k not in ("checksum", "columns")} | totals
    aligned = bytes(-4 * count * args.tile % 8)
    write_columns(path, MAGIC, header, [frames * args.tile, aligned, places * args.tile])
    return f"{totals['num_cuts']:,} cuts; {size(path)}"


def opened(args: Args) -> TokenDataset:
    return TokenDataset.open(args.folder, "train")


def bench_open(args: Args) -> str:
    return f"{len(opened(args).header['shards']):,} shards"


def bench_plan(args: Args) -> str:
    dataset = opened(args)
    began = time.perf_counter()
    plan = plan_of(dataset, PlanConfig(), 0, 0, 8)
    took = time.perf_counter() - began
    return f"{took:.2f} s for the plan itself: {plan.num_steps:,} steps of 8 ranks"


def loader_of(args: Args, dataset: TokenDataset | None = None) -> TokenLoader:
    return TokenLoader(dataset or opened(args), PlanConfig(), seed=0, rank=3, world_size=8)


def bench_batch(args: Args) -> str:
    loader = loader_of(args)
    shape = tuple(next(loader).codes.shape)
    loader.close()
    return f"the first, {shape}"


def bench_resume(args: Args) -> str:
    loader = loader_of(args)
    state = loader.state_dict()
    state["history"] = [[8, loader.epoch_steps // 2]]
    began = time.perf_counter()
    loader = loader_of(args)
    loader.load_state_dict(state)
    batch = next(loader)
    took = time.perf_counter() - began
    loader.close()
    return f"{took:.2f} s from nothing to batch {batch.step:,} of epoch {batch.epoch}"


def bench_loader(args: Args) -> str:
    """The speed of one rank's thread, and what it reads."""
    return read_batches(args, loader_of(args))


def read_batches(args: Args, loader: TokenLoader) -> str:
    next(loader)
    before, began, frames, grid = _read_bytes(), time.perf_counter(), 0, 0
    for _ in range(args.batches):
        batch = next(loader)
        frames, grid = frames + int(batch.lengths.sum()), grid + batch.codes[..., 0].numel()
    took, read = time.perf_counter() - began, _read_bytes() - before
    loader.close()
    return (
        f"{frames / took / 1e6:,.1f} M frames/s, "
        f"{frames * INFO.num_codebooks / took / 1e6:,.0f} M tokens/s, "
        f"{frames / float(INFO.frame_rate) / took:,.0f} s of audio a second; "
        f"{read / args.batches / 1e3:,.0f} kB read a batch, {read / (frames * STRIDE):.3f} times "
        f"its codes; {1 - frames / grid:.2%} padding"
    )


def _read_bytes() -> int:
    """What this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def bench_upload(args: Args) -> str:
    """All of the tokens, with checksums in place of those that `make` made up."""
    sidecar = json.loads((args.folder / "tokens.json").read_text())
    del sidecar["checksum"]
    for entry in sidecar["shards"]:
        entry["sha256"] = sha256_of(args.folder / entry["path"])
    write_json(args.folder / "tokens.json", sidecar, checksum=True)
    bench_split(args)
    for split in ("train", "valid"):
        build_index(args.folder, split)
    bucket = Bucket(URL)
    bucket.fs.mkdir(URL.rpartition("/")[0])
    inputs = ("tokens.json", "splits.json", "cuts_*", "index_*", "codes/*.rvq")
    paths = [path for name in inputs for path in args.folder.glob(name)]
    for path in paths:
        bucket.put(path, path.relative_to(args.folder).as_posix())
    return f"{len(paths)} objects, {sum(p.stat().st_size for p in paths) / 1e6:,.0f} MB"


def bench_cold(args: Args) -> str:
    """What `bench_warm` finds in the cache is fetched first."""
    shutil.rmtree(args.folder / "cache", ignore_errors=True)
    return bench_warm(args)


def bench_warm(args: Args) -> str:
    began = time.perf_counter()
    dataset = TokenDataset.open(URL, "train")
    took = time.perf_counter() - began
    frames, size = dataset.header["num_frames"], dataset.header["num_frames"] * STRIDE
    return (
        f"here after {took:.2f} s, {frames / took:,.0f} frames/s, {size / took / 1e6:,.0f} MB/s; "
        + read_batches(args, loader_of(args, dataset))
    )


def bench_trainer(args: Args) -> str:
    """`rvqlm train` of a small model from the bucket, on one thread."""
    import torch

    from rvqlm.bin.trainer import read_flags
    from rvqlm.training.distributed import World
    from rvqlm.training.run import Setup

    folder = args.folder / "exp"
    where = ["--manifest-dir", URL, "--exp-dir", str(folder), "--max-steps", str(args.steps)]
    device = torch.device("cpu")
    config = read_flags([*TRAINER, *where])
    Setup(config, device, torch.float32, World(device), None, None).run("scale")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    speeds = [row["frames_per_second"] for row in rows if row["kind"] == "train"]
    return f"{statistics.median(speeds[1:]):,.0f} frames/s, the median of {len(speeds) - 1} steps"


@contextlib.contextmanager
def bucket_server(args: Args) -> Iterator[None]:
    """moto's S3 server, in a process of its own, and the environment that finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        **{"AWS_ACCESS_KEY_ID": "scale", "AWS_SECRET_ACCESS_KEY": "scale"},
        **{"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"},
        **{"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
        **{"RVQLM_CACHE": str(args.folder / "cache")},
    }
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if server.poll() is not None:
                raise UserError("moto's server did not start; pip install 'moto[server]'")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def run_stage(stage: str, args: Args) -> None:
    import torch

    torch.set_num_threads(1)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = make if stage == "make" else globals()[f"bench_{stage}"]
    began, cpu = time.perf_counter(), time.process_time()
    said = run(args)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{stage:<8}{took:>8.2f} s {cpu:>8.2f} s of CPU {peak / 1e3:>7,.0f} MB at the peak, "
        f"{base / 1e3:,.0f} of imports; {said}",
        flush=True,
    )


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "scale.py", "The path of the data at a size.", argv)
    if name := os.environ.get("RVQLM_BENCH_STAGE"):
        run_stage(name, args)
        return 0
    words = list(sys.argv[1:] if argv is None else argv)
    stages = [*args.stages, *(BUCKET_STAGES if args.bucket else ())]
    try:
        with contextlib.ExitStack() as stack:
            if set(stages) & set(BUCKET_STAGES):
                stack.enter_context(bucket_server(args))
            for stage in stages:
                environment = os.environ | {"RVQLM_BENCH_STAGE": stage}
                done = subprocess.run([sys.executable, __file__, *words], env=environment)
                if done.returncode:  # it has said why
                    return done.returncode
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "scale")


if __name__ == "__main__":
    sys.exit(main())
