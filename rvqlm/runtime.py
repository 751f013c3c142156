"""The machine under the program: allocator, device, precision, seeds, processes, and a description
of it all.

Entry points call `tune_malloc` before anything allocates; results and samples carry
`describe_machine` so that every number says where it was measured.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import itertools
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvqlm.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc malloc.h

PRIMITIVES = 128
"""Kernels of oneDNN that are kept. It makes 20 to 40 for every shape of a batch in bf16 or fp16,
about 1 MB each, and keeps 1,024 unless told otherwise: 1 to 2 GB by and by, which looks like a leak
and saves nothing where shapes rarely come again. To make them takes some 40 ms a step."""


def tune_malloc() -> bool:
    """Keep freed memory in the process instead of handing it back to the kernel; keep few kernels
    of oneDNN (`PRIMITIVES`). Before torch computes anything.

    glibc maps every block over 32 MiB anew and unmaps it when freed, so a training step on a CPU
    spends up to half its time in page faults. Same effect as ``MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=8000000000`` in the environment, which wins when set. Returns whether
    it took effect (Linux with glibc only). ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` and
    ``LRU_CACHE_CAPACITY``, of oneDNN and of torch's layer above it, win when set too.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRIMITIVES))
    if "MALLOC_MMAP_MAX_" in os.environ:
        return True
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # mallopt takes an int: 2 GiB - 1 is the most, and in practice the heap's top never shrinks
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def use_device(name="auto"):
    """`pick_device` for the whole process: what names no GPU, such as the events that take times,
    means this one too, and no other is touched."""
    import torch

    device = pick_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def pick_device(name="auto"):
    """`torch.device` for ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``; `UserError` if none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise UserError(
                f"--device {name}: this machine has {count} CUDA devices; use --device cpu"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: no MPS here; use --device cpu")
    return device


_WITHOUT_BF16 = {
    "cpu": "this CPU has neither AMX nor AVX-512 BF16 and would emulate it; use --precision auto "
    "or fp32",
    "cuda": "this GPU is older than compute capability 8.0 and would emulate it; use --precision "
    "fp16 or fp32",
}


def has_fast_bf16(device) -> bool:
    """Whether the hardware multiplies bf16 matrices natively.

    On a CPU without AMX or AVX-512 BF16 the products are emulated and run hundreds of times
    slower than float32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, p)() for p in probes if hasattr(torch.cpu, p))
    return False


def pick_precision(name: str, device):
    """`torch.dtype` of autocast for ``auto``, ``bf16``, ``fp16`` or ``fp32``.

    ``auto`` is bf16 where `has_fast_bf16`, float32 elsewhere. ``bf16`` where it is emulated is
    refused: it works, many times too slowly to be what anybody meant.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name == "bf16" and device.type in _WITHOUT_BF16 and not has_fast_bf16(device):
        raise UserError(f"--precision bf16: {_WITHOUT_BF16[device.type]}")
    try:
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    except KeyError:
        raise UserError(f"--precision {name!r}: choose auto, bf16, fp16 or fp32") from None


def set_tf32(allowed: bool) -> None:
    """Whether GPUs multiply float32 matrices, those of convolutions too, with TF32's ten bits of
    mantissa.

    By torch's older names alone: it refuses to be asked once these and its newer ones were mixed.
    """
    import torch

    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def without_tf32() -> Iterator[None]:
    """`set_tf32(False)` for as long as the context lasts."""
    import torch

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed of its own for each (seed, rank, step): splitmix64 of the three in turn."""
    mask, x = (1 << 64) - 1, 0
    for value in (seed, rank, step):
        x = (x + value + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return x >> 1


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Any], Any],
    items: Iterable[Any],
    jobs: int,
    method: str | None = None,
    flag: str = "--jobs",
) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) for each item in their order, made by `jobs` processes; 0: by this one.

    Only some items at a time are taken and held. The processes end with the iteration.

    :param method: "fork" or "spawn"; None: fork where that is safe.
    :param flag: what to lower if memory is short.
    """
    if jobs == 0:
        for item in items:
            yield item, work(item)
        return
    method = method or ("fork" if sys.platform == "linux" else "spawn")
    before = set(multiprocessing.active_children())
    # Ctrl-C is the parent's business
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context(method), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    complete = False
    try:
        submitted = ((item, pool.submit(work, item)) for item in items)
        waiting = deque(itertools.islice(submitted, 4 * jobs))
        while waiting:
            item, future = waiting.popleft()
            value = future.result()
            waiting.extend(itertools.islice(submitted, 1))
            yield item, value
        complete = True
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed (out of memory?); run it again with fewer {flag}"
        ) from None
    finally:
        pool.shutdown(wait=complete, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()


def git_commit() -> str | None:
    """Commit of the checkout this package lies in, ``+dirty`` when changed; None outside git."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict:
    """CPU, cores, GPUs, versions and commit, as JSON-ready values."""
    import torch

    from rvqlm.version import __version__

    return {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "rvqlm": __version__,
        "commit": git_commit(),
    }


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules are made without memory, and no weights drawn: on the meta device torch would load
    its compiler to do so, which takes longer than to read a model."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs) if func is not torch.hann_window else torch.empty(*args)

    with torch.device("meta"), Undrawn():
        yield
