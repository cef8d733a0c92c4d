"""How OpenMP's threads wait for each other: to be settled before llama.cpp or PyTorch load OpenMP."""

from __future__ import annotations

import os

SPIN_COUNT = "10000"
"""Turns of the waiting loop before a thread sleeps. On two idle cores the embedded teacher needs 0.55, and training
0.7, of the time that threads need which sleep at once. Beside another busy process threads that spin on (the library's
own choice) need many times as long: so not longer."""


def limit_openmp_spin() -> None:
    """Set what GNU OpenMP reads when it is loaded. What the user has set stays; other implementations sleep at once."""
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPIN_COUNT}
