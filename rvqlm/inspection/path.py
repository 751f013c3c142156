"""What a file or folder is: one function that looks at names and first bytes and asks the right
reader.

`look` returns a `Look`: the kind of thing, its facts by name in the order they are shown, and,
where it holds tokens, counts of a sample of its codes. Nothing large is read whole.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from rvqlm.audio.cuts import clock
from rvqlm.checkpoints.loading import last_stage
from rvqlm.cli import counted
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import MAGIC as INDEX_MAGIC
from rvqlm.data.index import index_path, read_sidecar, same_file, splits_of
from rvqlm.data.mapped import map_columns
from rvqlm.data.schemas import IndexHeader
from rvqlm.data.store import DTYPES, Shard
from rvqlm.errors import UserError, reason_of
from rvqlm.exchange.codec import codec_beside, read_codec
from rvqlm.exchange.items import TokenItem, TokenSource
from rvqlm.exchange.npq import MAGIC as NPQ_MAGIC
from rvqlm.exchange.npq import read_npq
from rvqlm.exchange.npy import MANIFEST, read_npy
from rvqlm.exchange.shar import shar_files
from rvqlm.exchange.source import open_tokens
from rvqlm.inspection import model as inspect_model
from rvqlm.inspection.codes import CodeCounts, count_codes
from rvqlm.inspection.manifest import look_at_manifest
from rvqlm.inspection.records import look_at_record

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yml", ".yaml.gz")
_FRAMES_A_CUT = 1000  # a shard does not know its cuts
_MOST_FILES = 100_000  # of a folder without a meaning of its own


@dataclass
class Look:
    """What something is."""

    kind: str
    facts: dict = field(default_factory=dict)
    """values for JSON, in the order to show them"""
    codec: CodecInfo | None = None
    codes: CodeCounts | None = None
    problems: list[str] = field(default_factory=list)


def look(path: str | os.PathLike, max_cuts: int = 1000) -> Look:
    """Find out what a path is.

    Args:
        path: a file or folder.
        max_cuts: how many cuts to count the codes of, spread over all; 0: none.

    Raises `UserError` for what does not exist, is damaged, or is nothing known.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(path, max_cuts)
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: neither a file nor a folder")
        with open(path, "rb") as file:
            start = file.read(16)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: {reason_of(e)}") from None
    found = _file(path, start, max_cuts)
    found.facts = {"bytes": path.stat().st_size, **found.facts}
    return found


def _file(path: Path, start: bytes, max_cuts: int) -> Look:
    name = path.name.lower()
    if start.startswith(NPQ_MAGIC):
        return _npq(path, max_cuts)
    if not start:
        raise UserError(f"{path}: an empty file")
    if start.startswith(INDEX_MAGIC):
        return _index(path)
    if start.startswith(b"\x93NUMPY"):
        return _npy(path, max_cuts)
    if name == "codec.json":
        return Look("codec description", codec=read_codec(path)[0])
    if (
        name == "tokens.json"
        or (name == MANIFEST and (path.parent / "codec.json").is_file())
        or (name in ("config.json", "model.safetensors") and inspect_model.is_model(path.parent))
    ):
        return _folder(path.parent, max_cuts)
    if name.endswith(".rvq"):
        return _shard(path, max_cuts)
    if name.endswith(".npq"):
        read_npq(path)  # says what is wrong with it
    if record := look_at_record(path, start):
        return Look(*record)
    if name.endswith(MANIFEST_SUFFIXES):
        found = Look(*look_at_manifest(path))
        if found.kind == "manifest of token cuts" and max_cuts:
            source = open_tokens([path])
            source.count, found.codec = found.facts["cuts"], source.info
            found.codes = _count(source, source.info, max_cuts)
        return found
    for reader in (inspect_model.look_at_weights, inspect_model.look_at_audio):
        if found := reader(path):
            return Look(*found)
    raise UserError(
        f"{path}: nothing that rvqlm knows; known are token directories, lhotse manifests, .rvq "
        "shards, indices, NPQ, .npy, Shar, checkpoints, experiments, codec weights and audio"
    )


# ---------------------------------------------------------------------------------- tokens


def _count(source: TokenSource, info: CodecInfo | None, max_cuts: int) -> CodeCounts | None:
    size = info.codebook_size if info else None
    return count_codes(source.items, size, max_cuts, source.count)


def _npq(path: Path, max_cuts: int) -> Look:
    header, codes = read_npq(path)
    counts = count_codes([TokenItem(path.name, codes)], max(header.vocab_sizes), max_cuts)
    return Look("NPQ file", header.to_dict(), codec_beside(path), counts)


def _npy(path: Path, max_cuts: int) -> Look:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as e:
        raise UserError(f"{path}: a damaged .npy file ({reason_of(e)})") from None
    facts = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.ndim != 2 or array.dtype.kind not in "iu":
        return Look("numpy array (no tokens: those are two-dimensional integers)", facts)
    found = Look("numpy array of codes, read as (T, K)", facts, codec_beside(path))
    if array.size and int(array.min()) >= 0 and array.shape[1] <= 1024:
        size = found.codec.codebook_size if found.codec else None
        found.codes = count_codes([TokenItem(path.name, read_npy(path))], size, max_cuts)
    return found


