"""`distill refresh`: closes every gap, and trains only where enough changed."""

from __future__ import annotations

from contextlib import closing

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.orchestration.tags import read_budget_tags
from distill_dagster.teacher.completions.store import CompletionStore
from tests.e2e.project import GROUP, TASK, CommandResult, Project
from tests.support.provider import FakeProvider

RETRAINED = {"student_adapter", "predictions", "eval_report"}


def refresh(project: Project, *arguments: str) -> CommandResult:
    return project.distill("refresh", TASK, "--json", *arguments)


def test_nothing_to_refresh(project: Project, provider: FakeProvider) -> None:
    ended = refresh(project)
    assert ended.code == 0, ended.err
    assert ended.json["runs"] == []
    assert "nothing to refresh" in project.distill("refresh", TASK).out
    assert provider.requests == []


def test_all_students_that_were_trained_are_trained_anew(project: Project) -> None:
    project.change_slice("shop", lambda value: value["seeds"].append("where is the refund for my order"))
    ended = refresh(project)
    assert ended.code == 0, ended.err
    assert ended.partitions["student_adapter"] == ["one", "two"]
    assert ended.partitions["eval_report"] == ["one", "two"]
    assert refresh(project).json["runs"] == []


def test_students_wait_until_enough_rows_changed(project: Project, provider: FakeProvider) -> None:
    project.change_task(refresh={"min_new_rows": 1})
    project.change_slice("shop", lambda value: value["seeds"].append("a refund of one penny"))
    ended = refresh(project, "--student", "one")
    assert ended.code == 0, ended.err
    assert ended.partitions == {name: ["shop"] for name in GROUP} | {"filtered_dataset": [None]}
    assert set(ended.json["waiting"]) == {f"{name}[one]" for name in RETRAINED}
    assert "1 row changed" in ended.json["waiting"]["student_adapter[one]"]
    again = refresh(project, "--student", "one")
    assert again.json["runs"] == []
    assert len(again.json["waiting"]) == 3, "it is not forgotten"
    project.change_slice("web", lambda value: value["seeds"].append("the delivery of a refund"))
    more = refresh(project, "--student", "one")
    assert more.partitions["student_adapter"] == ["one"], "changes of several days add up"
    assert more.json["waiting"] == {}


def test_force_and_a_students_own_setting_do_not_wait(project: Project) -> None:
    project.change_task(refresh={"min_new_rows": 100})
    project.change_slice("shop", lambda value: value["seeds"].append("a refund of one penny"))
    waiting = refresh(project, "--student", "one", "--student", "two").json["waiting"]
    assert set(waiting) == {f"{name}[{student}]" for name in RETRAINED for student in ("one", "two")}
    project.change_task(students={"two": {"epochs": 2}})
    ended = refresh(project, "--student", "one", "--student", "two")
    assert ended.partitions["student_adapter"] == ["two"]
    forced = refresh(project, "--student", "one", "--force")
    assert forced.partitions["student_adapter"] == ["one"]
    assert forced.json["waiting"] == {}


def test_a_budget_stop_keeps_what_came_and_waits_for_a_higher_cap(project: Project, provider: FakeProvider) -> None:
    price = {"input_usd": 1.0, "output_usd": 1.0}
    project.change_task(teacher={"price": price}, refresh={"min_new_rows": 100})  # training is no matter here
    new = [f"one more refund, number {n}" for n in range(10)]
    project.change_slice("shop", lambda value: value["seeds"].extend(new))
    project.change_task(budget={"tokens": 400})
    stopped = project.distill("refresh", TASK, "--json")
    assert stopped.json["failed"] == {}
    record = project.record("teacher_completions", "shop")
    assert 0 < record.missing_rows < len(new)
    asked = len(provider.requests)
    assert 0 < asked < 2 * len(new)
    waiting = project.distill("refresh", TASK, "--json")
    assert "wait for a higher budget" in waiting.json["waiting"]["teacher_completions[shop]"]
    assert len(provider.requests) == asked
    project.change_task(budget={"tokens": 100_000})
    rest = project.distill("refresh", TASK, "--json")
    assert project.record("teacher_completions", "shop").missing_rows == 0
    assert rest.json["teacher_calls"] == 2 * len(new) - asked
    assert rest.json["cost_usd"] > 0


def test_a_budget_of_the_command_holds_for_all_its_runs(project: Project, provider: FakeProvider) -> None:
    """What task.yaml allows is more: the lower cap counts, for the slices together, and only in this command."""
    project.change_task(teacher={"price": {"input_usd": 1.0, "output_usd": 1.0}}, budget={"tokens": 100_000})
    project.change_task(refresh={"min_new_rows": 100})  # training is no matter here
    for key in ("shop", "web"):
        project.add_seeds(key, *(f"one more refund of the {key}, number {n}" for n in range(5)))
    stopped = project.distill("backfill", TASK, "--budget-tokens", "500", "--json")
    assert stopped.json["failed"] == {}
    missing = [project.record("teacher_completions", key).missing_rows for key in ("shop", "web")]
    assert 0 < missing[0] + missing[1] < 10
    asked = len(provider.requests)
    assert 0 < asked == stopped.json["teacher_calls"] < 20
    with closing(CompletionStore.open_in_folder(project.home / "store")) as store:
        ledger = store.read_ledger()
    mine = ledger.filter(campaign=ledger["campaign"][-1])
    assert (mine.height, mine["tokens"].sum() <= 500) == (asked, True)
    with project.instance() as instance:
        assert instance.get_runs(limit=1)[0].tags["distill/budget_tokens"] == "500"

    waiting = refresh(project, "--budget-tokens", "500")
    assert "wait for a higher budget" in waiting.json["waiting"]["teacher_completions[web]"]
    assert len(provider.requests) == asked
    lower = project.distill("run", TASK, "--budget-usd", "0.00001", "--json")
    assert len(provider.requests) == asked, "not even one of the requests"
    assert lower.json["cost_usd"] == 0
    rest = refresh(project)
    assert rest.json["teacher_calls"] == 20 - asked, "without one of its own, task.yaml's counts"
    assert [project.record("teacher_completions", key).missing_rows for key in ("shop", "web")] == [0, 0]


def test_a_budget_that_is_none_is_refused_before_anything_runs(project: Project) -> None:
    for option, value in (("--budget-usd", "nan"), ("--budget-usd", "-1"), ("--budget-tokens", "-5")):
        ended = refresh(project, f"{option}={value}")
        assert ended.code == 1
        assert f"{option} is {value}" in ended.err
    with pytest.raises(DistillError, match="distill/budget_usd is 'much'"):
        read_budget_tags({"distill/budget_usd": "much"})
    assert read_budget_tags({"distill/budget_tokens": "7", "other": "x"}).tokens == 7
