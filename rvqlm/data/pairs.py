"""Pairs of cuts in two token directories: what a target accompanies, frame by frame.

`make_pairs` matches the cuts of a directory with those of another by id and writes, beside the
former, ``source_SPLIT.bin`` (for each row, where in the other's indexes its source is) and
``source.json`` (the other directory, relative to this one, and the fingerprints of its indexes).
`Pairs` reads frames of the sources through the other's own shards: nothing is copied. The two
directories may be split in different ways; the split of the target decides.
"""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rvqlm.cli import bar, counted
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.index import TokenDataset, read_sidecar
from rvqlm.data.mapped import column_path
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.schemas import PairsRecord
from rvqlm.data.store import hash64
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json

_SHOWN = 5  # problems named in a message
_ROW = (1 << 32) - 1  # a place is index number << 32 | row


@dataclass(frozen=True)
class PairConfig:
    """Pair the cuts of two token directories: a target and what it accompanies."""

    manifest_dir: Path
    """Token directory of the targets: what a model is to play."""
    source_dir: Path
    """Token directory of the sources: what it is given."""
    suffixes: tuple[str, ...] = ()
    """Endings of ids that name the part and not the piece (_solo _backing): taken off on both
    sides before ids are compared. None given: ids must be equal."""
    tolerance_frames: int = 2
    """Frames that a target and its source may differ in length without a word. The target is never
    cut: a longer source ends with it, and the last frames of a longer target have no source. Where
    most pairs differ by more, or begin so much later in their recordings than their sources, they
    are refused: these are hardly the same pieces, or silence was trimmed of each on its own."""
    allow_missing: bool = False
    """Let cuts without a match have no source, instead of refusing them."""

    def __post_init__(self) -> None:
        if self.tolerance_frames < 0:
            raise UserError(f"--tolerance-frames {self.tolerance_frames} is negative")


@dataclass
class Matched:
    """What `make_pairs` found in one split."""

    cuts: int
    paired: int
    shorter: int
    """Pairs whose source ends before the target does."""
    unmatched: list[str]
    """The first ids without a source."""
    unlike: list[str] = field(default_factory=list)
    """Pairs that differ in length by more than the tolerance, or in beginning at all, in words."""


def _open_all(directory: Path) -> list[TokenDataset]:
    splits = sorted(p.name[len("index_") : -len(".bin")] for p in directory.glob("index_*.bin"))
    if not splits:
        raise UserError(
            f"no index_SPLIT.bin in {directory}; run rvqlm split and rvqlm index with "
            f"--manifest-dir {directory}"
        )
    return [TokenDataset.open(directory, split) for split in splits]


def _mark(target: TokenDataset, sources: Iterable[str]) -> str:
    """Fingerprint of a column: rows of the target mean nothing without the sources' indexes."""
    return hashlib.sha256(" ".join([target.fingerprint, *sources]).encode()).hexdigest()[:16]


def some_of(words: Sequence[str]) -> str:
    """The first few, for a message."""
    return "; ".join(words[:_SHOWN]) + "; ..." * (len(words) > _SHOWN)


def strip_suffix(name: str, suffixes: Sequence[str]) -> str:
    """`name` without the longest of the suffixes that it ends in."""
    fitting = [s for s in suffixes if s and name.endswith(s)]
    return name[: -len(max(fitting, key=len))] if fitting else name


