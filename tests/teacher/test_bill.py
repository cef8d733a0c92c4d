"""What a task was billed, by teacher and purpose: open and lost attempts in full, free teachers and serving not."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.teacher.completions.ledger import SERVING, Account, BilledRequests, Reservation, Settlement
from distill_dagster.teacher.completions.store import open_store
from distill_dagster.teacher.providers.prices import WorstCase


def test_requests_are_summed_by_teacher_and_purpose(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        worst = WorstCase(100, 0.5)

        def reserve(key: str, purpose: str, teacher: str = "openai/big", task: str = "mail") -> str:
            reservation = Reservation(key, Account(task, "campaign", purpose), teacher, worst, 60.0)
            assert [decision.kind for decision in store.commit({}, (), [reservation])] == ["granted"]
            return reservation.id

        settled = Settlement(reserve("a", "slices"), "settled", 40, 0.1)
        lost = Settlement(reserve("b", "slices"), "lost")
        released = Settlement(reserve("c", "slices"), "released")
        judged = Settlement(reserve("d", "judge", "openai/judge"), "settled", 10, None)
        reserve("e", "golden")
        reserve("f", SERVING)
        reserve("g", "slices", "embedded/small")
        reserve("h", "slices", "replay/big")
        reserve("i", "slices", task="other")
        store.commit({}, [settled, lost, released, judged])
        assert store.list_billed_requests("mail") == [
            BilledRequests("openai/big", "golden", 1, 100, 0.5),
            BilledRequests("openai/big", "slices", 2, 140, 0.1 + 0.5),
            BilledRequests("openai/judge", "judge", 1, 10, None),
        ]
