"""The parts of a token directory as one: `rvqlm combine`.

All that the parts say of themselves is compared before anything is written. Their manifests are
then streamed into one, in the order of the input, and their shards get a second name in it (they
are copied where a file cannot have two). ``tokens.json`` comes last; until then the parts are as
they were, so that whatever interrupts this, it can be done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rvqlm.audio.cuts import make_folder
from rvqlm.audio.source import part_digest
from rvqlm.cli import bar, counted
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import SHARD_BITS, manifest_lines, read_manifest, read_sidecar
from rvqlm.data.store import check_shard
from rvqlm.errors import UserError
from rvqlm.files import atomic_write, link_or_copy, read_json, read_jsonl, remove
from rvqlm.remote.session import named
from rvqlm.tokenizing.parts import Part, numbers, part_folders, parts_path, read_parts
from rvqlm.tokenizing.plan import Identity
from rvqlm.tokenizing.schemas import Parts, PartSidecar, Skip, TokenCut
from rvqlm.tokenizing.shard import disk_error, shard_path
from rvqlm.tokenizing.sidecar import (
    Manifests,
    Summary,
    nothing_usable,
    write_sidecar,
    writing_manifests,
)


def combine(out: Path, keep_parts: bool = False, checksums: bool = False) -> Summary:
    """Make the parts in `out` one token directory; memory does not grow with the number of cuts.

    :param keep_parts: leave their folders where they are.
    :param checksums: read every shard to compare its checksum; else only sizes are compared.
    :raises UserError: one line, for parts that are missing, with the command that makes them; that
        are damaged; that are of another codec, input or setting.
    """
    if (out / "tokens.json").exists():
        sidecar = read_sidecar(out)
        if parts_path(out).exists():  # a kill before they were removed
            _identity(read_parts(out)).require_same(sidecar, out)
            if not keep_parts:
                remove_folders(out)
        print(f"{out}: complete, {counted(sidecar['num_cuts'], 'cut')}; nothing to do")
        return Summary.of(sidecar)
    record = read_parts(out)
    sidecars = list(_checked(out, record))
    shards = sum(len(sidecar["shards"]) for sidecar in sidecars)
    if shards > 1 << SHARD_BITS:
        raise UserError(
            f"{out}: {shards:,} shards, and an index takes {1 << SHARD_BITS:,}; tokenize in fewer "
            "parts"
        )
    try:
        summary = _merged(out, record, sidecars, checksums)
    except OSError as e:
        raise disk_error(e, out) from None
    if not keep_parts:
        remove_folders(out)
    return summary


def remove_folders(out: Path) -> None:
    """Drop the parts of a finished token directory."""
    for _, folder in part_folders(out):
        remove(folder)
    parts_path(out).unlink(missing_ok=True)


def _identity(record: Parts) -> Identity:
    return Identity(
        CodecInfo.from_dict(record["codec"]),
        *(record["input"][k] for k in ("path", "items", "digest")),
        record["audio"],
        record["compute_dtype"],
    )


def _checked(out: Path, record: Parts) -> Iterator[dict]:
    """``tokens.json`` of every part; `UserError` unless they are what one listing was cut into."""
    whole, count = _identity(record), record["of"]
    folders = {part: path for part, path in part_folders(out)}
    if foreign := [str(path) for part, path in folders.items() if part.of != count]:
        raise UserError(
            f"{out} is made in {count} parts, and {foreign[0]} is one of others; remove it"
        )
    parts = [Part(number, count) for number in range(count)]
    missing = [p.number for p in parts if not (p.folder(out) / "tokens.json").exists()]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{out}: {counted(len(missing), 'part')} of {count} {are} missing or unfinished: "
            f"{numbers(missing)}; run {_again(record, missing[0])}"
            + (" and so on" if len(missing) > 1 else "")
        )
    end = 0
    for part in parts:
        folder = part.folder(out)
        remedy = f"remove {folder} and run {_again(record, part.number)}"
        sidecar = read_json(folder / "tokens.json", remedy, type=PartSidecar)
        where = sidecar["part"]
        first, last = where["first"], where["last"]
        if (where["number"], where["of"]) != (part.number, count):
            raise UserError(f"{folder} holds part {where['number']}/{where['of']}; {remedy}")
        digest = part_digest(whole.digest, first, last)
        identity = Identity(
            whole.codec, whole.path, last - first, digest, whole.audio, whole.compute_dtype
        )
        identity.require_same(sidecar, folder)
        if first != end:
            raise UserError(f"{folder} begins with item {first}, not {end}; {remedy}")
        end = last
        yield sidecar
    if end != whole.items:
        raise UserError(
            f"{out}: the parts end with item {end} of {whole.items}; remove the last and run "
            f"{_again(record, count - 1)}"
        )


def _again(record: Parts, number: int) -> str:
    return f"{record['command']} --part {number}/{record['of']}"


def _merged(out: Path, record: Parts, sidecars: list[dict], checksums: bool) -> Summary:
    """Write shards, manifests and sidecar."""
    make_folder(out / "codes", "--out-dir")
    shards: list[dict] = []
    with writing_manifests(out) as made:
        for number, sidecar in enumerate(bar(sidecars, "combining", unit="parts")):
            folder = Part(number, record["of"]).folder(out)
            paths = {}
            for entry in sidecar["shards"]:
                source, target = folder / entry["path"], shard_path(out, len(shards))
                check_shard(source, entry["bytes"], entry.get("sha256") if checksums else None)
                atomic_write(target, partial(link_or_copy, source))
                paths[source.name] = named(str(target))
                shards.append(entry | {"path": shard_path("", len(shards)).as_posix()})
            remedy = f"remove {folder} and run {_again(record, number)}"
            _append(made, folder, sidecar, paths, remedy)
    whole = _identity(record)
    if not made.cuts:
        raise nothing_usable(out, made)
    return write_sidecar(out, made, shards, whole.codec, whole.recorded())


def _append(
    made: Manifests, folder: Path, sidecar: dict, paths: dict[str, str], remedy: str
) -> None:
    """Add the manifests of a part, with the `paths` that its shards have now, by name."""
    before = made.cuts, made.skipped, made.warned
    cuts = read_manifest(folder / "cuts.jsonl.gz", TokenCut)
    for cut, audio in zip(cuts, manifest_lines(folder / "audio_cuts.jsonl.gz"), strict=False):
        features = cut["features"]
        name = Path(features["storage_path"]).name
        if name not in paths:
            raise UserError(f"{folder}: cut {cut['id']!r} lies in no shard of its; {remedy}")
        features["storage_path"] = paths[name]
        made.add(cut, audio, 0)
    made.pcm += sidecar.get("pcm_bytes", 0)
    for name, add in (("skipped", made.skip), ("warned", made.warn)):
        path = folder / f"{name}.jsonl"
        if sidecar.get(name):
            for item in read_jsonl(path, str(path), remedy, Skip):
                add(item)
    found = made.cuts - before[0], made.skipped - before[1], made.warned - before[2]
    said = sidecar["num_cuts"], sidecar["skipped"], sidecar.get("warned", 0)
    if found != said:
        what = ("cuts", "skipped", "warned")
        differing = [f"{f} {w} where {s} belong" for f, s, w in zip(found, said, what) if f != s]
        raise UserError(f"{folder} has {', '.join(differing)}; {remedy}")
