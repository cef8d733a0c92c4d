"""Which process something belongs to, and whether that process is gone."""

from __future__ import annotations

import os
import platform
from functools import lru_cache

import psutil

HOST = platform.node()[:60]


@lru_cache(maxsize=4)
def _format_process_name(pid: int) -> str:
    return f"{HOST}:{pid}:{psutil.Process(pid).create_time():.0f}"


def get_process_name() -> str:
    """This process: host, number and the second in which it began, since numbers come again."""
    return _format_process_name(os.getpid())


def is_on_other_host(name: str) -> bool:
    """Whether a process is one of another host, of which nothing can be seen from here."""
    return name.rsplit(":", 2)[0] != HOST


def is_process_gone(name: str) -> bool:
    """Whether a process of this host has ended; of one elsewhere it is not known, and not said."""
    if is_on_other_host(name):
        return False
    _, pid, began = name.rsplit(":", 2)
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.0f}" != began or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_process_alive(pid: int, started: float | None) -> bool:
    """Whether the process that started a run at that time is still there, and not another one with its number."""
    try:
        process = psutil.Process(pid)
        later = started is not None and process.create_time() > started
        return not later and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
