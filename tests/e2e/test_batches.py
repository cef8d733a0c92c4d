"""Batch mode in a whole project: a run need not wait, the sensor or the command collects, and the next run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.tables.schemas import COMPLETIONS
from distill_dagster.teacher.completions.store import CompletionStore
from tests.e2e.project import TASK, Project, create_project
from tests.support.batches import BatchProvider
from tests.support.provider import FakeProvider
from tests.support.task import LABELS


@pytest.fixture
def batches() -> Iterator[BatchProvider]:
    with BatchProvider(LABELS, polls=None) as provider:
        yield provider


@pytest.fixture
def ungated(tmp_path: Path, batches: BatchProvider) -> Project:
    return create_project(tmp_path, batches.url, teacher={"mode": "batch", "batch": {"wait_s": 0, "poll_s": 0.1}})


@pytest.fixture
def project(ungated: Project, batches: BatchProvider) -> Project:
    """Its teacher passed the gate, online: of slices nothing was asked yet."""
    job = build_definitions(
        Home(root=ungated.home, tasks=ungated.root / "tasks")
    ).resolve_implicit_global_asset_job_def()
    first = ("prompt_context", "teacher_prior", "golden_completions", "teacher_gate")
    (ungated.home / "instance").mkdir(parents=True)
    with FakeProvider(LABELS) as online, ungated.instance() as instance:
        ungated.change_task(teacher={"mode": "online", "api_base": online.url})
        keys = [dg.AssetKey([TASK, name]) for name in first]
        assert job.execute_in_process(instance=instance, asset_selection=keys).success
    ungated.change_task(teacher={"mode": "batch", "api_base": batches.url})
    return ungated


def tick(project: Project, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    definitions = build_definitions(Home(root=project.home, tasks=project.root / "tasks"))
    repository = definitions.get_repository_def()
    resources = {name: definitions.resources[name] for name in ("tasks", "store", "teacher")}  # type: ignore[index]
    context = dg.build_sensor_context(instance, repository_def=repository, resources=resources)
    found: Any = repository.get_sensor_def(f"{TASK}_batches")(context)
    assert isinstance(found, dg.SensorResult | dg.SkipReason)
    return found


@pytest.mark.parametrize("by", ["sensor", "command"])
def test_a_run_submits_and_the_next_run_uses_the_collected_answers(
    project: Project, batches: BatchProvider, by: str
) -> None:
    ended = project.distill("backfill", TASK, "--which", "all", "--json")
    assert (ended.code, ended.json["failed"], ended.json["blocked"]) == (3, {}, {})
    assert "under way; 0 of 12 requests are answered" in ended.json["pending"]["teacher_completions[web]"]
    assert ended.json["pending"]["scored_completions[web]"] == "teacher_completions[web] waits for answers"
    assert "Nothing failed" in project.distill("backfill", TASK).out
    again = project.distill("backfill", TASK, "--json")
    assert (again.code, again.json["teacher_calls"], again.json["partitions"]) == (3, 0, {})
    assert len(batches.batches) == 2
    assert (ended.json["teacher_calls"], ended.json["cost_usd"]) == (24, None), "submitted, and the price is unknown"
    listed = project.distill("batches", TASK, "--json")
    assert listed.json == {"task": TASK, "collected": 0, "under_way": ["batch_0", "batch_1"]}
    with project.instance() as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}, "no alert is sent"
        seen = instance.fetch_observations(dg.AssetKey([TASK, "teacher_completions"]), limit=10).records
        assert {record.partition_key for record in seen} == {"shop", "web"}
        assert isinstance(tick(project, instance), dg.SkipReason)
        for id_ in batches.batches:
            batches.end(id_)
        if by == "sensor":
            found = tick(project, instance)
            assert isinstance(found, dg.SensorResult)
            assert {r.partition_key for r in found.run_requests or []} == {"shop", "web"}
            asked = {key.path[-1] for r in found.run_requests or [] for key in r.asset_selection or []}
            assert asked == {"teacher_completions", "scored_completions"}
            assert isinstance(tick(project, instance), dg.SkipReason)
        else:
            assert project.distill("batches", TASK, "--json").json["collected"] == 24
    ended = project.distill("backfill", TASK, "--which", "all", "--json")
    assert ended.code == 0, ended.err
    assert len(batches.batches) == 2
    frame, _ = project.lake.read(TASK, "teacher_completions", "web", COMPLETIONS)
    assert set(frame["mode"]) == {"batch"}
    assert set(frame["status"]) == {"ok"}


def test_the_sensor_is_stopped_by_default_and_exists_only_in_batch_mode(project: Project) -> None:
    home = Home(root=project.home, tasks=project.root / "tasks")
    sensor = build_definitions(home).get_repository_def().get_sensor_def(f"{TASK}_batches")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    project.change_task(teacher={"mode": "online"})
    assert not build_definitions(home).get_repository_def().has_sensor_def(f"{TASK}_batches")


def test_a_budget_holds_for_batches_and_a_forgotten_one_counts_as_spent(
    project: Project, batches: BatchProvider
) -> None:
    price = {"price": {"input_usd": 1.0, "output_usd": 1.0}}
    project.change_task(teacher=price, budget={"usd": 0.000001})
    ended = project.distill("backfill", TASK, "--which", "all", "--json")
    assert ended.json["failed"] == {}, "a cap ends the asking and is no failure"
    record = project.lake.read_record(TASK, "teacher_completions", "shop")
    assert record is not None
    assert record.missing_rows == 6
    assert batches.batches == {}
    project.change_task(budget={"usd": 10.0})
    ended = project.distill("backfill", TASK, "--slice", "shop", "--json")
    assert len(batches.batches) == 1
    store = CompletionStore.open_in_folder(project.home / "store")
    ledger = store.read_ledger().filter(pl.col("purpose") != "golden")
    assert set(ledger["mode"]) == {"batch"}
    assert set(ledger["state"]) == {"reserved"}
    assert ended.json["cost_usd"] == ended.json["reserved_usd"] == pytest.approx(ledger["worst_usd"].sum())
    batches.end("batch_0")
    assert project.distill("batches", TASK, "--json").json["collected"] == 12
    ledger = store.read_ledger().filter(pl.col("purpose") != "golden")
    assert set(ledger["state"]) == {"settled"}
    assert 0 < ledger["usd"].sum() < ledger["worst_usd"].sum()

    project.distill("backfill", TASK, "--slice", "web", "--json")
    listed = project.distill("batches", TASK)
    name = listed.out.split("(")[-1].split(")")[0] if "(" in listed.out else ""
    assert project.distill("batches", TASK, "--forget", "nothing").code == 1
    assert project.distill("batches", TASK, "--forget", name, "--json").json["under_way"] == []
    assert sorted(set(store.read_ledger()["state"])) == ["lost", "settled"]
    store.close()


def test_an_open_batch_of_an_earlier_setting_is_named_and_not_waited_for(
    project: Project, batches: BatchProvider
) -> None:
    assert project.distill("backfill", TASK, "--which", "all", "--json").code == 3
    project.change_task(teacher={"mode": "online"})
    ended = project.distill("backfill", TASK, "--which", "all", "--json")
    assert (ended.code, ended.json["failed"], ended.json["teacher_calls"]) == (3, {}, 0)
    assert f"`distill batches {TASK}`" in ended.json["pending"]["teacher_completions[web]"]
    for id_ in batches.batches:
        batches.end(id_)
    assert project.distill("batches", TASK, "--json").json["collected"] == 24
    ended = project.distill("backfill", TASK, "--which", "all", "--json")
    assert (ended.code, ended.json["teacher_calls"], len(batches.batches)) == (0, 0, 2)


def test_a_batch_of_a_teacher_that_the_task_no_longer_has_is_listed(project: Project, batches: BatchProvider) -> None:
    assert project.distill("backfill", TASK, "--slice", "shop", "--json").code == 3
    project.change_task(teacher={"model": "openai/another"})
    assert project.distill("batches", TASK, "--json").json["under_way"] == ["batch_0"]
    listed = project.distill("batches", TASK)
    assert "left over" in listed.out
    assert "--forget" in listed.out


def test_existing_data_stays_until_the_answers_of_a_batch_arrive(ungated: Project, batches: BatchProvider) -> None:
    """First the golden answers wait. Then the dataset waits for all slices, so that it is built once."""
    project = ungated
    waiting = project.run("--student", "one")
    assert (waiting.code, waiting.json["failed"], waiting.json["blocked"]) == (3, {}, {})
    assert {"golden_completions", "teacher_gate", "teacher_completions[shop]"} <= set(waiting.json["pending"])
    assert {"filtered_dataset", "student_adapter[one]"} <= set(waiting.json["pending"])
    assert waiting.json["pending"]["seed_only_adapter[one]"] == "teacher_gate waits for answers"
    assert list(batches.batches) == ["batch_0"], "no slice is paid for before the gate"
    batches.end("batch_0")
    waiting = project.run("--student", "one")
    assert (waiting.code, waiting.json["failed"], waiting.json["blocked"]) == (3, {}, {})
    assert {"golden_completions", "teacher_gate"} <= set(waiting.json["partitions"])
    assert "seed_only_adapter" in waiting.json["partitions"], "it needs no answers of the slices"
    for id_ in list(batches.batches)[1:]:
        batches.end(id_)
    done = project.run("--student", "one")
    assert done.code == 0, done.err
    assert done.json["pending"] == {}
    assert done.partitions["eval_report"] == ["one"]

    rows = project.record("filtered_dataset").rows
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    waiting = project.distill("refresh", TASK, "--json")
    assert waiting.code == 3
    assert set(waiting.json["partitions"]) == {"seed_prompts"}
    assert project.record("filtered_dataset").rows == rows
    batches.end(list(batches.batches)[-1])
    assert project.distill("refresh", TASK, "--json").partitions["student_adapter"] == ["one"]
