"""Token directories as streams: every cut with its codes out, any stream of codes in.

What exports read and imports write. `read_items` follows a manifest of token cuts; windows that
lhotse cut out of a recording become items of their own frames. `write_token_dir` makes a directory
as `rvqlm tokenize` does, in a temporary folder that is renamed when it is complete. Both hold one
recording at a time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import MonoCut

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import (
    locate,
    read_manifest,
    read_sidecar,
    require_current_split,
    splits_of,
)
from rvqlm.data.store import DTYPES, Key, RvqMmapWriter, Shard, code_dtype, frames_to_seconds
from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.items import Skipped, TokenItem
from rvqlm.files import atomic_folder, atomic_open, json_line, sha256_of, write_json
from rvqlm.version import __version__

CUTS_PER_SHARD = 20_000


# ------------------------------------------------------------------------------------ reading


def read_items(
    manifest: str | os.PathLike,
    info: CodecInfo,
    directory: str | os.PathLike | None = None,
    split: str | None = None,
) -> Iterator[TokenItem]:
    """The items of a manifest of token cuts, one at a time.

    Args:
        manifest: JSONL, gzipped or not.
        info: the codec that the tokens are of.
        directory: token directory whose shards are preferred to the paths in the manifest.
        split: kept in the items.

    Raises `UserError` naming the cut for what is no token cut of this codec or has no shard.
    """

    @functools.cache
    def shard(path: str) -> Shard:
        here = Path(directory or "") / "codes" / Path(path).name
        return Shard(here if directory is not None and here.exists() else path)

    for number, cut in enumerate(read_manifest(manifest), 1):
        try:
            yield _item(cut, info, shard, str(manifest), split)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{manifest}, cut {number}: incomplete ({e!r})") from None


def _item(
    cut: dict, info: CodecInfo, shard: Callable[[str], Shard], where: str, split: str | None
) -> TokenItem:
    path, key, ends = locate(cut, info, where)
    whole = Key.parse(cut["features"]["storage_key"])
    codes = shard(path).view(key.offset, key.frames, key.codebooks, DTYPES[key.dtype])
    custom = dict(cut.get("custom") or {})
    first = (key.offset - whole.offset) // (key.codebooks * DTYPES[key.dtype].itemsize)
    if key.frames < whole.frames:  # a window
        if custom.get("scales") is not None or info.segment is not None:
            raise UserError(
                f"{where}: cut {cut['id']!r} is a window of a recording whose codec stores scales "
                "for segments of its own; use the whole recording"
            )
        if "num_samples" in custom:
            left = int(custom["num_samples"]) - first * info.hop
            custom["num_samples"] = max(0, min(left, key.frames * info.hop))
        if first:  # the window becomes an array of its own; None: where it begins is not known
            start = custom.get("recording_start")
            start = None if start is None else start + frames_to_seconds(first, info)
            custom["recording_start"] = start
    custom.pop("ends_recording", None)
    if not ends:
        custom["ends_recording"] = False
    return TokenItem(
        cut["id"],
        codes,
        cut["features"].get("recording_id"),
        cut.get("channel", 0),
        list(cut.get("supervisions") or []),
        custom,
        split,
    )


def read_token_dir(
    directory: str | os.PathLike, splits: Sequence[str | None] = (None,)
) -> Iterator[TokenItem]:
    """Items of a token directory: of all cuts (None), or of some splits one after another.

    Raises `UserError` for a split that there is not, or one of an older ``cuts.jsonl.gz``.
    """
    info = CodecInfo.from_dict(read_sidecar(directory)["codec"])
    if any(split is not None for split in splits):
        require_current_split(Path(directory))
    for split in splits:
        name = "cuts.jsonl.gz" if split is None else f"cuts_{split}.jsonl.gz"
        if not (Path(directory) / name).exists():
            there = ", ".join(splits_of(directory)) or "none: run rvqlm split"
            raise UserError(f"--split {split}: no {name} in {directory}; its splits: {there}")
        yield from read_items(Path(directory) / name, info, directory, split)


# ------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def new_folder(out_dir: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill that becomes `out_dir` when the block ends, and vanishes after an error.

    Raises `UserError` where there is something already: nothing is overwritten.
    """
    out = Path(out_dir)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"--out-dir {out}: a file of that name exists; choose a folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out-dir {out}: not empty; choose another folder or remove this one")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_folder(out) as folder:
            yield folder
    except OSError as e:  # numpy reports a short write without a number
        if e.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = e.strerror or f"could not be written ({e})"
        raise UserError(f"--out-dir {out}: {reason}; free some space") from None


@dataclass
class Written:
    """What a new token directory holds."""

    num_cuts: int = 0
    num_frames: int = 0
    hours: float = 0.0
    skipped: int = 0
    first_skipped: Skipped | None = None


