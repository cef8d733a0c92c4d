"""How much memory this machine has, and how much of it is free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_FOLDER = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes. `free` counts what the system can take back from its file caches."""

    total: int
    free: int


@dataclass(frozen=True)
class _CgroupFiles:
    limit: str
    used: str
    statistics: str
    caches: tuple[str, ...]
    """The statistics of what the system takes back when a container needs memory."""


_VERSION_2 = _CgroupFiles(
    "memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file", "slab_reclaimable")
)
_VERSION_1 = _CgroupFiles(
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    ("total_inactive_file", "total_active_file"),
)


def measure_memory(cgroup: Path = CGROUP_FOLDER) -> Memory:
    """The memory of the machine or, if that is less, of the container (a cgroup) that this process runs in."""
    machine = psutil.virtual_memory()
    for files in (_VERSION_2, _VERSION_1):
        limit, used = _read_number(cgroup / files.limit), _read_number(cgroup / files.used)
        if limit is not None and used is not None and limit < machine.total:
            caches = sum(_read_statistic(cgroup / files.statistics, name) for name in files.caches)
            return Memory(limit, min(limit, machine.available, max(0, limit - used + caches)))
    return Memory(machine.total, machine.available)


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _read_statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
