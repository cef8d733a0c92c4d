"""The order in which a training sees its rows: which rows make one optimizer step, on which rank."""

from __future__ import annotations

import random
from collections.abc import Iterator


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
