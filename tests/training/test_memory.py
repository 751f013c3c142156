import pytest
import torch
from families import make, random_batch

from rvqlm.training.memory import HEAP, USABLE, Memory, activation_bytes, free_memory

MB = 2**20


@pytest.fixture
def system(tmp_path):
    """Write files of a system by path, then ask how much memory is free."""

    def free(**files: str) -> int | None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return free_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")

    return free


MEMINFO = f"MemTotal: 9999999 kB\nMemFree: 12 kB\nMemAvailable:   {8000 * 1024} kB\n"


def test_without_groups_it_is_what_the_kernel_calls_available(system):
    assert system() is None
    assert system(meminfo="nonsense") is None
    assert system(meminfo=MEMINFO) == 8000 * MB
    assert system(cgroup="0::/nowhere\n") == 8000 * MB


def test_version_2_counts_every_limit_above(system):
    v2 = {
        "meminfo": MEMINFO,
        "cgroup": "0::/job/step\n",
        "fs__job__step__memoryDOTmax": "max\n",
        "fs__job__step__memoryDOTcurrent": f"{900 * MB}\n",
    }
    assert system(**v2) == 8000 * MB
    job = {
        "fs__job__memoryDOTmax": f"{4000 * MB}\n",
        "fs__job__memoryDOTcurrent": f"{3000 * MB}\n",
        "fs__job__memoryDOTstat": f"anon 7\ninactive_file {500 * MB}\nactive_file 9\n",
    }
    assert system(**job) == 1500 * MB  # cache can be dropped
    assert system(fs__job__step__memoryDOTmax=f"{1000 * MB}\n") == 100 * MB
    assert system(fs__job__step__memoryDOTcurrent=f"{1001 * MB}\n") == 0
    assert system(meminfo=f"MemAvailable: {50 * 1024} kB") == 0


def test_version_1_and_a_container_whose_path_is_the_hosts(system):
    v1 = {
        "meminfo": MEMINFO,
        "cgroup": "5:cpu,cpuacct:/\n4:memory:/on/the/host\n0::/\n",
        "fs__memory__memoryDOTlimit_in_bytes": "9223372036854771712\n",
        "fs__memory__memoryDOTusage_in_bytes": f"{700 * MB}\n",
    }
    assert system(**v1) == 8000 * MB
    assert system(fs__memory__memoryDOTlimit_in_bytes=f"{1000 * MB}\n") == 300 * MB
    stat = f"inactive_file 1\ntotal_inactive_file {200 * MB}\n"
    assert system(fs__memory__memoryDOTstat=stat) == 500 * MB


def test_what_is_counted():
    cpu, f32, model = torch.device("cpu"), torch.float32, make("delay")
    batch = random_batch(model, [10, 10, 10, 9])

    def memory_of(free, **flags):
        return Memory(model, cpu, f32, 1000, free=lambda: free, **flags)

    weights = sum(4 * p.numel() for p in model.parameters())
    kept = activation_bytes(model, batch, cpu, f32)
    assert memory_of(0).need(batch) == 1000 + weights + HEAP * kept
    assert memory_of(10**9).room() == int(USABLE * 10**9)
    assert memory_of(10**9, processes=4).room() == int(USABLE * 10**9 / 4)
    assert Memory(model, torch.device("mps"), f32, 0).room() is None
