"""What is in a token directory, and whether it is sound: `inspect`.

`describe_split` streams every code of a split once: hours, durations, codes used and unigram
entropy per level, padding of the epoch plan. `check_tokens` compares shards with the sizes and
checksums in ``tokens.json``. Memory does not grow with the data.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.data.index import TokenDataset, find_splits, manifest_path, read_sidecar
from rvqlm.data.loader import plan_of
from rvqlm.data.plan import PlanConfig
from rvqlm.data.splits import require_disjoint
from rvqlm.data.store import check_shard
from rvqlm.errors import UserError
from rvqlm.files import read_json

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
            raise UserError(
                f"cut {dataset.id_of(row)!r} of {dataset.directory} ({dataset.split}) has code "
                f"{int(view[(view < 0) | (view >= v)][0])}, codec {dataset.info.name} has {v}: the "
                "shard is corrupted; tokenize again, or restore it from a copy"
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
    sizes of the batches of the first epoch on one rank, with the flags of `config`).
    """
    rate = float(dataset.info.frame_rate)
    counts = code_counts(dataset)
    entropy = unigram_entropy(counts)
    seconds = np.percentile(dataset.frames, PERCENTILES) / rate
    plan = plan_of(dataset, config, seed=0, epoch=0, world_size=1)
    count, longest = plan.shapes()
    grid = count.astype(np.int64) * longest
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
        "plan": {
            "max_duration": config.max_duration,
            "batches": plan.num_steps,
            "padding": plan.padding,
            "largest_batch_seconds": float(int(grid.max()) / dataset.info.frame_rate),
            "mean_cuts_per_batch": float(count.mean()),
        },
    }


def check_tokens(
    manifest_dir: str | os.PathLike, sidecar: dict, checksums: bool = True
) -> list[str]:
    """Compare every shard with its entry in the sidecar; one message per problem."""
    problems = []
    for entry in bar(sidecar.get("shards", []), "shards", unit="shards"):
        checksum = entry.get("sha256") if checksums else None
        try:
            check_shard(Path(manifest_dir) / entry["path"], entry["bytes"], checksum)
        except UserError as e:
            problems.append(str(e))
    return problems


def inspect(directory: Path, plan: PlanConfig, checksums: bool = True) -> dict:
    """Everything that can be said of a token directory, ready for JSON.

    Keys: codec, by (what splits do not share), skipped (items), shards, checksums, splits
    (`describe_split` of each), problems (a message each).

    :param checksums: read every shard to compare its checksum, not only its size.
    """
    sidecar = read_sidecar(directory)
    problems = check_tokens(directory, sidecar, checksums)
    splits = find_splits(directory)
    stats: dict[str, dict] = {}
    for split in splits:
        try:
            dataset = TokenDataset.open(directory, split)
            stats[split] = describe_split(dataset, plan)
        except UserError as e:
            problems.append(str(e))
    record = directory / "splits.json"
    by = read_json(record, "run rvqlm split again").get("by") if record.exists() else None
    try:
        require_disjoint({s: manifest_path(directory, s) for s in splits}, by or "recording")
    except UserError as e:
        problems.append(str(e))
    return {
        "codec": sidecar["codec"],
        "by": by,
        "skipped": sidecar.get("skipped", 0),
        "shards": len(sidecar.get("shards", [])),
        "checksums": checksums,
        "splits": stats,
        "problems": list(dict.fromkeys(problems)),  # two splits may share a broken shard
    }
