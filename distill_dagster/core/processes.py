"""Name processes across hosts and restarts, see whether one has ended, and measure this one's memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from functools import lru_cache
from pathlib import Path

import psutil

INITIAL_NAMESPACE = "pid:[4026531836]"
"""The namespace of process ids that Linux starts with (`PROC_PID_INIT_INO`)."""


def name_host(node: str, namespace: str) -> str:
    """Name where process ids mean the same: a machine, or a container, which may have the name of its machine."""
    own = re.sub(r"\D", "", namespace) if namespace not in ("", INITIAL_NAMESPACE) else ""
    return f"{node[:60]}/{own}" if own else node[:60]


def _read_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not on Linux
        return ""


HOST = name_host(platform.node(), _read_namespace())
"""The name of this machine or container."""


@lru_cache(maxsize=4)
def _format_process_name(pid: int) -> str:
    return f"{HOST}:{pid}:{psutil.Process(pid).create_time():.0f}"


def get_process_name() -> str:
    """The name of this process: host, process id and start time in seconds, since the system reuses ids."""
    return _format_process_name(os.getpid())


def measure_peak_mb() -> float:
    """Peak memory of this process in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def is_on_other_host(name: str) -> bool:
    """Whether a process runs on another host, where its state is unknown."""
    return name.rsplit(":", 2)[0] != HOST


def is_process_gone(name: str) -> bool:
    """Whether a process of this host has ended. Returns False for processes of other hosts: their state is unknown."""
    if is_on_other_host(name):
        return False
    _, pid, began = name.rsplit(":", 2)
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.0f}" != began or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def describe_process(name: str) -> str:
    """Describe a process for a person who waits for it: its id, and its host if that is another one."""
    host, pid, _ = name.rsplit(":", 2)
    if is_on_other_host(name):
        return f"process {pid} on {host}"
    try:
        is_stopped = psutil.Process(int(pid)).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        is_stopped = False
    return f"process {pid}, which is suspended: continue it with `kill -CONT {pid}`" if is_stopped else f"process {pid}"