def write_token_dir(
    out_dir: str | os.PathLike,
    info: CodecInfo,
    items: Iterable[TokenItem | Skipped],
    source: dict,
    audio_manifest: str | os.PathLike | None = None,
    cuts_per_shard: int = CUTS_PER_SHARD,
) -> Written:
    """Make a token directory of a stream of items; it appears complete or not at all.

    Args:
        out_dir: as the user gave it; paths in the manifests begin with it.
        info: the codec of all of them.
        items: in order; an item with a `split` is also listed in that split's manifest, those
            without frames, with codes that the codec does not have or with the id of another, and
            `Skipped` ones go to ``skipped.jsonl``.
        source: what ``tokens.json`` remembers of where they came from.
        audio_manifest: gzipped manifest of the audio cuts to put beside the tokens, if there is
            one.

    Raises `UserError` for tokens of another codec, and where not one item is usable; then nothing
    is left behind.
    """
    made, samples = Written(), 0
    seen: set[bytes] = set()
    dtype = code_dtype(info.codebook_size)
    with new_folder(out_dir) as folder, contextlib.ExitStack() as stack:
        (folder / "codes").mkdir()
        manifests = {None: stack.enter_context(atomic_open(folder / "cuts.jsonl.gz", 4))}
        skips = stack.enter_context(open(folder / "skipped.jsonl", "wb"))
        writer: RvqMmapWriter | None = None
        for item in items:
            cut = _cut_of(item, info, dtype, seen) if isinstance(item, TokenItem) else item
            if isinstance(cut, Skipped):
                skips.write(json_line(vars(cut)))
                made.skipped += 1
                made.first_skipped = made.first_skipped or cut
                continue
            if made.num_cuts % cuts_per_shard == 0:
                if writer is not None:
                    writer.close()
                path = folder / "codes" / f"shard-{made.num_cuts // cuts_per_shard:05d}.rvq"
                writer = stack.enter_context(RvqMmapWriter(path, dtype=dtype))
            cut.features.storage_key = writer.write(item.id, item.codes)
            cut.features.storage_path = str(Path(out_dir) / "codes" / writer.path.name)
            line = json_line(cut.to_dict())
            for name in {None, item.split}:
                if name not in manifests:
                    path = folder / f"cuts_{name}.jsonl.gz"
                    manifests[name] = stack.enter_context(atomic_open(path, 4))
                manifests[name].write(line)
            made.num_cuts += 1
            made.num_frames += len(item.codes)
            samples += item.num_samples(info)
        if not made.num_cuts:
            why = f"; the first of {made.skipped}, {made.first_skipped}" if made.skipped else ""
            raise UserError(f"{out_dir}: nothing to make tokens of{why}")
        if audio_manifest is not None:
            shutil.copyfile(audio_manifest, folder / "audio_cuts.jsonl.gz")
        stack.close()
        made.hours = samples / info.sampling_rate / 3600
        sidecar = {
            "codec": info.to_dict(),
            "dtype": dtype,
            "num_cuts": made.num_cuts,
            "num_frames": made.num_frames,
            "hours": made.hours,
            "shards": [
                {
                    "path": f"codes/{path.name}",
                    "bytes": path.stat().st_size,
                    "sha256": sha256_of(path),
                }
                for path in sorted((folder / "codes").iterdir())
            ],
            "audio_manifest": "audio_cuts.jsonl.gz" if audio_manifest is not None else "",
            "skipped": made.skipped,
            "input": source,
            "rvqlm_version": __version__,
        }
        write_json(folder / "tokens.json", sidecar, indent=2, checksum=True)
    return made


def _cut_of(item: TokenItem, info: CodecInfo, dtype: str, seen: set[bytes]) -> MonoCut | Skipped:
    """The cut of an item, whose codes are still to be stored, or why it is left out; `UserError`
    for tokens of another codec."""
    if len(item.codes) == 0:
        return Skipped(item.id, item.id, "no frames")
    try:
        item.require_made_by(info)
    except UserError as e:
        if item.in_range(info.codebook_size):  # else it may be damaged, and the others fine
            raise
        return Skipped.of(item.id, item.id, e)
    digest = hashlib.blake2b(item.id.encode(errors="surrogatepass"), digest_size=8).digest()
    if digest in seen:
        reason = f"two items have the id {item.id!r}; ids name cuts, each needs its own"
        return Skipped(item.id, item.id, reason)
    try:
        cut = item.cut("", str(Key(0, *item.codes.shape, dtype)), info)
        item.num_samples(info)
    except (TypeError, ValueError, LookupError, AttributeError, UserError) as e:
        return Skipped(item.id, item.id, f"its description is damaged: {reason_of(e)}")
    seen.add(digest)
    return cut
