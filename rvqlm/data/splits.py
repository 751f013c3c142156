"""Training, validation and test sets that share no recording, no group and, where every cut has a
speaker and there are enough of them, no speaker.

Cuts that share a recording, the custom field ``group`` (the name of another recording, or any
other name) or, dividing by speaker, a speaker form a group (a connected component). Groups are
assigned to splits as wholes, in an order that depends only on the seed and their names. Augmented
copies (custom field ``augmented_from``) go where their originals go, and are dropped where that is
not training. Two streaming passes over ``cuts.jsonl.gz``: one for the groups (some 100 bytes a cut
in memory), one that writes ``cuts_SPLIT.jsonl.gz``; what was written is then read again and checked
to be disjoint.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rvqlm.cli import bar
from rvqlm.data.index import (
    file_stamp,
    index_path,
    manifest_lines,
    manifest_path,
    read_manifest,
    read_sidecar,
)
from rvqlm.data.store import hash64
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, remove, write_json

SPLITS = ("train", "valid", "test")
_SAME = {"dev": "valid", "validation": "valid", "eval": "test"}
"""What corpora call the splits in their own division."""


@dataclass(frozen=True)
class SplitConfig:
    """Divide cuts into train, valid and test."""

    manifest_dir: Path
    """Token directory, as rvqlm tokenize wrote it."""
    valid: float = 0.05
    """Validation set: below 1 a share of the hours, from 1 on a number of speakers (or
    recordings), 0 for none."""
    test: float = 0.05
    """Test set, likewise."""
    test_speakers: tuple[str, ...] = ()
    """Names of the speakers of the test set, instead of --test."""
    given: str = ""
    """Custom field of the cuts that says to which split each belongs, train, valid (or dev,
    validation) or test (or eval): the division that a corpus comes with, instead of --valid, --test
    and --seed."""
    by: Literal["auto", "speaker", "recording"] = "auto"
    """What no two splits may share. auto: speakers where every cut has one and there are enough
    of them, else recordings. Recordings are never divided, nor are groups (the custom field
    "group" of cuts: --group-by of rvqlm audio manifest, augmented copies)."""
    augmented: Literal["train", "all"] = "train"
    """Where augmented copies may be (rvqlm audio augment). train: those of recordings for
    validation and test are dropped, and shares of the hours are those of the originals; all: they
    go with their originals."""
    seed: int = 0
    """Another seed, another choice of speakers or recordings."""


@dataclass(frozen=True)
class SplitResult:
    """Which split each cut belongs to, and why."""

    split: np.ndarray
    """(N,) int8, index into `SPLITS`; -1: dropped"""
    by: str
    """"speaker" or "recording": what groups share"""
    groups: dict[str, int]
    """groups in each split"""
    seconds: dict[str, float]
    dropped: int = 0
    """augmented copies of cuts for validation or test"""
    grouped: bool = False
    """whether the custom field ``group`` joins recordings"""
    why: str = ""
    """why it is not by speaker, where that was left open (--by auto)"""


def _hash(kind: str, name: str) -> int:
    return hash64(f"{kind}:{name}")


def speakers(cut: dict) -> set[str]:
    return {str(s["speaker"]) for s in cut.get("supervisions") or () if s.get("speaker")}


def recording(cut: dict) -> str:
    """Id of the recording that a cut's tokens were made from."""
    name = (cut.get("features") or {}).get("recording_id") or (cut.get("recording") or {}).get("id")
    return str(name if name is not None else cut["id"])


def group(cut: dict) -> str:
    """The custom field ``group``; without it the recording."""
    name = (cut.get("custom") or {}).get("group")
    return recording(cut) if name is None else str(name)


def is_augmented(cut: dict) -> bool:
    return (cut.get("custom") or {}).get("augmented_from") is not None


