"""From a corpus to a token directory: divide the work, encode in several processes, merge.

The input is listed once and cut into contiguous ranges of equal cost, one shard each. Which range
is whose is decided before anything is encoded and kept in ``parts/plan.json``; the result depends
on that plan only, not on timing, interruptions or the number of processes of a later run. Under
torchrun the shards are shared out over the ranks and rank 0 merges.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.registry import load_codec
from rvqlm.data.audio import Mono
from rvqlm.data.index import read_sidecar
from rvqlm.data.sidecar import Summary, finish, remove_parts
from rvqlm.data.store import DTYPES, code_dtype
from rvqlm.data.token_inputs import Listing, open_source
from rvqlm.data.token_progress import ProgressLine, clock
from rvqlm.data.token_shard import disk_error, done_path, write_atomic
from rvqlm.data.token_workers import ShardJob, run_shards
from rvqlm.errors import UserError
from rvqlm.runtime import pick_device

ITEMS_PER_SHARD = 20_000
"""More shards than processes from here on: files of a size that can be copied and checked."""


@dataclass
class TokenizeConfig:
    """What to tokenize, with which codec, and where to."""

    input: str
    """A folder of audio (searched at any depth), a quoted glob, one audio file, or a lhotse
    manifest of recordings or cuts."""
    out_dir: str
    """Token directory to make. The same command continues one that was interrupted."""
    codec: str = "spectral"
    """spectral (embedded), a hub name such as descript/dac_44khz, a folder in transformers'
    format, or a file of spectral weights."""
    num_codebooks: int | None = None
    """Levels to keep, coarsest first. Default: all of the codec; 8 of an EnCodec or Mimi."""
    mono: Mono = "average"
    """Several channels where the codec takes one: average them, or refuse (and skip) the file."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 or auto."""
    jobs: int = 0
    """Processes that encode, on one thread each. 0: one per core on a CPU, one on a GPU; 1: no
    extra process and all threads."""
    chunk_seconds: float = 5.0
    """Long files are encoded in chunks of about this length where the codec's context is finite.
    Memory depends on it, the codes do not."""
    dry_run: bool = False
    """Load the codec, list the input, say what would be done; write nothing."""

    def __post_init__(self) -> None:
        problems = []
        if self.chunk_seconds <= 0:
            problems.append(f"--chunk-seconds {self.chunk_seconds:g} must be positive")
        if self.jobs < 0:
            problems.append(f"--jobs {self.jobs} must be 0 (automatic) or more")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun; a single one without it."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def tokenize(config: TokenizeConfig) -> Summary | None:
    """Do all of it. Returns what the directory holds; None after a dry run and on ranks > 0.

    Raises `UserError` (one line, with the remedy) for everything a user can mend; what was
    finished until then is kept and continued by the next call.
    """
    ranks = Ranks.from_environment()
    out = Path(config.out_dir)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out-dir {out}: a file of that name exists; choose a folder")
    source = open_source(config.input)
    device = pick_device(config.device)
    jobs = config.jobs or (len(os.sched_getaffinity(0)) if device.type == "cpu" else 1)
    if ranks.world_size > 1 and not config.jobs:
        jobs = 1
    codec = load_codec(config.codec, device, config.num_codebooks)
    listing = source.scan()
    identity = {"path": config.input, "items": len(listing), "digest": listing.digest}
    identity["mono"] = config.mono
    if (out / "tokens.json").exists():
        return _already_done(config, codec.info, identity, ranks)
    plan = _read_plan(out, codec.info, identity)
    if config.dry_run:
        _describe(config, codec, listing, plan, jobs)
        return None
    plan = plan or _make_plan(out, codec.info, identity, listing, ranks, jobs)
    pending = [s for s in range(ranks.rank, len(plan), ranks.world_size)]
    pending = [s for s in pending if not done_path(out, s).exists()]
    job = ShardJob(
        source, [tuple(r) for r in plan], config.out_dir, config.chunk_seconds, config.mono
    )
    with ProgressLine(listing.costs, plan, shown=ranks.rank == 0) as line:
        for shard in range(len(plan)):
            if done_path(out, shard).exists():
                line.already_done(shard)
        run_shards(job, pending, jobs, codec, config.codec, line.update)
    if ranks.rank > 0:
        return None
    _wait_for_other_ranks(out, len(plan))
    summary = finish(config.out_dir, len(plan), codec.info, identity)
    _print_summary(config, summary, codec.info, line)
    return summary


def _identity_error(out: Path, recorded: dict, identity: dict) -> UserError:
    keys = [k for k in ("items", "mono", "digest") if recorded.get(k) != identity[k]]
    details = ", ".join(f"{k} {recorded.get(k)!r} against {identity[k]!r}" for k in keys)
    return UserError(
        f"--out-dir {out} was made from another input ({recorded.get('path')}: {details}); "
        "choose another --out-dir, or remove this one"
    )


def _require_same_input(out: Path, recorded: dict, identity: dict) -> None:
    # the path may be spelled in another way; what was listed there counts
    if any(recorded.get(k) != identity[k] for k in ("items", "digest", "mono")):
        raise _identity_error(out, recorded, identity)


