"""Choices about the machine, and what they refuse."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from rvqlm import runtime
from rvqlm.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_precision_follows_the_hardware(monkeypatch, fast):
    monkeypatch.setattr(runtime, "has_fast_bf16", lambda device: fast)
    expected = torch.bfloat16 if fast else torch.float32
    assert runtime.pick_precision("auto", CPU) == expected
    assert runtime.pick_precision("fp32", CPU) == torch.float32
    if fast:
        assert runtime.pick_precision("bf16", CPU) == torch.bfloat16
    else:
        with pytest.raises(UserError, match="would emulate it"):
            runtime.pick_precision("bf16", CPU)


def test_devices_that_are_not_there_are_refused():
    assert runtime.pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device cuda:77"):
        runtime.pick_device("cuda:77")
    with pytest.raises(UserError, match="toaster"):
        runtime.pick_device("toaster")


def test_the_device_of_a_process_is_set_where_it_has_a_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second = torch.device("cuda", 1)
    assert runtime.use_device("cuda:1") == runtime.use_device(second) == second
    assert runtime.use_device("cuda").index is None and runtime.use_device("cpu") == CPU
    assert runtime.pick_device("cuda:1") == second and chosen == [second] * 2


def test_bf16_is_refused_on_gpus_without_it(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert runtime.pick_precision("auto", cuda) == torch.float32
    assert runtime.pick_precision("fp16", cuda) == torch.float16
    with pytest.raises(UserError, match=r"--precision bf16: this GPU is older .* fp16 or fp32"):
        runtime.pick_precision("bf16", cuda)


def test_tf32_is_one_switch_for_products_and_convolutions():
    def now():  # the first raises where torch's older and newer names were mixed
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        )

    before = now()
    try:
        for allowed, expected in ((True, ("high", True, True)), (False, ("highest", False, False))):
            runtime.set_tf32(allowed)
            assert now() == expected
            with runtime.without_tf32():
                assert now() == ("highest", False, False)
            assert now() == expected
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[2]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_tuned_malloc_keeps_memory():
    """Freed blocks come back without new page faults."""
    code = """
import resource, sys, numpy as np
from rvqlm.runtime import tune_malloc
if sys.argv[1] == "tuned": assert tune_malloc()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for n in range(6):
    if n == 1: before = faults()
    np.ones(64 << 17)
print(faults() - before)
"""
    count = {
        kind: int(subprocess.check_output([sys.executable, "-c", code, kind], text=True))
        for kind in ("plain", "tuned")
    }
    assert count["tuned"] * 10 < count["plain"]


@pytest.mark.skipif(not runtime.has_fast_bf16(CPU), reason="bf16 on this CPU is no work of oneDNN")
def test_tuned_malloc_bounds_what_many_shapes_leave_behind():
    """Matrix products of ever new shapes: memory of the second hundred, which is no longer new."""
    code = """
import sys
from rvqlm.runtime import tune_malloc
if sys.argv[1] == "tuned": tune_malloc()
import torch
torch.set_num_threads(1)
weight = torch.randn(64, 64, dtype=torch.bfloat16)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4
for n in range(2, 402):
    if n == 202: before = resident()
    torch.randn(n, 64, dtype=torch.bfloat16) @ weight
print(resident() - before)
"""
    # other tests may have set them in this process
    capacities = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    env = {k: v for k, v in os.environ.items() if k not in capacities}
    grown = {
        kind: int(subprocess.check_output([sys.executable, "-c", code, kind], text=True, env=env))
        for kind in ("plain", "tuned")
    }
    assert grown["tuned"] * 2 < grown["plain"]


def test_the_description_names_what_results_need():
    described = runtime.describe_machine()
    assert described["torch"] == torch.__version__ and described["cores"] >= 1
    assert {"cpu", "gpus", "python", "rvqlm", "commit"} <= described.keys()
