#!/usr/bin/env python3
"""What a corpus takes: bytes, objects, requests, memory, hours and money, from a few numbers.

    python tools/cost.py                             # a million hours, DAC's nine levels
    python tools/cost.py --hours 5000 --frame-rate 50 --levels 8 --encode-rate 235

Nothing is looked up. Prices are arguments; their defaults are round figures of 2025 for one region
of a large cloud, on demand, and are no offer. What a cut costs in time and memory was measured with
tools/bench/scale.py (docs/scale.md); all that is printed is reckoned from that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError

# a cut of tools/bench/scale.py: bytes on the disk, microseconds of one core, bytes of memory
MANIFEST_BYTES = 49  # both manifests, compressed
COMBINE_US, LIST_US, SPLIT_US, INDEX_US, PLAN_US = 29, 7, 27, 13, 0.14
LIST_MEMORY, SPLIT_MEMORY, PLAN_MEMORY, INDEX_BYTES = 50, 190, 38, 12


@dataclass
class Args:
    """The corpus, how it is encoded, the model and the prices."""

    hours: float = 1e6
    """Of audio."""
    mean_seconds: float = 10.0
    """Of a cut."""
    source_kbps: float = 128.0
    """Of the audio as it comes."""
    frame_rate: float = 44100 / 512
    """Frames a second of the codec; DAC's at 44.1 kHz."""
    levels: int = 9
    """Codes of a frame."""
    code_bytes: int = 2
    """Of a code as stored: 2 up to 65,536 entries."""
    parts: int = 1000
    """Jobs of the array."""
    shards: int = 8
    """Of a part."""
    encode_rate: float = 1.6
    """Seconds of audio that a core, or a GPU, encodes in a second: DAC on one CPU core, measured; a
    GPU is to be measured with tools/bench/codec.py."""
    encode_price: float = 0.05
    """Dollars for an hour of that: a core, 2025."""
    parameters: float = 1e9
    """Of the model, those that a frame goes through."""
    epochs: float = 1.0
    """Passes over the corpus."""
    flops: float = 990e12
    """Of a GPU in a second: H100, bf16."""
    mfu: float = 0.35
    """Share of it that is used; an assumption."""
    gpus: int = 16
    """That train, eight a machine."""
    gpu_price: float = 3.0
    """Dollars for an hour of a GPU, 2025."""
    storage_price: float = 0.023
    """Dollars for a GB and month, 2025."""
    put_price: float = 5.0
    """Dollars for a million writing requests, 2025."""
    get_price: float = 0.4
    """Dollars for a million reading requests, 2025."""
    egress_price: float = 0.09
    """Dollars for a GB that leaves the region, 2025; inside one nothing is reckoned."""

    def __post_init__(self) -> None:
        if bad := [k for k, v in vars(self).items() if not 0 <= v < float("inf")]:
            raise UserError("; ".join(f"{k} is negative or not a number" for k in bad))
        if bad := [k for k in ("mean_seconds", "encode_rate", "flops", "mfu") if not vars(self)[k]]:
            raise UserError("; ".join(f"{k} is 0" for k in bad))


def reckon(a: Args) -> Iterator[tuple[str, str]]:
    """(what, how much), in the order of the work."""
    seconds, machines = 3600 * a.hours, max(1, a.gpus // 8)
    cuts, frames = seconds / a.mean_seconds, seconds * a.frame_rate
    codes, source = frames * a.levels * a.code_bytes, seconds * a.source_kbps * 125
    shards, manifest = a.parts * a.shards, cuts * MANIFEST_BYTES
    yield "cuts", number(cuts)
    yield "audio as it comes", size(source)
    yield "codes", f"{size(codes)} in {shards:,} shards of {size(codes / shards)}"
    yield "manifests, compressed", size(manifest)
    yield "indexes", size(cuts * INDEX_BYTES)
    encode = seconds / a.encode_rate / 3600
    yield (
        "encoding",
        f"{number(encode)} hours of a core or GPU, {encode / a.parts:,.0f} a part; "
        f"{dollars(encode * a.encode_price)}",
    )
    yield (
        "listing, by each job",
        f"{hours(cuts * LIST_US / 1e6)}, {size(cuts * LIST_MEMORY)} of memory",
    )
    for name, us, memory in (
        ("combine", COMBINE_US, 0),
        ("split", SPLIT_US, SPLIT_MEMORY),
        ("index", INDEX_US, 0),
    ):
        held = f", {size(cuts * memory)} of memory" if memory else ""
        yield name, f"{hours(cuts * us / 1e6)}{held}"
    yield (
        "plan of an epoch",
        f"{hours(cuts * PLAN_US / 1e6)} at a start, {size(cuts * PLAN_MEMORY)} of memory a rank",
    )
    speed = a.flops * a.mfu / (6 * a.parameters) if a.parameters else 0.0
    if speed:
        train = frames * a.epochs / speed / 3600
        yield (
            "a GPU",
            f"{number(speed * 3600)} frames an hour, {number(speed * 3600 * a.levels)} tokens; "
            f"reads {speed * a.levels * a.code_bytes / 1e6:,.1f} MB/s",
        )
        yield (
            "training",
            f"{number(train)} GPU-hours, {train / max(1, a.gpus) / 24:,.1f} days on {a.gpus}; "
            f"{dollars(train * a.gpu_price)}",
        )
    puts, gets = (shards + 4 * a.parts) / 1e6, (shards * machines + 4 * a.parts) / 1e6
    yield (
        "requests",
        f"{puts * 1e6:,.0f} to write, {gets * 1e6:,.0f} to read (every shard once by each of "
        f"{machines} machines); {dollars(puts * a.put_price + gets * a.get_price)}",
    )
    yield "a bucket, a month", f"{dollars((codes + manifest) / 1e9 * a.storage_price)} for codes"
    yield "out of the region", f"{dollars((codes + manifest) / 1e9 * a.egress_price)} a copy"


def number(value: float) -> str:
    for unit, name in (
        (1e15, "quadrillion"),
        (1e12, "trillion"),
        (1e9, "billion"),
        (1e6, "million"),
    ):
        if value >= unit:
            return f"{value / unit:,.3g} {name}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    for power, name in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if value >= 1000**power:
            return f"{value / 1000**power:.3g} {name}"
    return f"{value:.0f} B"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:,.0f} s"


def dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:,.2f}"


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "cost.py", "What a corpus takes: bytes, requests, hours, money.", argv)
    for what, value in reckon(args):
        print(f"{what:<22}{value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "cost")


if __name__ == "__main__":
    sys.exit(main())
