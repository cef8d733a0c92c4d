"""The order of rows: every row once, fixed by seed and epoch, divided among ranks."""

from __future__ import annotations

import pytest

from distill_dagster.student.batches import LengthBatchSampler

LENGTHS = [i % 7 for i in range(50)]


def test_batches_have_every_row_once_and_change_with_the_epoch() -> None:
    batches = LengthBatchSampler(LENGTHS, 8, seed=3)
    first = list(batches)
    assert first == list(batches), "the order depends on the epoch, not on how often it was read"
    batches.set_epoch(1)
    second = list(batches)
    assert len(first) == len(batches) == 7
    assert sorted(i for b in first for i in b) == sorted(i for b in second for i in b) == list(range(50))
    assert first != second
    assert first != list(LengthBatchSampler(LENGTHS, 8, seed=4))
    batches.set_epoch(0)
    assert first == list(batches)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_see_disjoint_rows_of_the_same_steps(ranks: int) -> None:
    whole = list(LengthBatchSampler(LENGTHS, 8, seed=3))
    shares = [list(LengthBatchSampler(LENGTHS, 8, seed=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        seen = [row for share in shares for row in share[step]]
        assert sorted(seen) == sorted(batch)
    assert {len(share) for share in shares} == {len(whole)}
    assert any([] in share for share in shares) == (ranks > 50 % 8)
