"""Waiting for a condition. No test waits for a fixed time: how fast a machine is says nothing about the code."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_S = 900
"""After so many seconds something hangs, even on a machine that does much else."""


def wait_until(condition: Callable[[], object], what: str, pause_s: float = 0.05) -> None:
    """Return once the condition is true.

    Raises:
        AssertionError: it was not within `HANG_S`; names `what` was waited for.
    """
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {HANG_S} s in vain: {what}"
        time.sleep(pause_s)
