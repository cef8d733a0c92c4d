"""Logged requests become prompts once, except for the random sample that calibrates the router."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from distill_dagster.core.paths import Home
from distill_dagster.intake.inbox import InboxSummary
from distill_dagster.intake.logged_prompts import TAKEN_FILE, take_logged_requests
from distill_dagster.intake.request_log import LoggedRequest, format_log_line
from distill_dagster.intake.request_sample import RESERVED_SHARE, compute_draw, select_teacher_sample
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.tasks.accepted import get_accepted_path, read_accepted
from tests.support.task import write_small_task

NAME = "shop_mail"
PLAIN = LoggedRequest(
    id="r0", at="2026-11-26T10:00:00+00:00", text="", messages=None, slice=None, student="s", release=1, export="onnx",
    answer="refund", route="student", confidence=0.9, threshold=0.5, student_answer="refund",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A small task with a log of requests."""

    home: Home

    @property
    def log(self) -> Path:
        return self.home.requests / NAME

    def write(self, rows: Iterable[LoggedRequest], name: str = "requests-1-1.jsonl") -> None:
        self.log.mkdir(parents=True, exist_ok=True)
        with (self.log / name).open("ab") as handle:
            handle.writelines(format_log_line(row) for row in rows)

    def take(self) -> InboxSummary | None:
        folder = open_task(self.home.tasks, NAME, self.home.accepted)
        return take_logged_requests(folder, self.home.inbox / NAME, self.log, {1: 0.01})

    def texts(self, key: str) -> list[str]:
        return [row.text for row in read_accepted(get_accepted_path(self.home.accepted / NAME, key))]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    home = Home(root=tmp_path / "home", tasks=tmp_path / "tasks")
    write_small_task(tmp_path, NAME)
    return Served(home)


def make(n: int, **change: object) -> LoggedRequest:
    return replace(PLAIN, id=f"r{n}", text=f"Question number {n} about the lamp", **change)  # type: ignore[arg-type]


def test_new_requests_are_taken_once_and_the_log_stays(served: Served) -> None:
    served.write([make(1), make(2, slice="phone"), make(3, sampled=False, shadowed=True)])
    first = served.take()
    assert first is not None
    assert first.accepted == {"phone": 1, "unsorted": 1}
    assert served.texts("unsorted") == ["Question number 1 about the lamp"]
    assert served.take() is None
    served.write([make(1), make(4)])
    served.write([make(5)], "requests-2-7.jsonl")
    second = served.take()
    assert second is not None
    assert (second.accepted, second.duplicates) == ({"unsorted": 2}, 1)
    assert len(list(served.log.glob("requests-*.jsonl"))) == 2


def test_an_unfinished_line_is_taken_when_it_is_complete(served: Served) -> None:
    whole = format_log_line(make(2))
    served.write([make(1)])
    with (served.log / "requests-1-1.jsonl").open("ab") as handle:
        handle.write(whole[:40])
    assert served.take() is not None
    with (served.log / "requests-1-1.jsonl").open("ab") as handle:
        handle.write(whole[40:])
    summary = served.take()
    assert summary is not None
    assert summary.accepted == {"unsorted": 1}


def test_a_lost_marker_takes_nothing_twice(served: Served) -> None:
    served.write([make(1), make(2)])
    served.take()
    (served.log / TAKEN_FILE).write_text("{")
    again = served.take()
    assert again is not None
    assert (again.accepted, again.duplicates) == ({}, 2)


def test_a_conversation_keeps_its_turns_and_results_of_tools_are_left_out(served: Served) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    turns.append({"role": "user", "content": "My lamp broke"})
    served.write(
        [make(1, messages=turns), make(2, messages=[*turns, {"role": "tool", "content": "4", "tool_call_id": "x"}])]
    )
    served.take()
    (row,) = read_accepted(get_accepted_path(served.home.accepted / NAME, "unsorted"))
    assert row.messages is not None
    assert [turn.role for turn in row.messages] == ["user", "assistant", "user"]


def test_the_sample_is_random_and_is_never_taken(served: Served) -> None:
    shadowed = [make(n, shadowed=True, teacher_answer="refund") for n in range(20)]
    fallen = [make(n, route="teacher", teacher_answer="refund", confidence=0.1) for n in range(100, 3100)]
    other = [make(n, shadowed=True, teacher_answer="refund", release=2) for n in range(9000, 9003)]
    sample = select_teacher_sample([*shadowed, *fallen, *other], {1: 0.05})
    assert sample[:20] == shadowed
    assert 0.03 < (len(sample) - 20) / 3000 < 0.07
    everything = [replace(one, threshold=None) for one in fallen]
    assert abs(len(select_teacher_sample(everything, {1: 0.05})) / 3000 - RESERVED_SHARE) < 0.03
    served.write([shadowed[0], *everything[:50]])
    summary = served.take()
    assert summary is not None
    reserved = [one for one in everything[:50] if compute_draw(one.text) < RESERVED_SHARE]
    assert reserved
    assert sum(summary.accepted.values()) == 50 - len(reserved)
    assert not {one.text for one in [shadowed[0], *reserved]} & set(served.texts("unsorted"))
    assert json.loads((served.log / TAKEN_FILE).read_text())