def make_pairs(config: PairConfig) -> dict[str, Matched]:
    """Pair every indexed split of the targets with the cuts of the sources; see the module.

    Raises `UserError` for other codecs, ambiguous ids, cuts without match, and where most pairs are
    of other lengths.
    """
    target_dir, source_dir = Path(config.manifest_dir), Path(config.source_dir)
    tolerance = config.tolerance_frames
    if target_dir.resolve() == source_dir.resolve():
        raise UserError(f"--source-dir {source_dir} is --manifest-dir itself; give the other one")
    codec = CodecInfo.from_dict(read_sidecar(target_dir)["codec"])
    codec.require_same(
        CodecInfo.from_dict(read_sidecar(source_dir)["codec"]), str(target_dir), str(source_dir)
    )
    targets, sources = _open_all(target_dir), _open_all(source_dir)

    def read(dataset: TokenDataset) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the ids, and seconds of the recordings at which the cuts begin, if known."""
        found, begin = array("Q"), array("d")
        for cut in bar(dataset.cuts(), f"{dataset.directory.name}/{dataset.split}"):
            found.append(hash64(strip_suffix(cut["id"], config.suffixes)))
            start = (cut.get("custom") or {}).get("recording_start")
            begin.append(math.nan if start is None else start)
        return np.array(found), np.array(begin)

    keys, begins = (np.concatenate(c) for c in zip(*map(read, sources)))
    frames = np.concatenate([s.frames for s in sources]).astype(np.int64)
    places = np.concatenate([n << 32 | np.arange(len(s)) for n, s in enumerate(sources)])
    order = np.argsort(keys, kind="stable")
    keys, frames, places, begins = keys[order], frames[order], places[order], begins[order]
    _refuse_twins(keys, places, sources)
    found, columns, far = {}, {}, 0
    for target in targets:
        wanted, begin = read(target)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        has = keys[at] == wanted
        lacking = np.where(has, target.frames - frames[at], 0)  # frames of the target without
        found[target.split] = Matched(
            len(target),
            int(has.sum()),
            int((lacking > 0).sum()),
            [target.id_of(row) for row in np.flatnonzero(~has)[:_SHOWN].tolist()],
        )
        for row in np.flatnonzero(abs(lacking) > tolerance).tolist():
            have, other = int(target.frames[row]), int(frames[at[row]])
            found[target.split].unlike.append(
                f"{target.id_of(row)!r} has {have} frames, its source {other}"
            )
        late = np.where(has & (abs(lacking) <= tolerance), begin - begins[at], 0.0)
        late = abs(late) * float(codec.frame_rate)  # frames
        far += int((abs(lacking) > tolerance).sum() + (late > tolerance + 0.5).sum())
        for row in np.flatnonzero(late > 0.5).tolist():
            have, other = begin[row], begins[at[row]]
            found[target.split].unlike.append(
                f"{target.id_of(row)!r} begins at {have:.2f} s of its recording, its source at "
                f"{other:.2f} s"
            )
        columns[target.split] = np.where(has, places[at], -1)
    _refuse_unmatched(found, config.allow_missing, target_dir, source_dir)
    unlike = [words for matched in found.values() for words in matched.unlike]
    if 2 * far > (pairs := sum(matched.paired for matched in found.values())):
        raise UserError(
            f"{far} of {counted(pairs, 'pair')} differ in length or beginning by more than "
            f"--tolerance-frames {tolerance}: {some_of(unlike)}; pair recordings that begin and "
            "end together (rvqlm audio activity trims both alike), or raise it"
        )
    prints = [s.fingerprint for s in sources]
    for target in targets:
        rows = (
            np.array([[p >> 32, p & _ROW]] if p >= 0 else np.empty((0, 2)), np.int32)
            for p in columns[target.split].tolist()
        )
        path = column_path(target_dir, "source", target.split)
        write_ragged(path, rows, 2, _mark(target, prints))
    record = {
        "condition": ConditionInfo.of_codes("source", codec).to_dict(),
        "directory": os.path.relpath(source_dir.resolve(), target_dir.resolve()),
        "indexes": {s.split: s.fingerprint for s in sources},
    }
    write_json(target_dir / "source.json", record, checksum=True)
    return found


def _refuse_twins(keys: np.ndarray, places: np.ndarray, sources: list[TokenDataset]) -> None:
    twins = np.flatnonzero(keys[1:] == keys[:-1])
    if not len(twins):
        return
    pair = places[twins[0] : twins[0] + 2].tolist()
    a, b = (sources[p >> 32].id_of(p & _ROW) for p in pair)
    raise UserError(
        f"two cuts of {sources[0].directory} go by one id, {a!r} and {b!r}: give --suffixes that "
        "leave them apart, or leave one of them out"
    )


def _refuse_unmatched(found: dict[str, Matched], allowed: bool, target: Path, source: Path) -> None:
    cuts, paired = (sum(getattr(m, n) for m in found.values()) for n in ("cuts", "paired"))
    if paired == cuts or (paired and allowed):
        return
    names = [name for m in found.values() for name in m.unmatched][:_SHOWN]
    more = ", ..." if cuts - paired > len(names) else ""
    raise UserError(
        f"{cuts - paired} of {cuts} cuts of {target} have no cut of the same id in {source}: "
        f"{', '.join(map(repr, names))}{more}; give the endings that differ as --suffixes"
        + (", or let these go without a source with --allow-missing" if paired else "")
    )


class Pairs:
    """The sources of one split.

    Attributes
    ----------
    info: `ConditionInfo` of as many levels as `dataset` serves.
    """

    def __init__(self, info: ConditionInfo, sources: list[TokenDataset], column: Ragged):
        self.info, self.sources, self.column = info, sources, column

    @classmethod
    def open(cls, dataset: TokenDataset) -> Pairs:
        """What `make_pairs` wrote for the split of `dataset`.

        Raises `UserError` when it is missing, damaged, or older than either directory.
        """
        path = dataset.directory / "source.json"
        again = f"run rvqlm pair --manifest-dir {dataset.directory} --source-dir OTHER"
        record = read_json(path, again, "no sources", type=PairsRecord)
        other, prints = dataset.directory / record["directory"], record["indexes"]
        again = again.replace("OTHER", os.path.normpath(other))
        if not other.is_dir():
            raise UserError(
                f"{path}: no folder {os.path.normpath(other)}; move it there, or {again}"
            )
        levels = dataset.info.num_codebooks
        sources = []
        for split, fingerprint in prints.items():
            source = TokenDataset.open(os.path.normpath(other), split)
            if source.fingerprint != fingerprint:
                raise UserError(f"{path}: split {split} of {source.directory} changed; {again}")
            sources.append(source)
        whole = CodecInfo.from_dict(dataset.header["codec"])
        for source in sources:
            whole.require_same(source.info, str(dataset.directory), str(source.directory))
        path = column_path(dataset.directory, "source", dataset.split)
        column = Ragged.open(path, _mark(dataset, prints.values()), again)
        info = ConditionInfo.of_codes("source", dataset.info)
        return cls(info, [s.first_levels(levels) for s in sources], column)

    def missing(self) -> int:
        """Rows without source."""
        return int((self.column.lengths == 0).sum())

    def read(self, items: Items, epoch: int) -> list[np.ndarray | None]:
        """The same frames of the sources, (S, K) each; S is below an item's length where its source
        is shorter, None where it has none."""
        return [self._read(*item) for item in zip(*(column.tolist() for column in items))]

    def _read(self, row: int, start: int, length: int) -> np.ndarray | None:
        place = self.column.read(row)
        if not len(place):
            return None
        source, other = self.sources[int(place[0, 0])], int(place[0, 1])
        frames = int(source.frames[other])
        start = min(start, frames)
        return source.view(other, start, min(length, frames - start))
