"""A small token directory made in a temporary folder, for the tests of this room and of others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from lhotse import SupervisionSegment

import rvqlm
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import build_index
from rvqlm.data.store import Key, RvqMmapWriter, code_dtype, token_cut
from rvqlm.files import sha256_of, write_json

INFO = CodecInfo("test", "0123456789abcdef", 16000, 320, 3, 64)


def make_tokens(
    directory: Path,
    frames: list[int],
    info: CodecInfo = INFO,
    seed: int = 0,
    num_shards: int = 1,
    speakers: int = 0,
    split: str | None = "train",
    given: list[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Write a token directory with cuts of `frames` frames; returns their codes: those `given`, or
    random ones.

    With `split`, ``cuts_SPLIT.jsonl.gz`` and its index are written too.
    """
    rng = np.random.default_rng(seed)
    dtype = code_dtype(info.codebook_size)
    directory = Path(directory)
    (directory / "codes").mkdir(parents=True, exist_ok=True)
    paths = [directory / "codes" / f"shard-{n:05d}.rvq" for n in range(num_shards)]
    writers = [RvqMmapWriter(path, dtype=dtype) for path in paths]
    codes, lines = [], []
    for n, count in enumerate(frames):
        array = rng.integers(0, info.codebook_size, (count, info.num_codebooks)).astype(dtype)
        array = array if given is None else given[n].astype(dtype)
        writer, name = writers[n % num_shards], f"cut-{n:04d}"
        key = writer.write(name, array)
        duration = count * info.hop / info.sampling_rate
        segments = []
        if speakers:
            speaker = f"speaker-{n % speakers}"
            segments = [SupervisionSegment(name, name, 0.0, duration, 0, "a text", speaker=speaker)]
        cut = token_cut(
            name, writer.storage_path, key, info, name, 0, segments, num_samples=count * info.hop
        )
        codes.append(array)
        lines.append(json.dumps(cut.to_dict()) + "\n")
    for writer in writers:
        writer.close()
    sidecar = {
        "codec": info.to_dict(),
        "dtype": dtype,
        "num_cuts": len(frames),
        "num_frames": sum(frames),
        "hours": sum(frames) * info.hop / info.sampling_rate / 3600,
        "shards": [
            {"path": f"codes/{p.name}", "bytes": p.stat().st_size, "sha256": sha256_of(p)}
            for p in paths
        ],
        "audio_manifest": "",
        "skipped": 0,
        "rvqlm_version": getattr(rvqlm, "__version__", "0"),
    }
    write_json(directory / "tokens.json", sidecar, checksum=True)
    for name in ["cuts.jsonl.gz"] + ([f"cuts_{split}.jsonl.gz"] if split else []):
        with gzip.open(directory / name, "wt") as file:
            file.writelines(lines)
    if split:
        build_index(directory, split)
    return codes


def drop_checksums(directory: Path) -> None:
    """Make the files of a token directory those of a version that had no checksums."""
    for path in directory.glob("*.json"):
        values = json.loads(path.read_text())
        if values.pop("checksum", None):
            path.write_text(json.dumps(values))
    for path in directory.glob("*.bin"):
        data = path.read_bytes()
        size = int.from_bytes(data[8:16], "little")
        header = json.loads(data[16 : 16 + size])
        for name in ("checksum", "columns"):
            header.pop(name, None)
        text = json.dumps(header).encode().ljust(size)
        path.write_bytes(data[:16] + text + data[16 + size :])


__all__ = ["INFO", "Key", "drop_checksums", "make_tokens"]