def _shard(path: Path, max_cuts: int) -> Look:
    """A shard has no header: the directory it lies in says what is in it."""
    folder = path.absolute().parent.parent
    kind = "token shard"
    if not (folder / "tokens.json").is_file():
        return Look(kind, {"note": f"no {folder / 'tokens.json'}, which says what is in a shard"})
    sidecar = read_sidecar(folder)
    info = CodecInfo.from_dict(sidecar["codec"])
    dtype = DTYPES[sidecar["dtype"]]
    entry = next((s for s in sidecar["shards"] if Path(s["path"]).name == path.name), None)
    problems = []
    size = path.stat().st_size
    if entry is None:
        problems.append(f"{folder / 'tokens.json'} does not list this shard")
    elif entry["bytes"] != size:
        problems.append(f"{size} bytes, {folder / 'tokens.json'} says {entry['bytes']}")
    K = info.num_codebooks
    frames = size // (K * dtype.itemsize)
    facts = {"token_directory": str(folder), "dtype": dtype.name, "num_frames": frames}
    codes = Shard(path).view(0, min(frames, max_cuts * _FRAMES_A_CUT), K, dtype)
    counts = count_codes([TokenItem(path.name, codes)], info.codebook_size, max_cuts)
    return Look(kind, facts, info, counts, problems)


def _index(path: Path) -> Look:
    try:
        header, _ = map_columns(path, INDEX_MAGIC, IndexHeader)
    except (ValueError, OSError) as e:
        raise UserError(f"{path}: a damaged index ({e}); run rvqlm index again") from None
    facts = {k: header[k] for k in ("num_cuts", "num_frames", "hours", "dtype", "fingerprint")}
    facts["shards"] = len(header["shards"])
    manifest = path.parent / header["manifest"]["name"]
    facts["manifest"] = manifest.name
    info = CodecInfo.from_dict(header["codec"])
    current = same_file(manifest, header["manifest"])
    problem = f"{manifest} is not what it was made of; run rvqlm index again"
    return Look("index of a split", facts, info, problems=[] if current else [problem])


# --------------------------------------------------------------------------------- folders


def _folder(path: Path, max_cuts: int) -> Look:
    if (path / "tokens.json").is_file():
        return _token_dir(path, max_cuts)
    training = last_stage(path)
    if (training / "latest.pt").is_file() or (training / "best.pt").is_file():
        kind, facts, info = inspect_model.look_at_experiment(training)
        if training != path:
            facts = {"stage": training.name, **facts}
        return Look(kind, facts, info)
    if (path / "codec.json").is_file() or shar_files(path)[0]:
        return _export(path, max_cuts)
    if inspect_model.is_model(path):
        return Look(*inspect_model.look_at_pretrained(path))
    if (path / "config.json").is_file():
        return Look(*inspect_model.look_at_codec(path))
    return _plain_folder(path)


def _token_dir(path: Path, max_cuts: int) -> Look:
    sidecar = read_sidecar(path)
    info = CodecInfo.from_dict(sidecar["codec"])
    shards = sidecar["shards"]
    splits: dict[str, str] = {}
    problems = []
    for split in splits_of(path):
        index = index_path(path, split)
        if index.exists():
            try:
                seen = _index(index)
            except UserError as e:
                splits[split], problems = "damaged index", [*problems, str(e)]
                continue
            held = counted(seen.facts["num_cuts"], "cut")
            splits[split] = f"{held}, {clock(3600 * seen.facts['hours'])}, indexed"
            problems += seen.problems
        else:
            splits[split] = "no index: run rvqlm index"
    for shard in shards:
        file = path / shard["path"]
        size = file.stat().st_size if file.exists() else None
        if size != shard["bytes"]:
            found = "missing" if size is None else f"{size} bytes instead of {shard['bytes']}"
            problems.append(f"{file}: {found}")
    facts = {
        "cuts": sidecar.get("num_cuts"),
        "hours": sidecar.get("hours"),
        "num_frames": sidecar.get("num_frames"),
        "dtype": sidecar.get("dtype"),
        "shards": len(shards),
        "token_bytes": sum(s["bytes"] for s in shards),
        "splits": splits or "none: run rvqlm split",
        "skipped": sidecar.get("skipped"),
        "input": (sidecar.get("input") or {}).get("path"),
        "rvqlm_version": sidecar.get("rvqlm_version"),
    }
    counts = None if problems else _count(open_tokens([path]), info, max_cuts)
    return Look("token directory", facts, info, counts, problems)


def _export(path: Path, max_cuts: int) -> Look:
    source, facts = open_tokens([path]), {}
    if (path / "codec.json").is_file():
        splits = read_codec(path / "codec.json")[1].get("splits") or []
        facts["splits"] = ", ".join(splits) or "none"
    if source.count:
        facts["files"] = source.count
    kind = {"shar": "lhotse Shar of tokens", "npy": "export of tokens as .npy files"}
    kind = kind.get(source.kind, f"folder of {source.kind}")
    return Look(kind, facts, source.info, _count(source, source.info, max_cuts))


def _plain_folder(path: Path) -> Look:
    """A folder that means nothing by itself: what its first files are."""
    from rvqlm.audio.read import AUDIO_SUFFIXES

    names = (name for _, _, names in os.walk(path) for name in names)
    suffixes = [Path(name).suffix.lower() for name in islice(names, _MOST_FILES)]
    kinds = Counter("audio" if s in AUDIO_SUFFIXES else s or "no suffix" for s in suffixes)
    held = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(6)) or "nothing"
    known = {
        "audio": "folder of audio: rvqlm tokenize reads it",
        ".npq": "folder of NPQ files: rvqlm npq info and rvqlm npq import read it",
        ".npy": "folder of .npy files: rvqlm import reads it",
    }
    for kind, words in known.items():
        if kind in kinds:
            return Look(words, {"files": held})
    raise UserError(f"{path}: a folder of nothing that rvqlm knows ({held})")
