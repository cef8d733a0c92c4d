"""The teacher behind a server: the candidate of the pipeline, from the store if it is there, within the budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distill_dagster.core.errors import DistillError, TeacherError
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.served_teacher import ServedTeacher
from distill_dagster.pipeline.stages import prompts
from distill_dagster.pipeline.stages import teacher as stage
from distill_dagster.serving.teacher import UnansweredError
from distill_dagster.student.types import StudentPrompt
from distill_dagster.teacher.completions.ledger import LEDGER
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import LABELS, build_stage_context, write_small_task


@contextmanager
def open_teacher(tmp_path: Path, provider: FakeProvider, **changes: Any) -> Iterator[ServedTeacher]:
    """The teacher of a task whose examples and prior are there. `requests` counts from here."""
    settings = {"teacher": {"api_base": provider.url, "max_retries": 0}} | changes
    folder = write_small_task(tmp_path, **settings)
    env = build_stage_context(folder, tmp_path / "home")
    prompts.make_prompt_context(env, None)
    stage.make_teacher_prior(env, None)
    provider.requests.clear()
    teacher = ServedTeacher(folder, Home(tmp_path / "home", tmp_path / "tasks"), env.store)
    try:
        yield teacher
    finally:
        teacher.close()
        env.store.close()


def test_an_answer_is_the_candidate_and_is_asked_for_once(tmp_path: Path) -> None:
    with FakeProvider(LABELS) as provider, open_teacher(tmp_path, provider) as teacher:
        found = teacher.answer(StudentPrompt.from_text("a delivery to my neighbour"))
        assert found.answer == "delivery"
        assert found.confidence is not None
        assert found.prompt_tokens > 0
        asked = len(provider.requests)
        assert asked >= 2  # both draws of few-shot examples
        assert teacher.answer(StudentPrompt.from_text("a delivery to my neighbour")) == found
        assert len(provider.requests) == asked
        with teacher._store._engine.connect() as connection:
            rows = connection.execute(sa.select(LEDGER.c.purpose, LEDGER.c.campaign)).all()
    booked = {row.campaign for row in rows if row.purpose == "serving"}
    assert len(booked) == 1
    assert booked.pop().startswith("serve-")


def test_a_teacher_that_is_down_and_one_that_says_nothing_differ(tmp_path: Path) -> None:
    def fail(seen: ReceivedRequest, _: int) -> Fault | None:
        if "too long" in seen.text:
            return Fault(status=400)
        return Fault(status=500) if "down" in seen.text else None

    chat = {"api": "chat", "soft_labels": "votes", "reasks": 0}
    with FakeProvider(LABELS, fail=fail, answer=lambda seen: "the weather") as provider:
        changes = {"teacher": {"api_base": provider.url, "max_retries": 0, "calibration": "none"} | chat}
        with open_teacher(tmp_path, provider, **changes) as teacher:
            with pytest.raises(UnansweredError):
                teacher.answer(StudentPrompt.from_text("what is it"))
            with pytest.raises(UnansweredError, match="HTTP 400"):
                teacher.answer(StudentPrompt.from_text("it is too long"))
            with pytest.raises(TeacherError) as down:
                teacher.answer(StudentPrompt.from_text("it is down"))
    assert not isinstance(down.value, UnansweredError)


def test_a_budget_ends_the_asking(tmp_path: Path) -> None:
    def ask_many(teacher: ServedTeacher) -> None:
        for number in range(50):
            teacher.answer(StudentPrompt.from_text(f"a delivery {number}"))

    with FakeProvider(LABELS) as provider, open_teacher(tmp_path, provider, budget={"tokens": 900}) as teacher:
        with pytest.raises(TeacherError, match="budget"):
            ask_many(teacher)
        assert provider.requests


def test_a_task_that_never_ran_has_no_examples(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    env = build_stage_context(folder, tmp_path / "home")
    with pytest.raises(DistillError, match="has not been materialized yet"):
        ServedTeacher(folder, Home(tmp_path / "home", tmp_path / "tasks"), env.store)
    env.store.close()


def test_a_recording_in_a_cascade_passes_on_what_it_does_not_know(tmp_path: Path) -> None:
    with FakeProvider(LABELS) as provider:
        folder = write_small_task(tmp_path)
        recorded = {"model": "replay/logs", "soft_labels": "votes", "few_shot": {"per_label": 1}}
        live = yaml_teacher(folder.path) | {"api_base": provider.url, "max_retries": 0}
        changes: dict[str, Any] = {"teacher": None, "teachers": {"logs": recorded, "live": live}, "cascade": {}}
        rows = [{"prompt": "known to nobody else", "completion": "login"}]
        path = tmp_path / "cascade" / "tasks" / "shop_mail" / "recorded" / "logs.jsonl"
        folder = write_small_task(tmp_path / "cascade", **changes)
        path.parent.mkdir()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        env = build_stage_context(folder, tmp_path / "home")
        prompts.make_prompt_context(env, None)
        stage.make_teacher_prior(env, None)
        provider.requests.clear()
        teacher = ServedTeacher(folder, Home(tmp_path / "home", tmp_path / "tasks"), env.store)
        assert teacher.answer(StudentPrompt.from_text("known to nobody else")).answer == "login"
        assert provider.requests == []
        assert teacher.answer(StudentPrompt.from_text("a delivery")).answer == "delivery"
        assert provider.requests
        teacher.close()
        env.store.close()


def yaml_teacher(path: Path) -> dict[str, Any]:
    """The teacher of a task.yaml."""
    import yaml

    value: dict[str, Any] = yaml.safe_load((path / "task.yaml").read_text())["teacher"]
    return value
