"""Writing and reading tokens: rvq_mmap beside lhotse's other integer-safe storages.

    python tools/bench/store.py --cuts 5000

Writes the same random codes (K = 9, int16, 1 to 20 s at 86.13 frames/s) through rvq_mmap,
NumpyFilesWriter, NumpyHdf5Writer and Shar's ArrayTarWriter, then loads random cuts through
``cut.load_features()`` and checks them bit by bit. Shar has no random access: its reads are
sequential. "rvqlm index" is the path that training takes, without lhotse objects, and the last
line an epoch of the loader. Everything is in the page cache; files are deleted at the end.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.features.io import NumpyFilesWriter, NumpyHdf5Writer
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy

from rvqlm.cli import parse, run_main
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.data.store import RvqMmapWriter, token_cut

INFO = CodecInfo("descript/dac_44khz", "0" * 16, 44100, 512, 9, 1024)


@dataclass
class Args:
    cuts: int = 5000
    """Cuts to write: about 15.5 KB each and storage."""
    reads: int = 10_000
    """Random reads."""
    seed: int = 0
    """Of lengths, codes and the order of reads."""


def arrays(args: Args) -> list[np.ndarray]:
    """Views into one block of random codes: making them costs nothing while the clock runs."""
    rng = np.random.default_rng(args.seed)
    frames = np.ceil(rng.uniform(1, 20, args.cuts) * float(INFO.frame_rate)).astype(int)
    block = rng.integers(0, INFO.codebook_size, (4 * frames.max(), 9)).astype(np.int16)
    starts = rng.integers(0, len(block) - frames, args.cuts)
    return [block[a : a + n] for a, n in zip(starts.tolist(), frames.tolist())]


def folder_size(path: Path) -> int:
    """Bytes on disk, blocks counted whole."""
    return sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def timed(fn: Callable) -> tuple[float, object]:
    began = time.perf_counter()
    result = fn()
    return time.perf_counter() - began, result


def bench_writer(name: str, make: Callable, data, picks, directory: Path, cuts) -> dict:
    """Write through a lhotse writer, read random cuts back through lhotse."""

    def write() -> list[str]:
        with make() as writer:
            return [(writer.write(f"cut-{n}", a), writer.storage_path) for n, a in enumerate(data)]

    spent, keys = timed(write)
    stored = [
        fastcopy(cut, features=fastcopy(cut.features, storage_type=name, storage_path=path,
                                        storage_key=key))
        for cut, (key, path) in zip(cuts, keys)
    ]  # fmt: skip
    files = open_files()
    read, _ = timed(lambda: [stored[n].load_features() for n in picks])
    for n in picks[:200]:
        np.testing.assert_array_equal(stored[n].load_features(), data[n])
    return {
        "write": len(data) / spent,
        "read": len(picks) / read,
        "bytes": folder_size(directory) / sum(a.size for a in data),
        "files": open_files() - files,
        "cuts": stored,
    }


def bench_shar(cuts: list[MonoCut], data, directory: Path) -> dict:
    """Shar from our cuts (their loading, which is quick, is in the time); sequential reading."""

    def write() -> dict:
        with SharWriter(str(directory), fields={"features": "numpy"}, shard_size=1000) as writer:
            for cut in cuts:
                writer.write(cut)
            return writer.output_paths

    spent, paths = timed(write)
    files = open_files()

    def read() -> int:
        return sum(len(cut.load_features()) > 0 for cut in CutSet.from_shar(fields=paths))

    took, count = timed(read)
    assert count == len(data)
    for cut, expected in zip(CutSet.from_shar(fields=paths), data[:200]):
        np.testing.assert_array_equal(cut.load_features(), expected)
    return {
        "write": len(data) / spent,
        "read": count / took,
        "bytes": folder_size(directory) / sum(a.size for a in data),
        "files": open_files() - files,
    }


def bench_index(cuts: list[MonoCut], data, picks, directory: Path) -> tuple[dict, str]:
    """The training path over the shard that is already there."""
    sidecar = {"codec": INFO.to_dict(), "dtype": "int16", "shards": [], "skipped": 0}
    sidecar |= {"num_cuts": 0, "num_frames": 0, "hours": 0.0}
    (directory / "tokens.json").write_text(json.dumps(sidecar))
    with gzip.open(directory / "cuts_train.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    build_index(directory, "train")
    ds = TokenDataset.open(directory, "train")
    read, _ = timed(lambda: [ds.read(n) for n in picks])
    for n in picks[:200]:
        np.testing.assert_array_equal(ds.read(n), data[n])
    loader = TokenLoader(ds, PlanConfig(), seed=0)
    steps = loader.epoch_steps
    spent, tokens = timed(lambda: sum(int(next(loader).lengths.sum()) for _ in range(steps)) * 9)
    loader.close()
    line = (
        f"loader: {tokens / spent / 1e6:,.0f} M tokens/s, {len(ds) / spent:,.0f} cuts/s, one thread"
    )
    return {"read": len(picks) / read}, line


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "store.py", "Token storages side by side.", argv)
    data = arrays(args)
    rng = random.Random(args.seed)
    picks = [rng.randrange(args.cuts) for _ in range(args.reads)]
    total = sum(a.nbytes for a in data)
    print(f"{args.cuts:,} cuts, {total / 1e6:,.0f} MB of codes, {args.reads:,} random reads")
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = {n: Path(name) / n for n in ("rvq", "npy", "hdf5", "shar")}
        for path in folder.values():
            path.mkdir()
        shard = folder["rvq"] / "codes/shard-00000.rvq"
        offset, cuts = 0, []
        for n, a in enumerate(data):
            key = f"{offset},{len(a)},9,int16"
            cuts.append(token_cut(f"cut-{n}", shard, key, INFO, f"rec-{n}"))
            offset += a.nbytes
        sides = {
            "rvq_mmap": ("rvq", lambda: RvqMmapWriter(shard)),
            "numpy_files": ("npy", lambda: NumpyFilesWriter(folder["npy"])),
            "numpy_hdf5": ("hdf5", lambda: NumpyHdf5Writer(folder["hdf5"] / "a.h5")),
        }
        for side, (where, make) in sides.items():
            results[side] = bench_writer(side, make, data, picks, folder[where], cuts)
        ours = results["rvq_mmap"].pop("cuts")
        results["shar"] = bench_shar(ours, data, folder["shar"])
        results["rvqlm index"], loader = bench_index(ours, data, picks, folder["rvq"])
    base = results["rvq_mmap"]
    print(f"{'':<14}{'write cuts/s':>22}{'read cuts/s':>22}{'bytes/token':>13}{'open files':>12}")
    for side, r in results.items():
        line = f"{side:<14}"
        for key in ("write", "read"):
            value = f"{r[key]:,.0f} ({base[key] / r[key]:.1f}x)" if key in r else "same shard"
            line += f"{value:>22}"
        if "bytes" in r:
            line += f"{r['bytes']:>13.2f}{r['files']:>+12d}"
        print(line)
    print(f"(in brackets: rvq_mmap's speed over the row's)\n{loader}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "store")


if __name__ == "__main__":
    sys.exit(main())
