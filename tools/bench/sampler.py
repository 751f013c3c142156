"""Batching side by side with lhotse's DynamicBucketingSampler on a synthetic manifest.

    python tools/bench/sampler.py --cuts 100000
    python tools/bench/sampler.py --cuts 1000000 --peer-max-cuts 200000

Both sides read the same ``cuts_train.jsonl.gz`` with durations drawn at 44,100/512 frames/s; the
index is built once, before. Each side runs in a fresh process: time to first batch, an epoch of
batches (without reading codes), resuming half-way, growth of the resident set. Shards are holes
in a file, so a million cuts take no disk. `--peer-max-cuts` lets the peer see only the first cuts.
"""

from __future__ import annotations

import copy
import gzip
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rvqlm.cli import parse, run_main
from rvqlm.codec_info import CodecInfo

INFO = CodecInfo("descript/dac_44khz", "0" * 16, 44100, 512, 9, 1024)


@dataclass
class Args:
    cuts: int = 100_000
    """Cuts in the manifest."""
    max_duration: float = 150.0
    """Seconds per batch."""
    distribution: Literal["uniform", "log-normal"] = "uniform"
    """Durations: uniform between 1 and 20 s, or log-normal (median 6 s, at most 30 s)."""
    buckets: tuple[int, ...] = (30, 100)
    """Numbers of buckets of the peer; none to leave the peer out."""
    peer_max_cuts: int = 0
    """Give the peer only so many cuts; 0: all."""
    seed: int = 0
    """Of durations and shuffling."""


def write_manifest(directory: Path, args: Args) -> None:
    """A token directory of `args.cuts` cuts, one speaker, without codes."""
    rng = np.random.default_rng(args.seed)
    if args.distribution == "uniform":
        seconds = rng.uniform(1, 20, args.cuts)
    else:
        seconds = np.clip(rng.lognormal(np.log(6), 0.6, args.cuts), 1, 30)
    frames = np.ceil(seconds * float(INFO.frame_rate)).astype(int)
    shard, offset = directory / "codes/shard-00000.rvq", 0
    shard.parent.mkdir()
    with gzip.open(directory / "cuts_train.jsonl.gz", "wt", compresslevel=1) as file:
        for n, t in enumerate(frames.tolist()):
            duration = t * INFO.hop / INFO.sampling_rate
            features = {
                "type": INFO.name,
                "num_frames": t,
                "num_features": INFO.num_codebooks,
                "frame_shift": INFO.hop / INFO.sampling_rate,
                "sampling_rate": INFO.sampling_rate,
                "start": 0.0,
                "duration": duration,
                "storage_type": "rvq_mmap",
                "storage_path": str(shard),
                "storage_key": f"{offset},{t},{INFO.num_codebooks},int16",
                "recording_id": f"rec-{n}",
                "channels": 0,
            }
            segment = {
                "id": f"cut-{n}",
                "recording_id": f"rec-{n}",
                "start": 0.0,
                "duration": duration,
                "channel": 0,
                "text": "some words that were said",
                "speaker": "someone",
            }
            cut = {
                "id": f"cut-{n}",
                "start": 0.0,
                "duration": duration,
                "channel": 0,
                "supervisions": [segment],
                "features": features,
                "type": "MonoCut",
            }
            file.write(json.dumps(cut) + "\n")
            offset += t * INFO.num_codebooks * 2
    shard.touch()
    os.truncate(shard, offset)
    sidecar = {"codec": INFO.to_dict(), "dtype": "int16", "shards": [], "skipped": 0}
    sidecar |= {"num_cuts": 0, "num_frames": 0, "hours": 0.0}
    (directory / "tokens.json").write_text(json.dumps(sidecar))


def write_peer_manifest(directory: Path, count: int) -> None:
    """The first `count` cuts as a manifest of their own, so that the peer reads it lazily too."""
    with (
        gzip.open(directory / "cuts_train.jsonl.gz", "rb") as source,
        gzip.open(directory / "peer.jsonl.gz", "wb", compresslevel=1) as target,
    ):
        target.writelines(line for line, _ in zip(source, range(count)))


