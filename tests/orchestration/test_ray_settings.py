"""What deployment.yaml changes in the instance's dagster.yaml."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.orchestration.instance import open_instance, prepare_instance_folder
from distill_dagster.tasks.deployment_file import DEPLOYMENT_VARIABLE

CLUSTER: dict[str, Any] = {"address": "http://127.0.0.1:1", "runs": True}
Prepare = Callable[..., dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(root=tmp_path / "home", tasks=tmp_path / "tasks")


@pytest.fixture
def prepare(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepare the instance for a deployment.yaml with these blocks, and return its configuration."""

    def _prepare(**blocks: Any) -> dict[str, Any]:
        (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(blocks))
        monkeypatch.setenv(DEPLOYMENT_VARIABLE, str(tmp_path / "deployment.yaml"))
        monkeypatch.delenv("DAGSTER_HOME", raising=False)
        prepare_instance_folder(home)
        config: dict[str, Any] = yaml.safe_load((home.instance / "dagster.yaml").read_text())
        return config

    return _prepare


@pytest.fixture
def has_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dagster.orchestration.instance.require_ray", lambda: None)


def test_a_deployment_that_changes_no_run_leaves_dagster_yaml_as_it_is(prepare: Prepare, home: Home) -> None:
    prepare(runs={"launch": True}, ray={"stages": True})
    assert (home.instance / "dagster.yaml").read_text() == (PROJECT_FOLDER / "dagster.yaml").read_text()


@pytest.mark.usefixtures("has_ray")
def test_runs_become_jobs_of_the_cluster_and_a_lost_one_is_started_again(prepare: Prepare) -> None:
    plain = yaml.safe_load((PROJECT_FOLDER / "dagster.yaml").read_text())
    config = prepare(ray={**CLUSTER, "lost_worker_retries": 5, "run_resources": {"cpus": 2, "memory_gb": 1.5}})
    launcher = config.pop("run_launcher")
    assert launcher["class"] == "RayJobLauncher"
    cluster = launcher["config"]["ray"]
    assert (cluster["address"], cluster["num_cpus"], cluster["memory"]) == ("http://127.0.0.1:1", 2, 1.5 * 2**30)
    assert config["run_retries"] == {"enabled": True, "max_retries": 5, "retry_on_asset_or_op_failure": False}
    watched, unwatched = config["run_monitoring"], plain["run_monitoring"]
    assert watched["poll_interval_seconds"] < unwatched["poll_interval_seconds"]
    assert watched["start_timeout_seconds"] > unwatched["start_timeout_seconds"], "a job may wait for a worker"
    assert watched["cancel_timeout_seconds"] == unwatched["cancel_timeout_seconds"]
    changed = {"run_retries": None, "run_monitoring": None}
    assert config | changed == plain | changed, "all else is as it was"


@pytest.mark.usefixtures("has_ray")
def test_no_variable_that_ray_shows_is_a_secret(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_STORE_URL", "postgresql://someone:hunter2@127.0.0.1/x")
    passed = prepare(ray=CLUSTER)["run_launcher"]["config"]["ray"]["env_vars"]
    assert passed
    assert not [name for name in passed if name.endswith(("_KEY", "_TOKEN")) or "POSTGRES" in name or "STORE" in name]


def test_limits_of_the_queue_and_of_the_pools(prepare: Prepare, home: Home) -> None:
    config = prepare(runs={"at_once": 7, "pools": {"teacher": 4}})
    assert config["concurrency"]["runs"]["max_concurrent_runs"] == 7
    assert config["concurrency"]["pools"]["granularity"] == "op"
    with open_instance(home) as instance:
        found = instance.event_log_storage.get_concurrency_infos(["teacher", "training"])
        assert {name: info.slot_count for name, info in found.items()} == {"teacher": 4, "training": 1}


def test_a_missing_package_is_named_with_its_command(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dagster_ray" else find(name))
    with pytest.raises(DistillError, match=r"pip install '\.\[ray\]'"):
        prepare(ray={"runs": True})


@pytest.mark.usefixtures("has_ray")
def test_a_second_run_launcher_is_refused(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text("run_launcher: {module: dagster_k8s, class: K8sRunLauncher}\n")
    monkeypatch.setattr("distill_dagster.orchestration.instance.PROJECT_FOLDER", tmp_path)
    with pytest.raises(DistillError, match=r"dagster\.yaml names a run launcher"):
        prepare(ray=CLUSTER)
