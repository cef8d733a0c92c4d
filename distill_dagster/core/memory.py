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


def measure_memory(cgroup: Path = CGROUP_FOLDER) -> Memory:
    """The memory of the machine or, if that is less, of the container (cgroup version 2) that this process runs in."""
    machine = psutil.virtual_memory()
    limit, used = _read_number(cgroup / "memory.max"), _read_number(cgroup / "memory.current")
    if limit is None or used is None or limit >= machine.total:
        return Memory(machine.total, machine.available)
    caches = _read_statistic(cgroup / "memory.stat", "inactive_file")
    return Memory(limit, min(machine.available, max(0, limit - used + caches)))


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
