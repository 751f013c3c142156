"""What the tables of speeds of `gpu.py` share: seconds by the GPU's events, launches and waits of
the host, what a card can do, memory that does not suffice, and the tables in Markdown."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from gpu_checks import NotRun, Where, waited
from simulated_cuda import Gpu, simulated_cuda
from torch.profiler import ProfilerActivity, profile
from train_step_cases import peak

from rvqlm.training.meter import Stopwatch, peak_bandwidth, peak_flops

LAUNCH = re.compile(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")
"""Calls of CUDA by which the host gives the GPU something to do."""
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Size:
    """Of a model, and of the batches it is given."""

    dim: int = 768
    layers: int = 16
    heads: int = 12
    codebooks: int = 9
    codebook_size: int = 1024
    batch: int = 6
    frames: int = 512
    frame_rate: float = 44100 / 512
    checkpointing: bool = False


class Place(NamedTuple):
    """Where a row is measured."""

    device: torch.device
    gpu: Gpu | None
    """That is simulated."""
    quick: bool
    """Nothing is timed: everything is done once."""


@contextmanager
def place(where: Where, simulated: bool = True) -> Iterator[Place]:
    """The GPU, or the simulated one, or, of what cannot be simulated, the CPU."""
    if not where.simulated:
        yield Place(where.device, None, False)
    elif not simulated:
        yield Place(torch.device("cpu"), None, True)
    else:
        with simulated_cuda() as gpu:
            yield Place(torch.device("cuda", 0), gpu, True)


def median_seconds(
    place: Place, work: Callable[[], object], warm: int = 2, most: int = 10, seconds: float = 2.0
) -> float:
    """Of three times or more, as many as the seconds allow, the first ones aside."""
    watch = Stopwatch(place.device)
    if place.quick:
        warm, most = 0, 1
    for _ in range(warm):
        work()
    until = time.monotonic() + seconds
    for done in range(most):
        if done >= 3 and time.monotonic() > until:
            break
        with watch(str(done)):
            work()
    return statistics.median(watch.take().values())


def counted(place: Place, work: Callable[[], object]) -> tuple[int | None, int | None]:
    """Launches of the host in `work`, kernels and copies, and how often it waits for the GPU; None
    where that is not known."""
    if place.device.type == "cpu":
        work()
        return None, None
    if place.gpu is not None:
        before = place.gpu.launches.total()
        waits = waited(work).total()
        return place.gpu.launches.total() - before, waits
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    launches = sum(bool(LAUNCH.match(e.name)) for e in found.events())
    return launches or None, waited(work).total()  # none where the driver lets nobody count


def ahead(one: float, two: float, number: int) -> float:
    """What grows by the same with each, of so many, from that of one and of two: launches by layers
    and micro-batches, of which a simulated GPU has few."""
    return one + (number - 1) * (two - one)


def swept() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


class TooLarge(NotRun):
    """The GPU has too little memory; how much there would have to be."""


def within_memory(work: Callable):
    """What `work` returns, or `TooLarge`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        return work()
    except torch.OutOfMemoryError as e:
        found = re.search(r"Tried to allocate ([\d.,]+) (\w+)", str(e))
        tried = float(found[1].replace(",", "")) * UNITS[found[2]] if found else 0.0
        need = max(torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated() + tried)
    swept()  # after the handler: the exception holds tensors
    raise TooLarge(f"at least {need / 2**30:.1f} GiB needed: out of memory")


# ------------------------------------------------------------------------------------- the card


@cache
def copied(device: torch.device, numbers: int = 1 << 28) -> float:
    """Bytes a second that a GPU reads and writes where a large array is copied."""
    x = torch.zeros(numbers, device=device)
    y = torch.empty_like(x)
    at = Place(device, None, False)
    return 2 * x.nbytes / median_seconds(at, lambda: y.copy_(x), most=20)


@cache
def multiplied(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few products of large matrices."""
    return peak(device, dtype)


def bandwidth(at: Place) -> float:
    """Bytes a second that MBU is a share of; nothing of a simulated GPU is one."""
    return 1.0 if at.quick else peak_bandwidth(at.device) or copied(at.device)


def flops(at: Place) -> float:
    """Operations a second in bf16 that MFU is a share of."""
    if at.quick:
        return 1.0
    bf16 = torch.bfloat16
    return peak_flops(at.device, bf16) or multiplied(at.device, bf16)


def beside_sheet(where: Where, measured: Callable[[], float], sheet: Callable, unit: str) -> str:
    if where.simulated:
        return "simulated"
    size = {"T": 1e12, "G": 1e9}[unit[0]]
    known = sheet()
    says = "not in the table: the rows are of this" if known is None else f"of {known / size:,.0f}"
    return f"{measured() / size:,.0f} {unit}, {says}"


def of_the_card(where: Where) -> dict[str, Callable[[], str]]:
    """Checks: what the card can do, measured, beside what its data sheet says."""
    device, bf16 = where.device, torch.bfloat16
    return {
        "products": partial(
            beside_sheet, where, partial(multiplied, device, bf16),
            partial(peak_flops, device, bf16), "TFLOP/s",
        ),
        "copies": partial(
            beside_sheet, where, partial(copied, device), partial(peak_bandwidth, device), "GB/s"
        ),
    }  # fmt: skip


# ------------------------------------------------------------------------------------ the tables


@dataclass(frozen=True)
class Table:
    title: str
    names: tuple[str, ...]
    """Columns of what the name of a check says, in parts between commas."""
    columns: dict[str, str]
    """Figures and how they are written."""
    timed: tuple[str, ...]
    """Those that a simulated GPU has none of."""

    def row(self, at: Place, figures: dict) -> Row:
        return Row(self, figures | dict.fromkeys(self.timed, "simulated") if at.quick else figures)

    def cell(self, figures: dict, column: str) -> str:
        value = figures.get(column)
        if value is None or isinstance(value, str):
            return value or "-"
        return format(value, self.columns[column])

    def markdown(self, checks: list[dict]) -> list[str]:
        """Of the record of a part; what has no figures says why in the place of one."""
        heads, first = [*self.names, *self.columns], [*self.columns].index(self.timed[0])
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for check in checks:
            names = check["name"].split(", ")
            if len(names) != len(self.names):
                continue
            cells = [self.cell(check["figures"] or {}, c) for c in self.columns]
            if not check["figures"]:
                cells[first] = "not run" if check["said"] == "no time left" else check["said"]
            lines.append("| " + " | ".join([*names, *cells]) + " |")
        return lines


class Row(dict):
    """Figures of a row, which read as its line."""

    def __init__(self, table: Table, figures: dict):
        super().__init__(figures)
        self.table = table

    def __str__(self) -> str:
        said = ((self.table.cell(self, column), column) for column in self.table.columns)
        known = (f"{column} {cell}" for cell, column in said if cell not in ("-", "simulated"))
        return ", ".join(known) or "simulated"


def tables(by_part: dict[str, Table], record: dict) -> str:
    """All of which there are checks, in Markdown."""
    machine, lines = record["machine"], []
    for part, table in by_part.items():
        checks = [c for c in record["checks"] if c["part"] == part]
        if checks:
            of_card = [f"{c['name']} {c['said']}" for c in checks if ", " not in c["name"]]
            lines += ["", f"{table.title}; {'; '.join(of_card)}:", "", *table.markdown(checks)]
    if lines:
        card = "a simulated GPU" if record["args"]["simulate"] else machine["gpus"][0]
        lines.insert(0, f"\n{card}, torch {machine['torch']}, commit {machine['commit']}")
    return "\n".join(lines)
