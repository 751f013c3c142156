"""What is in a token directory, and whether it is sound: `inspect`.

`describe_split` streams every code of a split once: hours, durations, codes used and unigram
entropy per level, padding of the epoch plan. `check_tokens` compares shards with the sizes and
checksums in ``tokens.json``, `check_split` an index with its manifest and the columns beside it
with their checksums. Memory is that of an index.
"""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.condition_info import KINDS
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import (
    TokenDataset,
    find_splits,
    index_of,
    index_path,
    manifest_path,
    read_sidecar,
    read_splits,
)
from rvqlm.data.loader import plan_of
from rvqlm.data.mapped import has_checksum
from rvqlm.data.plan import PlanConfig
from rvqlm.data.ragged import Ragged
from rvqlm.data.splits import require_disjoint
from rvqlm.data.store import check_shard
from rvqlm.errors import UserError
from rvqlm.files import read_lines, sha256_of

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_BLOCK = 1 << 20  # codes counted at once


def code_counts(dataset: TokenDataset) -> np.ndarray:
    """How often each code occurs in each level: (K, V) int64.

    Raises `UserError` naming the first cut with a code outside 0..V-1.
    """
    k, v = dataset.info.num_codebooks, dataset.info.codebook_size
    counts, levels = np.zeros(k * v, np.int64), np.arange(k) * v
    pending: list[np.ndarray] = []
    size = 0
    for row in bar(range(len(dataset)), dataset.split):
        view = dataset.view(row)
        if view.size and (int(view.min()) < 0 or int(view.max()) >= v):
            frame, level = np.argwhere((view < 0) | (view >= v))[0].tolist()
            raise UserError(
                f"cut {dataset.id_of(row)!r} of {dataset.directory} ({dataset.split}) has code "
                f"{view[frame, level]} in frame {frame}, level {level}; codec {dataset.info.name} "
                f"has {v}: the shard is corrupted; tokenize again, or restore it from a copy"
            )
        pending.append(view)
        size += view.size
        if size >= _BLOCK or row == len(dataset) - 1:
            flat = (np.concatenate(pending).astype(np.int64) + levels).reshape(-1)
            counts += np.bincount(flat, minlength=k * v)
            pending, size = [], 0
    return counts.reshape(k, v)


def unigram_entropy(counts: np.ndarray) -> np.ndarray:
    """(K,) bits per code of the distributions whose counts are (K, V); no smoothing."""
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return (p * np.log2(np.where(p > 0, 1.0 / np.maximum(p, 1e-300), 1.0))).sum(axis=1)


def describe_split(dataset: TokenDataset, config: PlanConfig) -> dict:
    """Statistics of a split, ready for JSON.

    Keys: cuts, frames, hours, duration (seconds at `PERCENTILES`, and the mean), codes_used (K),
    entropy_bits (K), unigram_bits_per_second (their sum times the frame rate), plan (padding and
    sizes of the batches of the first epoch on one rank, with the flags of `config`; None where
    there are cuts that the default budget cannot hold whole: windows can).

    Raises `UserError` where `config` is another one than the default and no batch can be made.
    """
    rate = float(dataset.info.frame_rate)
    counts = code_counts(dataset)
    entropy = unigram_entropy(counts)
    seconds = np.percentile(dataset.frames, PERCENTILES) / rate
    return {
        "cuts": len(dataset),
        "frames": dataset.num_frames,
        "hours": dataset.hours,
        "duration": {
            **{f"p{p}": float(s) for p, s in zip(PERCENTILES, seconds)},
            "mean": dataset.num_frames / len(dataset) / rate,
        },
        "codes_used": (counts > 0).sum(axis=1).tolist(),
        "entropy_bits": entropy.tolist(),
        "unigram_bits_per_second": float(entropy.sum() * rate),
        "plan": _describe_plan(dataset, config),
    }


def _describe_plan(dataset: TokenDataset, config: PlanConfig) -> dict | None:
    try:
        plan = plan_of(dataset, config, seed=0, epoch=0, world_size=1)
    except UserError:
        if config != PlanConfig():
            raise
        return None
    count, longest = plan.shapes()
    grid = count.astype(np.int64) * longest
    return {
        "max_duration": config.max_duration,
        "batches": plan.num_steps,
        "padding": plan.padding,
        "largest_batch_seconds": float(int(grid.max()) / dataset.info.frame_rate),
        "mean_cuts_per_batch": float(count.mean()),
    }


