"""The same assets without `distill run`: Dagster's own command line and API give the same artifacts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.definitions import build_definitions
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import list_sources
from distill_dagster.tasks import TaskFolder
from tests.e2e.conftest import Complete
from tests.e2e.project import GROUP, SEED_REQUESTS, TASK, Project
from tests.support.provider import FakeProvider


@pytest.fixture
def definitions(fresh: Project) -> dg.Definitions:
    return build_definitions(Home(root=fresh.home, tasks=fresh.root / "tasks"))


def exported(project: Project) -> dict[str, str]:
    """What `eval "$(distill env)"` sets in a shell."""
    lines = project.distill("env").out.splitlines()
    script = "\n".join([*lines, 'for v in DAGSTER_HOME DISTILL_HOME DISTILL_TASKS; do echo "${!v}"; done'])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={})
    return dict(zip(("DAGSTER_HOME", "DISTILL_HOME", "DISTILL_TASKS"), done.stdout.splitlines(), strict=True))


def test_dg_launch_runs_one_slice_as_distill_run_does(
    complete: Complete, project: Project, provider: FakeProvider
) -> None:
    project.change_slice("web", lambda value: value["seeds"].append("no login today"))
    selection = f"{TASK}/seed_prompts,{TASK}/teacher_completions,{TASK}/scored_completions"
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--assets", selection, "--partition", "web"]
    environment = os.environ | exported(project)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(launch, cwd=PROJECT_FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert provider.texts == ["no login today"] * 2
    assert project.record("teacher_completions", "web").rows == SEED_REQUESTS // 2 + 2
    with project.instance() as instance:
        for asset in GROUP:
            filters = dg.AssetRecordsFilter(asset_key=dg.AssetKey([TASK, asset]), asset_partitions=["web"])
            event = instance.fetch_materializations(filters, limit=1).records[0].asset_materialization
            assert event is not None
            version = (event.tags or {})["dagster/data_version"]
            assert version == project.record(asset, "web").data_version
            assert version != complete.project.record(asset, "web").data_version
    status = project.distill("status", TASK, "--json").json
    stale = [one["name"] for one in status["artifacts"] if one["state"] != "fresh"]
    assert stale == ["filtered_dataset"], "`distill` sees what Dagster made, and goes on from there"


def test_the_api_gives_the_data_versions_of_distill_run(
    complete: Complete, fresh: Project, definitions: dg.Definitions
) -> None:
    job = definitions.resolve_implicit_global_asset_job_def()
    slices = definitions.resolve_job_def(f"{TASK}_slices")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(f"{TASK}_slices", ["shop", "web"])
        shared = [dg.AssetKey([TASK, name]) for name in ("prompt_context", "teacher_prior")]
        shared += [dg.AssetKey([TASK, name]) for name in ("golden_completions", "teacher_gate")]
        assert job.execute_in_process(instance=instance, asset_selection=shared).success
        result = slices.execute_in_process(instance=instance, partition_key="shop")
        assert result.success
        for event in result.get_asset_materialization_events():
            made = event.step_materialization_data.materialization
            asset = made.asset_key.path[1]
            assert made.partition == "shop"
            assert (made.tags or {})["dagster/data_version"] == complete.project.record(asset, "shop").data_version
        checks = {(e.asset_key.path[1], e.check_name) for e in result.get_asset_check_evaluations()}
        assert {asset for asset, _ in checks} == GROUP


def test_an_asset_without_its_inputs_fails_with_a_remedy(fresh: Project, definitions: dg.Definitions) -> None:
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(f"{TASK}_slices", ["shop", "web"])
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey([TASK, "filtered_dataset"])],
            raise_on_error=False,
        )
        assert not result.success
        error = result.failure_data_for_node(f"{TASK}__filtered_dataset")
        assert error is not None
        assert error.user_failure_data is not None
        description = error.user_failure_data.description or ""
    assert "has scored completions yet" in description
    assert f"distill run {TASK}" in description
    assert fresh.lake.read_record(TASK, "filtered_dataset") is None


def test_observing_the_sources_gives_data_versions_and_runs_nothing(
    fresh: Project, definitions: dg.Definitions, provider: FakeProvider
) -> None:
    folder = TaskFolder(fresh.folder)
    keys: dict[str | None, list[str | None]] = {None: [None], "slice": ["shop", "web"], "student": ["one", "two"]}
    graph = definitions.resolve_asset_graph()
    sources = [key for key in graph.get_all_asset_keys() if graph.get(key).is_observable]
    assert {key.path[1] for key in sources} == set(list_sources())
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(f"{TASK}_slices", ["shop", "web"])
        job = definitions.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(instance=instance, asset_selection=sources).success
        for source in list_sources().values():
            found = instance.fetch_observations(dg.AssetKey([TASK, source.name]), limit=10).records
            seen = {
                record.asset_observation.partition: (record.asset_observation.tags or {})["dagster/data_version"]
                for record in found
                if record.asset_observation is not None
            }
            wanted = {key: compute_source_version(folder, source.name, key) for key in keys[source.partition]}
            assert seen == wanted, source.name
    assert provider.requests == []
