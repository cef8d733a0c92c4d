"""New prompts from production, from the dropped file to the teacher, on a real instance."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions
from distill_dagster.intake import inbox as module
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from distill_dagster.tables.schemas import PROMPTS
from tests.e2e.project import GROUP, SEEDS, TASK, Project
from tests.support.provider import FakeProvider
from tests.support.task import jsonl

MAIL = "jane@example.org"
ROWS = [
    {"text": "where is my refund", "slice": "shop"},
    {"text": f"the delivery to {MAIL} bounced"},
    {"text": "the login of my cat"},
    {"text": SEEDS["shop"][0]},
    {"text": "held out: please refund me"},
]
NEW = ["where is my refund", "the delivery to <EMAIL> bounced", "the login of my cat"]


def drop(project: Project, name: str, rows: list[dict[str, Any]], age_s: float = 60) -> Path:
    path = project.home / "inbox" / TASK / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(jsonl(rows))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def sensor_tick(project: Project, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    """The sensor as the daemon runs it, and what the daemon does with its result."""
    repository = build_definitions(Home(root=project.home, tasks=project.root / "tasks")).get_repository_def()
    top = repository.get_top_level_resources()
    resources = {name: top[name] for name in ("tasks", "lake")}
    context = dg.build_sensor_context(instance, repository_def=repository, resources=resources)
    found: Any = repository.get_sensor_def(f"{TASK}_inbox")(context)
    if isinstance(found, dg.SensorResult):
        for request in found.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions(get_slices_partitions_name(TASK), list(request.partition_keys))
        for event in found.asset_events:
            assert isinstance(event, dg.AssetObservation)
            instance.report_runless_asset_event(event)
    return found


@pytest.mark.parametrize("by", ["sensor", "command"])
def test_a_dropped_log_becomes_a_partition_and_only_its_prompts_are_asked_for(
    by: str, project: Project, provider: FakeProvider
) -> None:
    drop(project, "day.jsonl", ROWS)
    drop(project, "broken.jsonl", [{"text": 7, "mail": MAIL}])
    if by == "command":
        ended = project.distill("inbox", TASK, "--json")
        assert ended.code == 1, "one file was rejected"
        assert ended.json["accepted"] == {"shop": 1, "unsorted": 2}
        assert MAIL not in ended.out + ended.err
    else:
        with project.instance() as instance:
            found = sensor_tick(project, instance)
            assert isinstance(found, dg.SensorResult)
            assert instance.get_dynamic_partitions(get_slices_partitions_name(TASK)) == ["shop", "web", "unsorted"]
            assert [event.partition for event in found.asset_events] == ["shop", "unsorted"]
            assert MAIL not in str(found.asset_events)
            again = sensor_tick(project, instance)
            assert isinstance(again, dg.SkipReason), "nothing lies there any more"
    assert provider.requests == [], "neither of them asks a teacher"

    status = project.distill("status", TASK, "--json").json
    states = {one["name"]: one["state"] for one in status["artifacts"]}
    assert states["seed_prompts[unsorted]"] == "missing"
    assert states["seed_prompts[shop]"] == "stale"
    assert states["seed_prompts[web]"] == "fresh"

    ended = project.run("--student", "one")
    assert ended.code == 0, ended.err
    assert sorted(provider.texts) == sorted(NEW * 2), "two draws of each new prompt, and of nothing else"
    for asset in GROUP:
        assert set(ended.partitions[asset]) == {"shop", "unsorted"}
    with project.instance() as instance:
        assert instance.get_dynamic_partitions(get_slices_partitions_name(TASK)) == ["shop", "web", "unsorted"]
    prompts, _ = project.lake.read(TASK, "seed_prompts", "unsorted", PROMPTS)
    assert set(prompts.select("origin", "source").iter_rows()) == {("log", "day.jsonl")}
    assert project.run("--student", "one").json["runs"] == []

    summary = json.loads((project.home / "inbox" / TASK / "done" / "day.jsonl.json").read_text())
    assert summary["accepted"] == {"shop": 1, "unsorted": 2}
    assert summary["masked"] == {"EMAIL": 1}
    assert (summary["refused_golden_or_dev"], summary["duplicates"]) == (1, 1)
    assert (project.home / "inbox" / TASK / "rejected" / "broken.jsonl.reason.txt").exists()


def test_the_command_waits_for_a_file_that_was_just_written(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_S", 1)
    drop(fresh, "a.jsonl", [{"text": "a refund"}], age_s=0)
    ended = fresh.distill("inbox", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["accepted"] == {"unsorted": 1}
    empty = fresh.distill("inbox", TASK, "--json")
    assert (empty.code, empty.json["files"]) == (0, [])


def test_a_malformed_task_takes_nothing_and_says_why(fresh: Project) -> None:
    path = drop(fresh, "a.jsonl", [{"text": "a refund"}])
    with (fresh.folder / "golden.jsonl").open("a") as golden:
        golden.write("{\n")
    ended = fresh.distill("inbox", TASK)
    assert ended.code == 2
    assert "golden.jsonl" in ended.err
    (fresh.home / "instance").mkdir(parents=True)
    with dg.instance_for_test(temp_dir=str(fresh.home / "instance")) as instance:
        found = sensor_tick(fresh, instance)
    assert isinstance(found, dg.SkipReason)
    assert "golden.jsonl" in (found.skip_message or "")
    assert path.exists()
