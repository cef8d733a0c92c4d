"""A teacher that asks for a long pause: the command ends at once, and a refresh holds back until the pause is over."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from distill_dagster.teacher.completions import engine
from distill_dagster.teacher.completions.store import CompletionStore
from tests.e2e.project import TASK, Project
from tests.support.provider import FakeProvider, Fault, ReceivedRequest

WORDS = "Rate limit reached on requests per day"
BODY = json.dumps({"error": {"message": f"{WORDS}.", "code": "rate_limit_exceeded"}})


def end_pause(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the noted time pass, also for the limits of this process: the next command begins as a new one would."""
    monkeypatch.setattr(engine, "_limits_by_teacher", {})
    with closing(CompletionStore.open_in_folder(project.home / "store")) as store, store.database.begin() as connection:
        connection.execute(sa.text("UPDATE pauses SET until = 1"))


def test_a_pause_ends_the_command_and_a_refresh_holds_back_until_its_time(
    fresh: Project, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seen: ReceivedRequest, before: int) -> Fault | None:
        return Fault(429, BODY, retry_after="3600") if len(provider.requests) > 3 else None

    provider.fail = fail
    fresh.change_task(teacher={"max_retries": 4, "concurrency": 2})
    ended = fresh.distill("backfill", TASK, "--json")
    assert ended.code == 3, ended.err
    assert ended.json["failed"] == {}
    why = ended.json["pending"]["golden_completions"]
    assert WORDS in why
    assert "asks to wait until 2" in why
    assert "UTC" in why
    assert WORDS in ended.out, "the reason stands where it stopped"
    asked = len(provider.requests)
    assert asked <= 5
    assert ended.json["pending"]["teacher_completions[shop]"]
    assert fresh.stored_answers() == 3

    [pause] = fresh.distill("status", TASK, "--json").json["pauses"]
    assert WORDS in pause

    provider.fail = None
    monkeypatch.setattr(engine, "_limits_by_teacher", {})  # a new process knows of no pause
    held = fresh.distill("refresh", TASK, "--json")
    assert held.json["failed"] == {}
    assert WORDS in held.json["waiting"]["golden_completions"]
    assert "--force" in held.json["waiting"]["golden_completions"]
    assert len(provider.requests) == asked, "it is not asked before its time"
    assert "student_adapter" not in held.partitions

    end_pause(fresh, monkeypatch)
    done = fresh.distill("refresh", TASK, "--json")
    assert done.code == 0, done.err
    assert done.json["waiting"] == done.json["pending"] == {}
    assert fresh.distill("status", TASK, "--json").json["pauses"] == []
    assert len(provider.requests) > asked
    assert len(provider.requests) - asked == done.json["teacher_calls"]


def test_a_person_may_try_before_the_time_and_an_answer_ends_the_pause(
    project: Project, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody raised the limit at the provider."""
    for key in ("shop", "web"):
        project.add_seeds(key, f"one more refund for the {key}")
    project.change_task(teacher={"max_retries": 0, "concurrency": 1}, refresh={"min_new_rows": 100})
    provider.fail = lambda *_: Fault(503, BODY, retry_after="90000")
    ended = project.distill("refresh", TASK, "--json")
    assert ended.code == 3, ended.err
    assert len(provider.requests) == 1, "the second slice is not even tried"
    waits: dict[str, Any] = ended.json["pending"] | ended.json["waiting"]
    assert {"teacher_completions[shop]", "teacher_completions[web]"} <= set(waits)

    monkeypatch.setattr(engine, "_limits_by_teacher", {})
    provider.fail = None
    tried = project.distill("backfill", TASK, "--slice", "shop", "--json")
    assert tried.code == 0, tried.err
    assert len(provider.requests) == 3
    rest = project.distill("refresh", TASK, "--json")
    assert rest.json["waiting"].keys() & {"teacher_completions[web]"} == set()
    assert len(provider.requests) == 5
