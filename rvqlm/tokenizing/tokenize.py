"""From a corpus to a token directory: divide the work, encode in several processes, merge.

The input is listed once and cut into contiguous ranges of equal cost, one shard each. Which range
is whose is decided before anything is encoded and kept in ``parts/plan.json``; the result depends
on that plan only, not on timing, interruptions or the number of processes of a later run. Under
torchrun or srun the shards are shared out over the ranks and rank 0 merges.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

from rvqlm.audio.source import Listing
from rvqlm.audio.sources import open_source
from rvqlm.cli import counted
from rvqlm.codecs.registry import load_codec
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.locks import locked
from rvqlm.remote.session import named
from rvqlm.runtime import use_device
from rvqlm.tokenizing.config import TokenizeConfig
from rvqlm.tokenizing.parts import Part, join_parts, require_no_parts
from rvqlm.tokenizing.plan import Identity, make_folders, make_plan, plan_path, read_plan
from rvqlm.tokenizing.ranks import Ranks
from rvqlm.tokenizing.reporting import (
    ProgressLine,
    describe_plan,
    print_summary,
    wants_per_file,
)
from rvqlm.tokenizing.shard import ShardJob, done_path
from rvqlm.tokenizing.sidecar import Summary, finish, remove_parts
from rvqlm.tokenizing.workers import run_shards


def tokenize(config: TokenizeConfig) -> Summary | None:
    """Do all of it. Returns what the directory holds; None after a dry run and on ranks > 0.

    Raises `UserError` (one line, with the remedy) for everything a user can mend; what was
    finished until then is kept and continued by the next call.
    """
    ranks, out = Ranks.from_environment(), Path(config.input.out_dir)
    part = Part.parse(config.input.part) if config.input.part else None
    if out.exists() and not out.is_dir():
        raise UserError(f"--out-dir {out}: a file of that name exists; choose a folder")
    with contextlib.ExitStack() as stack:
        if ranks.rank == 0 and not config.work.dry_run:
            folder = part.folder(out) if part else out
            stack.enter_context(locked(folder, "rvqlm tokenize", make=True))
        return _tokenize(config, ranks, part)


def _tokenize(config: TokenizeConfig, ranks: Ranks, part: Part | None) -> Summary | None:
    """The work of a rank in a folder that nobody else writes in."""
    out = Path(config.input.out_dir)
    source = open_source(config.input.input)
    device = use_device(ranks.device(config.codec.device))
    load = (config.codec.codec, str(device), config.codec.num_codebooks, config.codec.dtype)
    codec = load_codec(*load)
    listing = source.scan()
    listed = named(source.path), len(listing), listing.digest
    identity = Identity(codec.info, *listed, config.audio.to_dict(), config.codec.dtype)
    if _finished(out):  # a part, too, where all of them were combined
        return _already_done(out, config, identity, ranks)
    if part is None:
        require_no_parts(out)
    else:
        if ranks.rank == 0 and not config.work.dry_run:
            join_parts(out, part, identity, config)
        source, listing, identity = part.of_input(source, listing, identity)
        out = part.folder(out)
        if _finished(out):
            return _already_done(out, config, identity, ranks)
    out_dir = str(out)
    plan = read_plan(out, identity)
    settings = config.work.for_codec(codec, ranks.world_size)
    if config.work.dry_run:
        describe_plan(source.path, out_dir, codec, listing, plan is not None, settings)
        return None
    jobs, chunk_seconds, batch_size = settings
    with contextlib.ExitStack() as stack:
        if ranks.world_size == 1:
            make_folders(out)
            if plan is None:
                plan = make_plan(out, identity, listing, part.shards if part else jobs)
        else:
            workers = part.shards if part else jobs * ranks.world_size
            plan = _agree(out, identity, listing, ranks, workers, stack)
            if plan is None:
                return _already_done(out, config, identity, ranks)

        def unfinished() -> set[int]:
            return {s for s in range(len(plan)) if not done_path(out, s).exists()}

        pending = sorted(s for s in unfinished() if s % ranks.world_size == ranks.rank)
        if config.audio.loudness is not None:
            importlib.import_module("pyloudnorm")  # a second, once instead of in every process
        per_file = wants_per_file(config.work.per_file, len(listing))
        ranges = [tuple(r) for r in plan]
        for shard in pending:
            source.fetch(*ranges[shard])
        job = ShardJob(source, ranges, out_dir, config.audio, chunk_seconds, batch_size, per_file)
        with ProgressLine(listing.costs, plan, shown=ranks.rank == 0) as line:
            for shard in set(range(len(plan))) - unfinished():
                line.already_done(shard)
            run_shards(job, pending, jobs, codec, load, line.update)
        if ranks.rank > 0:
            return None
        world = ranks.world_size
        ranks.wait(lambda: {s % world for s in unfinished()}, out / "parts", "its share")
        summary = finish(out_dir, len(plan), codec.info, identity.recorded())
    print_summary(out_dir, summary, codec.info, line, per_file, ranks.world_size)
    return summary


def _finished(out: Path) -> bool:
    return (out / "tokens.json").exists()


def _agree(
    out: Path,
    identity: Identity,
    listing: Listing,
    ranks: Ranks,
    workers: int,
    stack: contextlib.ExitStack,
) -> list | None:
    """The plan that all ranks work by: an earlier run's, or one that rank 0 makes.

    From here on this rank counts as alive until `stack` is closed. None: all has been done.
    """
    parts = out / "parts"
    if ranks.rank > 0:
        ranks.wait(
            lambda: set() if plan_path(out).exists() or _finished(out) else {0}, parts, "its plan"
        )
        lock = ranks.sign_in(parts)
        plan = None if lock is None else read_plan(out, identity)
        if lock is not None:
            stack.enter_context(lock)
        if plan is None and not _finished(out):
            raise UserError(f"--out-dir {out}: {parts} vanished; run the same command again")
        return plan
    make_folders(out)
    stack.enter_context(ranks.sign_in(parts))
    plan = read_plan(out, identity)
    return make_plan(out, identity, listing, workers) if plan is None else plan


def _already_done(
    out: Path, config: TokenizeConfig, identity: Identity, ranks: Ranks
) -> Summary | None:
    """Check that the finished directory is what this command would make."""
    sidecar = read_sidecar(out)
    identity.require_same(sidecar, out)
    if ranks.rank > 0:
        return None
    if not config.work.dry_run:
        remove_parts(out)  # a kill between the sidecar and this leaves them behind
    print(f"{out}: complete, {counted(sidecar['num_cuts'], 'cut')}; nothing to do")
    return Summary.of(sidecar)
