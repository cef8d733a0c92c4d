"""The entry point of a container: the instance is ready before the command starts, and mistakes are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import GRPC_INFO_TAG

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.orchestration import container
from distill_dagster.tasks.deployment_file import DEPLOYMENT_VARIABLE


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "instance"))  # as the image sets it
    monkeypatch.delenv(DEPLOYMENT_VARIABLE, raising=False)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["container", *command])
    container.run_command()


def test_the_command_replaces_the_process_once_the_instance_is_ready(home: Path) -> None:
    code = (
        "import os, pathlib; print(os.getppid(), (pathlib.Path(os.environ['DAGSTER_HOME']) / 'dagster.yaml').exists())"
    )
    done = subprocess.run(
        [sys.executable, "-m", "distill_dagster.orchestration.container", sys.executable, "-c", code],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        text=True,
        check=True,
    )
    parent, is_ready = done.stdout.split()
    assert is_ready == "True"
    assert int(parent) == os.getpid(), "no process of ours in between: signals reach the command"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "No command. Name one"),
        (("--code-location", "code-location:4000"), "No command. Name one"),
        (("dagster-deamon", "run"), "dagster-deamon: No such file"),
    ],
)
def test_a_wrong_command_is_one_line(
    command: tuple[str, ...], words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=words):
        run(monkeypatch, *command)


def test_a_mistake_in_the_deployment_is_said_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "deployment.yaml"
    path.write_text(yaml.safe_dump({"runs": {"lunch": True}}))
    monkeypatch.setenv(DEPLOYMENT_VARIABLE, str(path))
    with pytest.raises(SystemExit, match="Did you mean 'launch'"):
        run(monkeypatch, "true")


def test_runs_that_ended_with_the_code_location_are_marked(home: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        runs = {}
        for name, tags in {
            "ours": {"host": "code-location", "port": 4000},
            "of another location": {"host": "other", "port": 4000},
            "of another launcher": None,
        }.items():
            tag = {GRPC_INFO_TAG: json.dumps(tags)} if tags else {}
            run = dg.DagsterRun(job_name="one", status=dg.DagsterRunStatus.STARTED, tags=tag)
            runs[name] = instance.add_run(run).run_id
        assert container.fail_runs_of_location(instance, "code-location:4000") == [runs["ours"]]
        statuses = {name: instance.get_run_by_id(run_id).status.name for name, run_id in runs.items()}  # type: ignore[union-attr]
        assert statuses == {"ours": "FAILURE", "of another location": "STARTED", "of another launcher": "STARTED"}