def resident() -> float:
    """MB of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def peak() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def ours(directory: str, args: Args) -> dict:
    from rvqlm.data.index import TokenDataset
    from rvqlm.data.loader import TokenLoader
    from rvqlm.data.plan import PlanConfig, plan_epoch

    config = PlanConfig(max_duration=args.max_duration)
    reset_peak()
    before = resident()
    began = time.perf_counter()
    dataset = TokenDataset.open(directory, "train")
    loader = TokenLoader(dataset, config, args.seed)
    next(loader)
    first = time.perf_counter() - began
    loader.close()

    began = time.perf_counter()
    plan = plan_epoch(dataset.frames, config, INFO.frame_rate, args.seed, 0, 1)
    seen = sum(len(plan.batch(0, step)[0]) for step in range(plan.num_steps))
    spent = time.perf_counter() - began
    assert seen == len(dataset)
    count, longest = plan.shapes()
    memory = peak() - before  # the loader and one more plan: what the end of an epoch takes
    padding, middle = plan.padding, plan.num_steps // 2
    del plan
    state = {**loader.state_dict(), "history": [[1, middle]]}

    began = time.perf_counter()
    again = TokenLoader(TokenDataset.open(directory, "train"), config, args.seed)
    again.load_state_dict(state)
    assert next(again).step == middle
    resume = time.perf_counter() - began
    again.close()
    return {
        "padding": padding,
        "largest": float((count.astype(int) * longest).max() / INFO.frame_rate),
        "rate": seen / spent,
        "first": first,
        "resume": resume,
        "memory": memory,
    }


def peer(directory: str, args: Args, buckets: int) -> dict:
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    total = min(args.cuts, args.peer_max_cuts or args.cuts)

    def sampler() -> DynamicBucketingSampler:
        return DynamicBucketingSampler(
            CutSet.from_jsonl_lazy(Path(directory) / "peer.jsonl.gz"),
            max_duration=args.max_duration,
            num_buckets=buckets,
            shuffle=True,
            seed=args.seed,
            world_size=1,
            rank=0,
        )

    reset_peak()
    before = resident()
    began = shown = time.perf_counter()
    source = sampler()
    real = grid = largest = 0.0
    seen = first = 0
    state = None
    for batch in source:
        first = first or time.perf_counter() - began
        durations = [cut.duration for cut in batch]
        real += sum(durations)
        padded = max(durations) * len(durations)
        grid, largest, seen = grid + padded, max(largest, padded), seen + len(durations)
        if state is None and seen >= total // 2:
            state = copy.deepcopy(source.state_dict())
        if time.perf_counter() - shown > 10:
            shown = time.perf_counter()
            print(f"  lhotse, {buckets} buckets: {seen:,} of {total:,} cuts", file=sys.stderr)
    spent = time.perf_counter() - began
    memory = peak() - before

    began = time.perf_counter()
    again = sampler()
    again.load_state_dict(state)
    next(iter(again))
    resume = time.perf_counter() - began
    return {
        "padding": 1 - real / grid,
        "largest": largest,
        "rate": seen / spent,
        "first": first,
        "resume": resume,
        "memory": memory,
    }


ROWS = {  # title, format, the smaller the better
    "padding": ("padding", "{:.2%}", True),
    "largest": ("largest batch, s", "{:.1f}", True),
    "rate": ("cuts/s", "{:,.0f}", False),
    "first": ("first batch, s", "{:.3f}", True),
    "resume": ("resume half-way, s", "{:.3f}", True),
    "memory": ("memory growth, MB", "{:.1f}", True),
}


def show(results: dict[str, dict]) -> None:
    """Columns per side; the last compares ours with the best peer."""
    names = list(results)
    print(f"{'':<20}" + "".join(f"{name:>14}" for name in names) + f"{'best peer/ours':>16}")
    for key, (title, form, less) in ROWS.items():
        values = [results[name][key] for name in names]
        line = f"{title:<20}" + "".join(f"{form.format(v):>14}" for v in values)
        if len(values) > 1:
            ratio = min(values[1:]) / values[0] if less else values[0] / max(values[1:])
            line += f"{ratio:>15,.1f}x"
        print(line)


def in_process(fn, *args) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(fn, args)


def _run(argv: Sequence[str] | None) -> int:
    from rvqlm.data.index import build_index, index_path

    args = parse(Args, "sampler.py", "Batching against lhotse's DynamicBucketingSampler.", argv)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_manifest(directory, args)
        began = time.perf_counter()
        build_index(directory, "train")
        size = index_path(directory, "train").stat().st_size
        print(
            f"{args.cuts:,} cuts, {args.distribution}, --max-duration {args.max_duration:g}; index "
            f"built in {time.perf_counter() - began:.1f} s, {size / args.cuts:.2f} bytes a cut"
        )
        write_peer_manifest(directory, min(args.cuts, args.peer_max_cuts or args.cuts))
        results = {"rvqlm": in_process(ours, name, args)}
        for buckets in args.buckets:
            results[f"lhotse {buckets}"] = in_process(peer, name, args, buckets)
    show(results)
    if 0 < args.peer_max_cuts < args.cuts and args.buckets:
        print(f"the peer saw {args.peer_max_cuts:,} cuts only")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "sampler")


if __name__ == "__main__":
    sys.exit(main())
