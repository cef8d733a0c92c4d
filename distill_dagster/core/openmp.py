"""Limit how long OpenMP threads spin while they wait. Must run before llama.cpp or PyTorch load OpenMP."""

from __future__ import annotations

import os

SPIN_COUNT = "10000"
"""How often a waiting thread checks for work before it sleeps. On two idle cores, work takes 0.55 (embedded teacher)
and 0.7 (training) of the time that it takes if threads sleep at once. The library's default spins longer, which is many
times slower if another process is busy."""


def limit_openmp_spin() -> None:
    """Set the variables that GNU OpenMP reads when it loads, unless the user has set them.

    With other implementations threads sleep at once.
    """
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPIN_COUNT}
