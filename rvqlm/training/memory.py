"""How much memory a process may still take: the host's, within the limits of its container."""

from __future__ import annotations

from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number of about 2^63 for no limit."""


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