def _already_done(
    config: TokenizeConfig, info: CodecInfo, identity: dict, ranks: Ranks
) -> Summary | None:
    """Check that the finished directory is what this command would make."""
    out = Path(config.out_dir)
    sidecar = read_sidecar(out)
    CodecInfo.from_dict(sidecar["codec"]).require_same(
        info, f"--out-dir {out}", f"--codec {config.codec}"
    )
    _require_same_input(out, sidecar.get("input", {}), identity)
    if ranks.rank > 0:
        return None
    if not config.dry_run:
        remove_parts(config.out_dir)  # a kill between the sidecar and this leaves them behind
    print(f"{out}: complete, {sidecar['num_cuts']} cuts; nothing to do")
    return Summary(
        sidecar["num_cuts"], sidecar["num_frames"], sidecar["hours"], sidecar["skipped"], None
    )


def _plan_path(out: Path) -> Path:
    return out / "parts" / "plan.json"


def _read_plan(out: Path, info: CodecInfo, identity: dict) -> list | None:
    """Ranges of an interrupted run; None if there is none. `UserError` if it was another job."""
    if not _plan_path(out).exists():
        if (out / "cuts.jsonl.gz").exists():
            raise UserError(
                f"--out-dir {out} holds a cuts.jsonl.gz that rvqlm tokenize did not make; "
                "choose another folder"
            )
        return None
    plan = json.loads(_plan_path(out).read_text())
    CodecInfo.from_dict(plan["codec"]).require_same(info, f"--out-dir {out}", "--codec")
    _require_same_input(out, plan["input"], identity)
    return plan["ranges"]


def _make_plan(
    out: Path, info: CodecInfo, identity: dict, listing: Listing, ranks: Ranks, jobs: int
) -> list:
    """Divide the items into shards and write that down; ranks > 0 wait for rank 0's plan."""
    if ranks.rank > 0:
        while not _plan_path(out).exists():
            time.sleep(0.1)
        return _read_plan(out, info, identity)
    workers = jobs * ranks.world_size
    shards = workers * max(1, -(-len(listing) // (workers * ITEMS_PER_SHARD)))
    ranges = [r for r in listing.split(min(shards, len(listing))) if r[1] > r[0]]
    plan = {"codec": info.to_dict(), "input": identity, "ranges": ranges}
    try:
        for folder in (out / "codes", out / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(_plan_path(out), json.dumps(plan))
    except OSError as e:
        if isinstance(disk_error(e, out), UserError):
            raise disk_error(e, out) from None
        raise UserError(f"--out-dir {out}: {e.strerror}; choose a folder to write in") from None
    return ranges


def _wait_for_other_ranks(out: Path, num_shards: int) -> None:
    said = time.monotonic()
    while waiting := [s for s in range(num_shards) if not done_path(out, s).exists()]:
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"waiting for {len(waiting)} shards of other ranks", file=sys.stderr)
        time.sleep(0.2)


def _describe(
    config: TokenizeConfig, codec: Codec, listing: Listing, plan: list | None, jobs: int
) -> None:
    info = codec.info
    rate = float(info.frame_rate)
    token_bytes = info.num_codebooks * DTYPES[code_dtype(info.codebook_size)].itemsize
    context = codec.context_frames
    print(f"input      {config.input}: {len(listing)} items", end="")
    print(f", {listing.hours:.2f} h" if listing.hours is not None else "")
    print(
        f"codec      {info.name} [{info.fingerprint}]: {info.sampling_rate} Hz, "
        f"{info.num_codebooks} x {info.codebook_size}, {rate:.2f} frames/s, "
        f"{info.bitrate / 1000:.2f} kbps"
    )
    print(
        "files      "
        + (
            f"in chunks of {config.chunk_seconds:g} s, {context} frames of context"
            if context is not None
            else "whole (the codec's context is not finite)"
        )
    )
    if listing.hours is not None:
        size = listing.hours * 3600 * rate * token_bytes
        print(f"tokens     about {listing.hours * 3600 * rate:.0f} frames, {size / 1e6:.1f} MB")
    print(f"out        {config.out_dir}, {'continued' if plan else 'new'}, {jobs} processes")
    print("dry run: nothing written")


def _print_summary(
    config: TokenizeConfig, summary: Summary, info: CodecInfo, line: ProgressLine
) -> None:
    speed = f"{line.seconds / line.elapsed:.0f}x real time" if line.seconds else "all done before"
    print(
        f"{config.out_dir}: {summary.num_cuts} cuts, {summary.hours:.2f} h, "
        f"{summary.num_frames} frames of {info.num_codebooks} codes; {speed} in "
        f"{clock(line.elapsed)}, {line.encode_share:.0%} of it in the codec"
    )
    if summary.skipped:
        first = summary.first_skipped
        print(
            f"{summary.skipped} items skipped, listed in {config.out_dir}/skipped.jsonl; the "
            f"first: {first['path']}: {first['reason']}",
            file=sys.stderr,
        )