def split_by_group(cuts: Iterable[dict], config: SplitConfig) -> SplitResult:
    """Assign cuts (dictionaries of a manifest) to train, valid and test.

    Raises `UserError` when there are too few groups, naming what to change.
    """
    key, valid, test = config.by, config.valid, config.test
    if config.test_speakers and config.given:
        raise UserError("--test-speakers and --given exclude each other")
    if config.test_speakers:
        if key == "recording":
            raise UserError("--test-speakers and --by recording exclude each other")
        key, test = "speaker", 0
    wanted = {"valid": valid, "test": test}
    for name, size in wanted.items():
        if not 0 <= size < float("inf") or (size > 1 and size != int(size)):
            raise UserError(f"--{name} {size}: give a share below 1 or a whole number of groups")
    if (valid if valid < 1 else 0) + (test if test < 1 else 0) >= 1:
        raise UserError(f"--valid {valid} and --test {test} leave nothing to train on")
    seconds, records = array("d"), array("Q")
    owner, voices = array("Q"), array("Q")  # cut number and speaker, one entry per speaker
    member, ties = array("Q"), array("Q")  # cut number and group, where it is not the recording
    copies, given = array("b"), array("b")
    silent = None
    for number, cut in enumerate(cuts):
        if "duration" not in cut:
            raise UserError(f"cut {cut['id']!r} of the manifest is incomplete: no duration")
        seconds.append(cut["duration"])
        records.append(_hash("recording", recording(cut)))
        copies.append(config.augmented == "train" and is_augmented(cut))
        if config.given:
            given.append(_given(cut, config.given))
        if group(cut) != recording(cut):
            member.append(number)
            ties.append(_hash("recording", group(cut)))
        found = speakers(cut)
        if not found and silent is None:
            silent = cut["id"]
        for name in sorted(found):
            owner.append(number)
            voices.append(_hash("speaker", name))
    if not seconds:
        raise UserError("no cuts to split; tokenize some audio first")
    if key == "speaker" and silent is not None:
        raise UserError(f"--by speaker: cut {silent!r} has no speaker; use --by recording")
    spoken = np.isin(np.array(voices), [_hash("speaker", name) for name in config.test_speakers])
    fixed = np.array(owner, np.int64)[spoken]
    for name in config.test_speakers:
        if _hash("speaker", name) not in voices:
            raise UserError(f"--test-speakers {name}: no cut has this speaker")
    needed = 1 + sum(max(1, int(s)) if s else 0 for s in wanted.values())
    duration, dropping = np.array(seconds), np.array(copies, bool)
    split, why = np.array(given, np.int8) if config.given else None, ""
    for by in {"auto": ("speaker", "recording")}.get(key, (key,)):
        if by == "speaker" and silent is not None:
            why = f"cut {silent!r} has no speaker"
            continue
        together = _groups(
            np.array(records),
            np.array(owner + member if by == "speaker" else member, np.int64),
            np.array(voices + ties if by == "speaker" else ties, np.uint64),
        )
        if split is not None:
            if key != "auto" or by == "recording" or not _divided(together, split):
                break  # what is divided all the same `require_disjoint` finds
            why = f"--given {config.given} divides some"
            continue
        enough = _count(together) - _count(together[fixed]) >= needed
        weight = np.where(dropping, 0.0, duration)
        split = _deal(together, weight, wanted, config.seed, fixed) if enough else None
        if split is not None:
            break
        why = f"speakers are too few ({_count(together)}) or too unequal"
    else:
        other = "; try --by recording" if key == "speaker" else ""
        raise UserError(
            f"{_count(together)} groups of cuts by {by} where {needed} are needed, or too unequal: "
            f"give more audio, or smaller --valid and --test (0 leaves a split out){other}"
        )
    if not (split == 0).any():
        raise UserError(f"--given {config.given}: no cut is for training")
    split[dropping & (split > 0)] = -1
    return SplitResult(
        split,
        by,
        {name: _count(together[split == n]) for n, name in enumerate(SPLITS)},
        {name: float(duration[split == n].sum()) for n, name in enumerate(SPLITS)},
        int((split < 0).sum()),
        bool(ties),
        why if by == "recording" else "",
    )


def _given(cut: dict, field: str) -> int:
    """The split that a cut's own field names, as an index into `SPLITS`."""
    name = str((cut.get("custom") or {}).get(field)).lower()
    if (name := _SAME.get(name, name)) not in SPLITS:
        raise UserError(
            f"--given {field}: cut {cut['id']!r} has {name!r} there, where train, valid or test "
            "belongs; give another field, or leave out --given"
        )
    return SPLITS.index(name)


def _divided(labels: np.ndarray, split: np.ndarray) -> bool:
    """Whether some group, of those that `labels` (N,) names, is in two splits (N,)."""
    return len(np.unique(np.stack([labels, split.astype(labels.dtype)]), axis=1).T) > _count(labels)


def _count(labels: np.ndarray) -> int:
    return len(np.unique(labels))


def components(items: np.ndarray, names: np.ndarray, count: int) -> np.ndarray:
    """(count,) numbers of the components that items 0 ... count - 1 form.

    items, names: (E,); each item has some names, and items with a name in common are connected.
    """
    from scipy.sparse import coo_array  # takes a second to import
    from scipy.sparse.csgraph import connected_components

    names = np.unique(names, return_inverse=True)[1].reshape(-1)
    size = count + int(names.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(items), bool), (items, count + names)), shape=(size, size))
    return connected_components(edges, directed=False)[1][:count]


def _groups(records: np.ndarray, owner: np.ndarray, voices: np.ndarray) -> np.ndarray:
    """(N,) uint64: the least name among all cuts that recordings and `voices` connect to a cut.

    voices: hashes of speakers and of groups, of the cuts `owner`; a group that has the name of a
        recording ties its cuts to those of the recording.
    """
    if not len(voices):
        return records
    cuts = np.concatenate([owner, np.arange(len(records))])
    part = components(cuts, np.concatenate([voices, records]), len(records))
    least = np.full(part.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, part, records)
    return least[part]


