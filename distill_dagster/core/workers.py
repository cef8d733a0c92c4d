"""Where a stage computes the parts of a large table: in its own process, or on workers elsewhere.

A stage divides its rows itself, in the same way wherever the parts run. So what it makes does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class Workers(Protocol):
    """Applies functions to parts of a table."""

    @property
    def is_remote(self) -> bool:
        """Whether parts are computed by other processes. Functions and parts must be picklable then."""
        ...

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
        """The results of a function for each part, in order. A few parts are in memory at a time.

        Raises:
            DistillError: no worker can be reached, or the function raised it.
        """
        ...


class InProcess:
    """Computes one part after the other in this process."""

    is_remote = False

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
        """The results of a function for each part, in order."""
        return map(function, parts)


IN_PROCESS = InProcess()


def map_parts(workers: Workers, function: Callable[[P], R], parts: Sequence[P]) -> Iterator[R]:
    """`Workers.map`, but in this process if there is only one part: to send it would save nothing."""
    return (workers if len(parts) > 1 else IN_PROCESS).map(function, parts)


def find_part_bounds(rows: int, size: int) -> Sequence[tuple[int, int]]:
    """The first row and the end of each part of so many rows."""
    return list(pairwise([*range(0, rows, size), rows]))
