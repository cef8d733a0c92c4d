"""Which rows make one optimizer step, on which rank, and which of them are computed at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Item = dict[str, Any]
"""One encoded row, from `student.encode`. `length` is in tokens."""


class LengthBatchSampler:
    """The rows of every optimizer step: batches of rows of similar length.

    Rows are shuffled and cut into blocks of 16 batches, and each block is sorted by length. So batches are random and
    have little padding. The order of an epoch depends on the seed and the epoch alone. So a training that goes on from
    a checkpoint sees the rows that it would have seen.

    With several ranks, every batch is divided among them: no row is on two ranks. A rank gets no row of a batch that
    has fewer rows than there are ranks.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.lengths, self.batch_size, self.seed, self.rank, self.ranks = lengths, batch_size, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        block = 16 * self.batch_size
        batches = []
        for start in range(0, len(order), block):
            part = sorted(order[start : start + block], key=lambda i: self.lengths[i])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        rng.shuffle(batches)
        return (batch[self.rank :: self.ranks] for batch in batches)


@dataclass(frozen=True)
class MicroBatches:
    """How an optimizer step is cut into the rows that are computed at once.

    A micro batch has at most `rows` rows and, with padding, `tokens` tokens; None: no limit.
    """

    rows: int | None
    tokens: int | None = None

    def count_rows(self, length: int, rows: int) -> int:
        """How many of these rows, all of the same length in tokens, are computed at once."""
        if self.rows is not None:
            rows = min(rows, self.rows)
        return rows if self.tokens is None else min(rows, max(1, self.tokens // length))

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens:,} tokens"
        return f"{self.rows:,} rows" if self.rows is not None else "whole step"

    def cut(self, items: Sequence[Item]) -> list[list[Item]]:
        """Cut the rows of a step. With a limit of tokens, rows of similar length are computed together."""
        if self.tokens is not None:
            items = sorted(items, key=lambda item: item["length"])
        parts: list[list[Item]] = []
        for item in items:
            longest = max(item["length"], *(other["length"] for other in parts[-1])) if parts else 0
            if not parts or not self._has_room(len(parts[-1]) + 1, longest):
                parts.append([])
            parts[-1].append(item)
        return parts

    def _has_room(self, rows: int, longest: int) -> bool:
        fits_rows = self.rows is None or rows <= self.rows
        return fits_rows and (self.tokens is None or rows * longest <= self.tokens)


WHOLE_STEP = MicroBatches(rows=None)
"""All rows of a step are computed at once."""