def check_tokens(
    manifest_dir: str | os.PathLike, sidecar: dict, checksums: bool = True
) -> list[str]:
    """Compare every shard with its entry in the sidecar; one message per problem."""
    problems = []
    for entry in bar(sidecar["shards"], "shards", unit="shards"):
        checksum = entry.get("sha256") if checksums else None
        try:
            check_shard(Path(manifest_dir) / entry["path"], entry["bytes"], checksum)
        except UserError as e:
            problems.append(str(e))
    return problems


def check_split(dataset: TokenDataset) -> tuple[list[str], list[str]]:
    """Compare an index with its manifest, and what lies beside its rows with it and with checksums:
    problems, and files that have no checksum to compare."""
    directory, split = dataset.directory, dataset.split
    problems = []
    path = index_path(directory, split)
    try:
        header, columns = index_of(directory, split)
        again = f"run rvqlm index --manifest-dir {directory}"
        if header["fingerprint"] != dataset.fingerprint or not dataset.holds(columns):
            problems.append(f"index {path} is not that of its manifest; {again}")
    except UserError as e:
        problems.append(str(e))
    headers = {path: dataset.header}
    for column in sorted(directory.glob(f"*_{escape(split)}.bin")):
        kind = column.name.removesuffix(f"_{split}.bin")
        try:
            if column != path:
                headers[column] = Ragged.open(column).header
            if kind in KINDS:
                ConditionSet.open(dataset, [kind])
        except UserError as e:
            problems.append(str(e))
    return problems, [path.name for path, header in headers.items() if not has_checksum(header)]


def check_manifests(directory: Path, stamps: list[dict]) -> list[str]:
    """Read the manifests to their end and compare those whose checksum is on record; one message
    per problem."""
    sums = {stamp["name"]: stamp["sha256"] for stamp in stamps}
    problems = []
    for path in sorted(directory.glob("*.jsonl.gz")):
        try:
            for _ in read_lines(path, f"manifest {path}", ""):  # gzip has a checksum of its own
                pass
            if sums.get(path.name, sum_ := sha256_of(path)) != sum_:
                problems.append(f"manifest {path} is not the one that was split and indexed")
        except UserError as e:
            problems.append(str(e))
    return problems


def _without_checksum(directory: Path, sidecar: dict) -> list[str]:
    """JSON files of a token directory, and shards, that have no checksum on record."""
    names = ("tokens.json", "splits.json", "text.json", "midi.json", "source.json")
    found = [n for n in names if (directory / n).exists()]
    found = [n for n in found if b'"checksum"' not in (directory / n).read_bytes()]
    listed = {s["path"] for s in sidecar["shards"] if "sha256" in s}
    shards = (f"codes/{path.name}" for path in sorted(directory.glob("codes/*.rvq")))
    return found + [path for path in shards if path not in listed]


def inspect(directory: Path, plan: PlanConfig, checksums: bool = True) -> dict:
    """Everything that can be said of a token directory, ready for JSON.

    Keys: codec, by (what splits do not share), skipped (items), shards, checksums, splits
    (`describe_split` of each), problems (a message each), without_checksum (names of files, of
    earlier versions mostly, in which a change would go unseen).

    :param checksums: read every shard and manifest to compare its checksum, not only its size.
    """
    sidecar = read_sidecar(directory)
    problems = check_tokens(directory, sidecar, checksums)
    splits = find_splits(directory)
    without, stamps = _without_checksum(directory, sidecar), []
    stats: dict[str, dict] = {}
    for split in splits:
        try:
            dataset = TokenDataset.open(directory, split)
            stats[split] = describe_split(dataset, plan)
        except UserError as e:
            problems.append(str(e))
            continue
        found, lacking = check_split(dataset)
        stamps.append(dataset.header["manifest"])
        problems += found
        without += lacking
    by = None
    try:
        record = read_splits(directory)
        by = record.get("by")
        stamps += [record["source"]] if record.get("source") else []
    except UserError as e:
        problems.append(str(e))
    try:
        require_disjoint({s: manifest_path(directory, s) for s in splits}, by or "recording")
    except UserError as e:
        problems.append(str(e))
    problems += check_manifests(directory, stamps) if checksums else []
    return {
        "codec": sidecar["codec"],
        "by": by,
        "skipped": sidecar.get("skipped", 0),
        "shards": len(sidecar["shards"]),
        "checksums": checksums,
        "splits": stats,
        "problems": list(dict.fromkeys(problems)),  # two splits may share a broken shard
        "without_checksum": list(dict.fromkeys(without)),
    }
