"""How much memory batches need, measured by trying them, and how much there is: a GPU's own, or the
host's within the limits of the container.

On a GPU a forward and backward pass is made and its peak read; running out is caught. On a CPU
nothing can be caught, the kernel kills, so only the forward pass is made and what it keeps for the
backward pass is counted. There the process grows by about 2.2 bytes (1.7 to 2.5 measured, float32
and bf16, three families) for each of these, since the heap's free blocks don't match; `HEAP` counts
2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

import torch
from torch import nn

from rvqlm.batch import Batch

HEAP = 2.5
"""Bytes that a process on a CPU grows by for each that the forward pass keeps."""
USABLE = 0.9
"""Share of the free memory that is planned with. The rest is for other lengths of batches
(fragments), the libraries' workspaces, and validation."""
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number of about 2^63 for no limit."""


class Memory:
    """What batches need of a device, and what there is.

    :param optimizer_bytes: of states that the first step has yet to make.
    :param processes: that share the memory of the host: ranks on this machine.
    :param free: bytes of host memory that can be taken; `free_memory` by default.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        optimizer_bytes: int,
        processes: int = 1,
        free: Callable[[], int | None] | None = None,
    ):
        self.model, self.device, self.dtype = model, device, dtype
        self.optimizer_bytes, self.processes = optimizer_bytes, processes
        self.free = free or free_memory

    def room(self) -> int | None:
        """Bytes to plan with; None where the device doesn't tell."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return int(USABLE * torch.cuda.mem_get_info(self.device)[0])
        free = self.free() if self.device.type == "cpu" else None
        return None if free is None else int(USABLE * free / self.processes)

    def need(self, batch: Batch) -> float:
        """Bytes of a step with `batch` beyond what is taken now, infinite if a GPU ran out.

        Leaves weights, mode and random state as they are, and no gradients.
        """
        training = self.model.training
        cuda = self.device.type == "cuda"
        try:
            with torch.random.fork_rng([self.device] if cuda else []):
                if cuda:
                    return self._peak(batch) + self.optimizer_bytes
                kept = activation_bytes(self.model, batch, self.device, self.dtype)
                return self.fixed + HEAP * kept
        finally:
            self.model.train(training)

    @property
    def fixed(self) -> float:
        """Bytes that any batch needs: gradients and the optimizer's states."""
        gradients = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return gradients + self.optimizer_bytes

    def _peak(self, batch: Batch) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            self._pass(batch)
            peak = torch.cuda.max_memory_allocated(self.device) - before
        except torch.OutOfMemoryError:
            peak = inf
        # after the handler: the exception holds the tensors of the frames that it came through
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return peak

    def _pass(self, batch: Batch) -> None:
        self.model.train()
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            out = self.model(batch.to(self.device))
        out.loss.backward()


def activation_bytes(model, batch: Batch, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that the forward pass of `batch` keeps for the backward pass, measured by one."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = model(batch.to(device))
    del out
    return sum(kept.values())


def optimizer_bytes(model, config) -> int:
    """Bytes of the moments that the first step will make, and of the averages.

    :param config: `OptimConfig`.
    """
    numbers = sum(p.numel() for p in model.parameters())
    hidden = sum(p.numel() for p in model.muon_parameters()) if config.optimizer == "muon" else 0
    averages = numbers if config.ema_decay else 0
    return 4 * (2 * numbers - hidden + averages)


def free_memory(
    meminfo: str | Path = "/proc/meminfo",
    cgroup: str | Path = "/proc/self/cgroup",
    root: str | Path = "/sys/fs/cgroup",
) -> int | None:
    """Bytes that can be taken without swapping or being killed; None where nothing tells.

    The least of what the kernel calls available and what each control group above this process has
    left, versions 1 and 2, file cache that can be dropped counted as free. Batch systems and
    containers set such limits, and the kernel kills whoever exceeds them.
    """
    left = [_group_left(folder, names) for folder, names in _groups(Path(cgroup), Path(root))]
    left.append(_available(Path(meminfo)))
    known = [max(0, n) for n in left if n is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _groups(cgroup: Path, root: Path):
    """(folder, names of its files) of the groups of this process, and all above them."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        # in a container the path may be the host's and not exist; the top is then its own group
        folder = top / path.strip("/")
        while folder != top:
            yield folder, names
            folder = folder.parent
        yield top, names


def _group_left(folder: Path, names: tuple[str, str, str]) -> int | None:
    limit_name, usage_name, cache_name = names
    try:
        limit = int((folder / limit_name).read_text())  # "max": ValueError
        if limit >= _NO_LIMIT:
            return None
        used = int((folder / usage_name).read_text())
    except (OSError, ValueError):
        return None
    try:
        stat = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
        used -= int(stat.get(cache_name, 0))
    except (OSError, ValueError):
        pass
    return limit - used