def _deal(labels, duration, wanted: dict[str, float], seed: int, fixed: np.ndarray):
    """(N,) int8 of splits: groups in an order hashed from the seed, but those of the cuts `fixed`
    in the test split; None if train gets nothing or there are too few groups. Groups whose cuts
    have no duration (copies without their original) stay in train."""
    names, inverse = np.unique(labels, return_inverse=True)
    weight = np.bincount(inverse, weights=duration)
    order = np.argsort([_hash(str(seed), str(name)) for name in names.tolist()], kind="stable")
    of_group = np.zeros(len(names), np.int8)
    of_group[inverse[fixed]] = SPLITS.index("test")
    for name, size in wanted.items():
        free = [g for g in order.tolist() if of_group[g] == 0 and weight[g] > 0]
        if len(free) < max(1, size if size >= 1 else 0):
            return None
        if size >= 1:
            chosen = free[: int(size)]
        elif size > 0:
            target, have, chosen = size * duration.sum(), 0.0, []
            for g in free:
                if abs(have + weight[g] - target) < abs(have - target):
                    chosen.append(g)
                    have += weight[g]
            chosen = chosen or [min(free, key=lambda g: weight[g])]
        else:
            chosen = []
        of_group[chosen] = SPLITS.index(name)
        if not (of_group == 0).any():
            return None
    return of_group[inverse]


def split_manifest(config: SplitConfig) -> SplitResult:
    """Split ``cuts.jsonl.gz`` of a token directory; see `split_by_group`.

    Writes ``cuts_SPLIT.jsonl.gz`` and ``splits.json`` (what was done, and of which manifest).
    Indexes of earlier splits are removed. An interruption leaves the earlier splits, or a
    directory that `rvqlm.data.index.build_index` refuses.
    """
    directory = Path(config.manifest_dir)
    source, record = directory / "cuts.jsonl.gz", directory / "splits.json"
    read_sidecar(directory)
    stamp = file_stamp(source) if source.exists() else None
    cuts = bar(read_manifest(source), "grouping")
    result = split_by_group(cuts, config)
    targets = {name: manifest_path(directory, name) for name in SPLITS}
    folder = directory / f".splits.{os.getpid()}.tmp"  # as `files.remove_torn` knows it
    temporary = {name: folder / path.name for name, path in targets.items()}
    remove(folder)
    try:
        folder.mkdir()
        with ExitStack() as stack:
            files = [stack.enter_context(atomic_open(path)) for path in temporary.values()]
            lines = bar(manifest_lines(source), "writing")
            for line, n in zip(lines, result.split.tolist()):
                if n >= 0:  # -1: dropped
                    files[n].write(line if line.endswith(b"\n") else line + b"\n")
        require_disjoint(temporary, result.by)
    except BaseException:
        remove(folder)
        raise
    write_json(record, {"source": None}, checksum=True)
    for name, path in targets.items():
        index_path(directory, name).unlink(missing_ok=True)
        if result.groups[name]:
            os.replace(temporary[name], path)
        else:
            path.unlink(missing_ok=True)
    remove(folder)
    counts = [int((result.split == n).sum()) for n in range(len(SPLITS))]
    write_json(
        record,
        {
            "source": stamp,
            "by": result.by,
            "asked": config.by,
            **(
                {"given": config.given}
                if config.given
                else {
                    "seed": config.seed,
                    "valid": config.valid,
                    "test": list(config.test_speakers) or config.test,
                }
            ),
            "augmented": config.augmented,
            "dropped": result.dropped,
            "splits": {
                name: {
                    "cuts": counts[n],
                    "groups": result.groups[name],
                    "hours": result.seconds[name] / 3600,
                }
                for n, name in enumerate(SPLITS)
            },
        },
        checksum=True,
    )
    return result


def require_disjoint(manifests: dict[str, Path], by: str) -> None:
    """Raise `UserError` if two manifests share a cut, a recording, a group or, by "speaker", a
    speaker."""
    seen: dict[str, np.ndarray] = {}
    what = "speaker" if by == "speaker" else "group"
    for name, path in manifests.items():
        marks = array("Q")
        for cut in read_manifest(path):
            marks.append(_hash("cut", cut["id"]))
            marks.append(_hash("recording", recording(cut)))
            if group(cut) != recording(cut):
                marks.append(_hash("recording", group(cut)))
            if by == "speaker":
                marks.extend(_hash("speaker", s) for s in speakers(cut))
        mine = np.unique(np.array(marks, np.uint64))
        for other, theirs in seen.items():
            if shared := len(np.intersect1d(mine, theirs, assume_unique=True)):
                raise UserError(
                    f"splits {other} and {name} share {shared} cuts, recordings or {what}s: "
                    f"{manifests[other]} and {path}; run rvqlm split again"
                )
        seen[name] = mine
