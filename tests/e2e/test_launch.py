"""`--launch`: the instance starts the runs, and the command follows them with the same plan, outcome and exit code.

The run launcher of these tests executes each run at once. The code location is a process of its own, as in a
deployment. `tests/scale/test_launch_processes.py` does the same with daemon, queue and a process per run.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.orchestration import instance
from distill_dagster.orchestration.tags import BACKFILL_TAG, BUDGET_TAGS, CAMPAIGN_TAG, PARTITION_TAG
from distill_dagster.tasks.deployment_file import DEPLOYMENT_VARIABLE
from distill_dagster.teacher.completions.store import CompletionStore
from tests.e2e.project import GROUP, TASK, Project
from tests.support.provider import FakeProvider, Fault
from tests.support.run_launcher import INSTANCE


@pytest.fixture(autouse=True)
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment.yaml that says that runs are launched, and an instance with the launcher."""
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(INSTANCE))
    monkeypatch.setattr(instance, "PROJECT_FOLDER", tmp_path)
    module = {"module_name": "distill_dagster.definitions", "working_directory": str(PROJECT_FOLDER)}
    location = {"python_module": module | {"executable_path": sys.executable}}
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [location]}))
    path = tmp_path / "deployment.yaml"
    path.write_text("runs: {launch: true, workspace: workspace.yaml}")
    monkeypatch.setenv(DEPLOYMENT_VARIABLE, str(path))
    return path


def test_slices_are_a_backfill_with_a_run_each(fresh: Project, provider: FakeProvider) -> None:
    ended = fresh.distill("backfill", TASK, "--which", "all", "--budget-tokens", "100000", "--json")
    assert ended.code == 0, ended.err
    assert {name: sorted(map(str, keys)) for name, keys in ended.partitions.items() if name in GROUP} == {
        name: ["shop", "web"] for name in GROUP
    }
    with fresh.instance() as dagster:
        runs = [dagster.get_run_by_id(run_id) for run_id in ended.json["runs"]]
        tags = [run.tags for run in runs if run is not None]
        assert len(tags) == 3, "one for what slices share, and one for each slice"
        [campaign] = {one[CAMPAIGN_TAG] for one in tags}
        assert {one[BUDGET_TAGS["tokens"]] for one in tags} == {"100000"}
        assert sorted(one[PARTITION_TAG] for one in tags if one.get(BACKFILL_TAG) == campaign) == ["shop", "web"]
        backfill = dagster.get_backfill(campaign)
        assert backfill is not None
        assert sorted(backfill.partition_names or ()) == ["shop", "web"]
        assert backfill.status == BulkActionStatus.REQUESTED, "the daemon completes it"
    with closing(CompletionStore.open_in_folder(fresh.home / "store")) as store:
        assert store.sum_spending(TASK, campaign).calls == ended.json["teacher_calls"] == len(provider.requests)


def test_an_outcome_is_that_of_runs_in_this_process(project: Project, provider: FakeProvider) -> None:
    project.change_task(refresh={"min_new_rows": 10})  # so that students wait, in both ways
    here = project.copy(project.root.parent / "here")
    for one in (project, here):
        one.change_slice("web", lambda value: value["seeds"].append("one more login"))
        one.change_slice("shop", lambda value: value.update(seeds=3))
    launched, local = project.distill("refresh", TASK, "--json"), here.distill("refresh", TASK, "--json", "--no-launch")
    both = (launched, project), (local, here)
    assert launched.code == local.code == 1, "a malformed slice fails alone"
    assert launched.partitions == local.partitions
    # Messages name files, which are in two folders.
    there, here_too = (json.loads(ended.out.replace(str(one.root), "")) for ended, one in both)
    for field in ("failed", "blocked", "waiting", "pending", "teacher_calls"):
        assert there[field] == here_too[field], field
    assert "student_adapter[one]" in there["waiting"]
    versions = [one.record("filtered_dataset").data_version for one in (project, here)]
    assert versions[0] == versions[1]


def test_a_failed_run_says_why(fresh: Project, provider: FakeProvider) -> None:
    provider.fail = lambda request, _: Fault(401)
    ended = fresh.distill("backfill", TASK, "--json")
    assert ended.code == 1
    assert "401" in str(ended.json["failed"])
    assert ended.json["blocked"]


def test_without_a_code_location_nothing_starts(fresh: Project, deployment: Path) -> None:
    deployment.write_text("runs: {launch: true}")
    ended = fresh.distill("backfill", TASK)
    assert ended.code == 1
    assert "No code location answers" in ended.err
    assert "distill ui" in ended.err
    assert fresh.distill("backfill", TASK, "--slice", "web", "--dry-run").code == 0
