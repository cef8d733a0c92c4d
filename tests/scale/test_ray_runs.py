"""The bundled task, with runs as jobs of a Ray cluster that loses a worker: the same data as in one process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest
import yaml
from dagster._core.launcher.base import WorkerStatus

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.orchestration.dead_runs import fail_lost_starts
from distill_dagster.orchestration.ray_launcher import RayJobLauncher
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, RAY_JOB_TAG, read_process_tag
from distill_dagster.pipeline.stage_table import STAGES
from tests.e2e.project import Project
from tests.support.deployed import deploy_on_ray, launch
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.scale, pytest.mark.slow]
BUNDLED = "support_triage"
SLICES = ["api", "reports"]
ROWS = 24
"""Golden and dev tickets that are kept."""
STUDENT = {"epochs": 1, "seed_only_epochs": 1}


class BundledProject(Project):
    """The bundled task with two slices, few tickets to predict, and a student that trains in seconds."""

    @property
    def folder(self) -> Path:
        return self.root / "tasks" / BUNDLED


@pytest.fixture
def bundled(tmp_path: Path) -> BundledProject:
    project = BundledProject(tmp_path)
    shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / BUNDLED, project.folder)
    for path in [*(project.folder / "slices").iterdir(), *(project.folder / "imagined").iterdir()]:
        if path.stem not in SLICES:
            path.unlink()
    for name in ("golden.jsonl", "dev.jsonl"):
        path = project.folder / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:ROWS]))
    minilm = yaml.safe_load((project.folder / "task.yaml").read_text())["students"]["minilm"]
    project.change_task(
        default_student="minilm",
        students={"smollm2": None, "minilm": {**minilm, **STUDENT}},
        evaluation={"bootstrap_samples": 100, "latency_items": 2},
    )
    return project


def test_the_bundled_task_is_the_same_on_a_cluster_that_loses_a_worker(
    bundled: BundledProject, cluster: RayCluster, tmp_path: Path
) -> None:
    alone = BundledProject(tmp_path / "alone")
    shutil.copytree(bundled.root / "tasks", alone.root / "tasks")
    with deploy_on_ray(bundled, cluster):
        killer = threading.Thread(target=_kill_worker_of_a_slice, args=(bundled, cluster))
        killer.start()
        made = launch(bundled, "refresh", BUNDLED, "--json")
        killer.join()
        cluster.wait_for_workers(2)
    assert made.code == 0, made.err
    undisturbed = alone.distill("run", BUNDLED, "--json")
    assert undisturbed.code == 0, undisturbed.err
    assert {asset: sorted(map(str, keys)) for asset, keys in made.partitions.items()} == {
        asset: sorted(map(str, keys)) for asset, keys in undisturbed.partitions.items()
    }
    for asset, keys in undisturbed.partitions.items():
        if STAGES[asset].partition == "student":
            continue  # the last bits of trained weights depend on the number of threads
        for key in keys:
            records = [one.lake.read_record(BUNDLED, asset, key) for one in (bundled, alone)]
            versions = [record.data_version for record in records if record is not None]
            assert versions[0] == versions[1], f"{asset}[{key}]"
    with bundled.instance() as instance:
        runs = instance.get_runs()
    assert all(run.run_id in run.tags[RAY_JOB_TAG] for run in runs), "each run is a job of the cluster"
    lost = [run for run in runs if run.status == dg.DagsterRunStatus.FAILURE]
    assert len(lost) == 1, "the lost run was started again, and nothing else failed"


def _kill_worker_of_a_slice(project: Project, cluster: RayCluster) -> None:
    """Kill the worker on which the first slice is being made, and add another worker."""
    found: list[int] = []

    def find_process() -> bool:
        with suppress(Exception), project.instance() as instance:  # the command is still creating the instance
            for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
                process = read_process_tag(run.run_id, run.tags)
                if run.job_name.endswith("_slices") and process:
                    found.append(int(process.split(":")[1]))
        return bool(found)

    wait_until(find_process, "a run of a slice")
    cluster.kill_worker_of(found[0])
    cluster.start_worker()


@pytest.fixture
def launcher(cluster: RayCluster, tmp_path: Path) -> Iterator[RayJobLauncher]:
    settings = {
        "module": "distill_dagster.orchestration.ray_launcher",
        "class": "RayJobLauncher",
        "config": {"ray": {"address": cluster.jobs_url}},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": settings}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, RayJobLauncher)
        yield launcher


def create_run(
    launcher: RayJobLauncher,
    job: str = "",
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
    tags: dict[str, str] | None = None,
) -> dg.DagsterRun:
    """Create an open run that `launcher` started as a job of the cluster, if one is named."""

    @dg.job
    def nothing() -> None:
        pass

    run = launcher._instance.create_run_for_job(nothing, status=status, tags=tags)
    if job:
        name = f"dagster-run-{run.run_id}"
        launcher.client.submit_job(entrypoint=job, submission_id=name)
        launcher._instance.add_run_tags(run.run_id, {RAY_JOB_TAG: name})
    found = launcher._instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def test_a_run_of_another_process_is_not_taken_for_lost(launcher: RayJobLauncher) -> None:
    own = create_run(launcher)
    assert launcher.check_run_worker_health(own).status == WorkerStatus.RUNNING
    again = create_run(launcher, tags={RAY_JOB_TAG: f"dagster-run-{own.run_id}"})
    assert launcher.check_run_worker_health(again).status == WorkerStatus.RUNNING, "the tag of an earlier run"


def test_a_run_and_those_inside_it_are_lost_with_their_job(launcher: RayJobLauncher) -> None:
    outer = create_run(launcher, "sleep 600")
    inner = create_run(launcher, tags={CAMPAIGN_TAG: outer.run_id})
    for run in (outer, inner):
        assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    with mock.patch.object(launcher.client, "get_job_status", side_effect=ConnectionError("the head is restarting")):
        assert launcher.check_run_worker_health(outer).status == WorkerStatus.RUNNING
    job = outer.tags[RAY_JOB_TAG]
    launcher.client.stop_job(job)
    wait_until(lambda: launcher.client.get_job_status(job).is_terminal(), "the end of the job")
    for run in (outer, inner):
        found = launcher.check_run_worker_health(run)
        assert found.status == WorkerStatus.FAILED
        assert "has ended" in (found.msg or "")
    launcher.client.delete_job(job)
    found = launcher.check_run_worker_health(outer)
    assert found.status == WorkerStatus.FAILED
    assert "does not know the job" in (found.msg or "")


def test_a_run_whose_worker_was_lost_before_it_began_is_marked_as_failed(launcher: RayJobLauncher) -> None:
    lost = create_run(launcher, "exit 1", dg.DagsterRunStatus.STARTING)
    waiting = create_run(launcher, "sleep 600", dg.DagsterRunStatus.STARTING)
    job = lost.tags[RAY_JOB_TAG]
    wait_until(lambda: launcher.client.get_job_status(job).is_terminal(), "the end of the job")
    assert fail_lost_starts(launcher._instance) == [lost.run_id]
    statuses = {run.run_id: run.status for run in launcher._instance.get_runs()}
    assert statuses == {lost.run_id: dg.DagsterRunStatus.FAILURE, waiting.run_id: dg.DagsterRunStatus.STARTING}
    launcher.client.stop_job(waiting.tags[RAY_JOB_TAG])
