"""Automation on a real instance: files change, the sensor looks, conditions are evaluated, what they ask for is run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pytest
import yaml

from assets.sensors import QUIET_S, get_last_change, observe_changes
from assets.task import build_task_definitions, build_task_graph
from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.orchestration import RunSummary
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from tests.e2e.project import GROUP, TASK, Project
from tests.support.provider import FakeProvider, Fault, ReceivedRequest
from tests.support.task import write_small_task

Asked = dict[str, list[str | None]]


@dataclass
class Daemon:
    """What Dagster's daemon does at a tick, one step after the other."""

    project: Project
    instance: dg.DagsterInstance
    seen: str | None = None
    cursor: Any = None
    defs: dg.Definitions = field(init=False)

    def __post_init__(self) -> None:
        self.home = Home(root=self.project.home, tasks=self.project.root / "tasks")
        self.defs = build_definitions(self.home)

    def observe(self) -> dg.SensorResult | dg.SkipReason:
        folder = open_task(self.home.tasks, TASK, self.home.accepted)
        found = observe_changes(build_task_graph(folder), folder, self.instance, self.seen)
        if isinstance(found, dg.SensorResult):
            self.seen = found.cursor
            for request in found.dynamic_partitions_requests or []:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    self.instance.add_dynamic_partitions(get_slices_partitions_name(TASK), list(request.partition_keys))
                else:
                    for key in request.partition_keys:
                        self.instance.delete_dynamic_partition(get_slices_partitions_name(TASK), key)
            for event in found.asset_events:
                assert isinstance(event, dg.AssetObservation)
                self.instance.report_runless_asset_event(event)
        return found

    def evaluate(self) -> Asked:
        """What the conditions ask for at this tick."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked: Asked = {}
        for one in result.results:
            subset = result.get_requested_partitions(one.key) if one.true_subset.size else set()
            if subset:
                asked[one.key.path[-1]] = sorted(subset, key=str)
        return asked

    def run(self, asked: Asked) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        for partition in sorted({p for keys in asked.values() for p in keys}, key=str):
            chosen = [dg.AssetKey([TASK, name]) for name, keys in asked.items() if partition in keys]
            job.execute_in_process(
                instance=self.instance,
                partition_key=partition,
                asset_selection=chosen,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )

    def tick(self) -> Asked:
        self.observe()
        asked = self.evaluate()
        self.run(asked)
        return asked

    def settle(self, ticks: int = 6) -> list[Asked]:
        """Ticks until nothing is asked for; what each asked for."""
        out: list[Asked] = []
        for _ in range(ticks):
            if not (asked := self.tick()):
                return out
            out.append(asked)
        raise AssertionError(f"never quiet: {out}")


@pytest.fixture
def daemon(project: Project) -> Iterator[Daemon]:
    with project.instance() as instance:
        daemon = Daemon(project, instance)
        assert daemon.settle() == [], "the first tick of a task that is up to date asks for nothing"
        yield daemon


def test_an_edited_slice_runs_alone_then_the_dataset_and_nothing_is_trained(
    daemon: Daemon, project: Project, provider: FakeProvider
) -> None:
    project.change_slice("shop", lambda value: value["seeds"].append("where is the refund for my order"))
    assert daemon.settle() == [{name: ["shop"] for name in GROUP}, {"filtered_dataset": [None]}]
    assert provider.texts == ["where is the refund for my order"] * 2


def test_white_space_asks_for_nothing(daemon: Daemon, project: Project) -> None:
    path = project.folder / "slices" / "web.yaml"
    path.write_text("# moved\n\n" + yaml.safe_dump(yaml.safe_load(path.read_text()), sort_keys=True))
    assert daemon.settle() == []


def test_an_edit_that_changes_no_output_stops_the_wave(daemon: Daemon, project: Project) -> None:
    project.change_slice("web", lambda value: value.update(description="Another description."))
    asked = daemon.settle()
    assert asked[0]["seed_prompts"] == ["web"]
    assert "filtered_dataset" not in {name for one in asked for name in one}


def test_an_edit_made_while_its_run_is_in_flight_is_not_lost(
    daemon: Daemon, project: Project, provider: FakeProvider
) -> None:
    during: list[Asked] = []
    first = threading.Lock()

    def edit(seen: ReceivedRequest, before: int) -> Fault | None:
        if first.acquire(blocking=False):  # asked for the first new prompt: two ticks pass meanwhile
            during.append(daemon.evaluate())
            project.change_slice("shop", lambda value: value["seeds"].append("the second refund"))
            daemon.observe()
            during.append(daemon.evaluate())
        return None

    provider.fail = edit
    project.change_slice("shop", lambda value: value["seeds"].append("the first refund"))
    daemon.observe()
    asked = daemon.evaluate()
    assert asked == {name: ["shop"] for name in GROUP}
    daemon.run(asked)
    assert len(during) == 2
    for one in during:  # queued behind the run in flight
        daemon.run(one)
    asked_later = {name for one in [*during, *daemon.settle()] for name in one}
    assert asked_later == GROUP | {"filtered_dataset"}
    assert provider.texts == ["the first refund"] * 2 + ["the second refund"] * 2
    status = project.distill("status", TASK, "--json").json["artifacts"]
    stale = {one["name"].split("[")[0] for one in status if one["state"] != "fresh"}
    assert stale <= {"student_adapter", "predictions", "eval_report"}


def test_what_automation_drops_a_refresh_finds(daemon: Daemon, project: Project, provider: FakeProvider) -> None:
    """A trap of Dagster 1.13: an edit that is observed on the very next tick after a request is taken as handled."""
    project.change_slice("shop", lambda value: value["seeds"].append("the first refund"))
    daemon.tick()
    project.change_slice("shop", lambda value: value["seeds"].append("the second refund"))
    missed = "the second refund" not in provider.texts and not any("seed_prompts" in one for one in daemon.settle())
    assert missed, "the trap is gone: say so where it is described"
    project.change_task(refresh={"min_new_rows": 100})  # training is no matter here
    ended = project.distill("refresh", TASK, "--student", "one", "--json")
    assert ended.code == 0, ended.err
    assert ended.partitions["seed_prompts"] == ["shop"]
    assert provider.texts == ["the first refund"] * 2 + ["the second refund"] * 2


def test_slices_come_and_go(daemon: Daemon, project: Project, provider: FakeProvider) -> None:
    text = yaml.safe_dump({"description": "By phone.", "seeds": ["a refund by phone"]})
    (project.folder / "slices" / "phone.yaml").write_text(text)
    assert daemon.settle() == [{name: ["phone"] for name in GROUP}, {"filtered_dataset": [None]}]
    (project.folder / "slices" / "phone.yaml").unlink()
    assert daemon.settle() == [{"filtered_dataset": [None]}]
    assert daemon.instance.get_dynamic_partitions(get_slices_partitions_name(TASK)) == ["shop", "web"]
    assert len(provider.requests) == 2


def test_a_malformed_slice_is_named_and_holds_up_no_other(daemon: Daemon, project: Project) -> None:
    (project.folder / "slices" / "web.yaml").write_text("description: d\nseeds: 7\n")
    skipped = daemon.observe()
    assert isinstance(skipped, dg.SkipReason)
    assert "web.yaml" in (skipped.skip_message or "")
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    assert daemon.tick() == {name: ["shop"] for name in GROUP}


def test_a_new_slice_that_fails_holds_up_no_other(daemon: Daemon, project: Project, provider: FakeProvider) -> None:
    provider.fail = lambda seen, before: Fault(400) if "phone" in seen.text else None
    text = yaml.safe_dump({"description": "By phone.", "seeds": ["a refund by phone"]})
    (project.folder / "slices" / "phone.yaml").write_text(text)
    project.change_task(curation={"min_slices": 2})
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    asked = daemon.settle()
    assert asked[0] == {name: ["phone", "shop"] for name in GROUP}
    assert provider.texts.count("a refund by phone") == 4, "asked for once more, and no more"
    inputs = project.record("filtered_dataset").inputs
    assert inputs["scored_completions[shop]"] == project.record("scored_completions", "shop").data_version
    assert "scored_completions[phone]" not in inputs


def test_files_are_left_alone_until_they_are_quiet(project: Project) -> None:
    repository = build_definitions(Home(root=project.home, tasks=project.root / "tasks")).get_repository_def()
    sensor = repository.get_sensor_def(f"{TASK}_files")
    resources = repository.get_top_level_resources()

    def evaluate() -> Any:
        with project.instance() as instance:
            context = dg.build_sensor_context(
                instance, repository_def=repository, resources={"tasks": resources["tasks"]}
            )
            return sensor(context)

    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    assert isinstance(evaluate(), dg.SkipReason)
    long_ago = time.time() - QUIET_S - 5
    for path in [project.folder, *project.folder.rglob("*")]:
        os.utime(path, (long_ago, long_ago))
    assert get_last_change(project.folder) == pytest.approx(long_ago, abs=2)
    (project.folder / "imagined").mkdir()
    shipped = project.folder / "imagined" / "shop.jsonl"
    shipped.touch()
    for place in (project.folder, shipped.parent):
        os.utime(place, (long_ago, long_ago))
    assert get_last_change(project.folder) > long_ago + 1
    os.utime(shipped, (long_ago, long_ago))
    accepted = project.root / "accepted"
    (accepted / "imagined").mkdir(parents=True)
    (accepted / "imagined" / "shop.jsonl").touch()
    for place in (accepted, accepted / "imagined"):
        os.utime(place, (long_ago, long_ago))
    assert get_last_change(project.folder, accepted) > long_ago + 1, "imagined prompts are content of the task"
    assert isinstance(evaluate(), dg.SensorResult)


def test_only_a_free_teacher_is_asked_by_itself(tmp_path: Any) -> None:
    for model, status in (
        ("embedded/smollm2-135m-instruct", dg.DefaultSensorStatus.RUNNING),
        ("openai/gpt-4o-mini", dg.DefaultSensorStatus.STOPPED),
    ):
        folder = write_small_task(tmp_path / model.replace("/", "-"), teacher={"model": model})
        definitions = build_task_definitions(folder, lambda *_: RunSummary())
        found = [s for s in definitions.sensors or [] if not s.name.endswith("_traffic_sensor")]  # it asks no teacher
        assert {s.default_status for s in found} == {status}
        schedules = [s.default_status.value for s in definitions.schedules or []]
        assert schedules == [status.value], "the schedule too"
        assert len(found) == 3
