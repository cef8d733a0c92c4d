"""The commands of the Compose file as processes, with PostgreSQL and an object store: a slice, a loss, a stop."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from distill_dagster.config import TeacherSpec
from distill_dagster.core.database_urls import add_driver
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tables.object_lake.lake import ObjectLake
from tests.e2e.project import TASK, Project, create_project
from tests.e2e.test_ui_process import find_free_port
from tests.scale.compose import SET, ComposedProcess, read_compose
from tests.services.conftest import Server, database, server  # noqa: F401  (fixtures)
from tests.support.object_store import BUCKET, CREDENTIALS, FaultyProxy, run_object_store
from tests.support.provider import FakeProvider
from tests.support.waiting import HANG_S, wait_until

pytestmark = [pytest.mark.scale, pytest.mark.slow]
LAKE = f"s3://{BUCKET}/lake"
SERVICES = ["code-location", "daemon", "webserver"]


@pytest.fixture
def project(provider: FakeProvider, tmp_path: Path) -> Project:
    return create_project(tmp_path, provider.url)


@pytest.fixture
def object_store() -> Iterator[FaultyProxy]:
    with run_object_store() as proxy:
        yield proxy


@pytest.fixture
def processes(
    project: Project,
    server: Server,  # noqa: F811
    database: str,  # noqa: F811
    object_store: FaultyProxy,
) -> Iterator[dict[str, ComposedProcess]]:
    """The three services, each started once those that it depends on are healthy."""
    services = read_compose(SET)["services"]
    ports = {"4000": str(find_free_port()), "3000": str(find_free_port())}
    workspace = project.root / "workspace.yaml"
    text = (PROJECT_FOLDER / "deploy" / "compose" / "workspace.yaml").read_text()
    workspace.write_text(text.replace("code-location", "127.0.0.1").replace("4000", ports["4000"]))
    addresses = {"code-location:4000": f"127.0.0.1:{ports['4000']}", "0.0.0.0": "127.0.0.1"}
    replaced = {"/app/deploy/compose/workspace.yaml": str(workspace), **addresses, **ports}
    deployment = project.root / "deployment.yaml"
    switches = yaml.safe_load((PROJECT_FOLDER / "deploy" / "compose" / "deployment.yaml").read_text())
    switches["lake"]["url"] = LAKE
    deployment.write_text(yaml.safe_dump(switches))
    environment = project.environment(
        DISTILL_POSTGRES_URL=add_driver(server.url(database)),
        DISTILL_DEPLOYMENT=str(deployment),
        OMP_NUM_THREADS="1",
        AWS_ENDPOINT_URL=object_store.url,
        **CREDENTIALS,
    )
    with ExitStack() as stack:
        started: dict[str, ComposedProcess] = {}
        for name in SERVICES:
            started[name] = ComposedProcess(name, services[name], replaced, environment, project.root)
            stack.callback(started[name].kill)
            if name == "code-location":
                started[name].wait_until_healthy()
        for process in started.values():
            process.wait_until_healthy()
        yield started


def query(processes: dict[str, ComposedProcess], text: str) -> Any:
    """Ask the webserver."""
    port = processes["webserver"].replaced["3000"]
    body = json.dumps({"query": text}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["data"]


def read_runs(processes: dict[str, ComposedProcess]) -> list[tuple[str, str]]:
    """The jobs and statuses of all runs, the newest first."""
    runs = query(processes, "{runsOrError{... on Runs{results{jobName status}}}}")["runsOrError"]["results"]
    return [(run["jobName"], run["status"]) for run in runs]


def test_services_run_a_slice_survive_the_loss_of_the_code_location_and_stop(
    project: Project, provider: FakeProvider, processes: dict[str, ComposedProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = query(processes, "{workspaceOrError{... on Workspace{locationEntries{name loadStatus}}}}")
    assert nodes["workspaceOrError"]["locationEntries"] == [
        {"name": "distill_dagster.definitions", "loadStatus": "LOADED"}
    ]
    log = project.root / "backfill.txt"
    command = project.start("backfill", TASK, "--slice", "shop", "--json", log=log, **processes["daemon"].environment)
    assert command.wait(HANG_S) == 0, log.read_text()
    runs = read_runs(processes)
    assert {status for _, status in runs} == {"SUCCESS"}
    assert f"{TASK}_slices" in {job for job, _ in runs}
    for name, value in processes["daemon"].environment.items():
        monkeypatch.setenv(name, value)
    lake = ObjectLake(LAKE, project.root / "cache", project.root / "reports", 2**30)
    record = lake.read_record(TASK, "scored_completions", "shop")
    assert record is not None
    assert record.missing_rows == 0

    # The container of the code location is lost in the middle of a run, and starts again.
    provider.pause_s, asked = 5.0, len(provider.requests)
    lost = project.start("backfill", TASK, "--slice", "web", log=log, **processes["daemon"].environment)
    wait_until(lambda: len(provider.requests) > asked, "a request of the second run")
    code_location = processes["code-location"]
    os.killpg(code_location.process.pid, signal.SIGKILL)
    code_location.process.wait(HANG_S)
    provider.pause_s = 0.0
    code_location.start()
    code_location.wait_until_healthy()
    assert lost.wait(HANG_S) == 1, log.read_text()
    assert read_runs(processes)[0] == (f"{TASK}_slices", "FAILURE")
    again = project.start("backfill", TASK, "--slice", "web", log=log, **processes["daemon"].environment)
    assert again.wait(HANG_S) == 0, log.read_text()
    assert len(provider.requests) - asked <= 12 + TeacherSpec.model_fields["concurrency"].default

    children = {name: psutil.Process(one.process.pid).children(recursive=True) for name, one in processes.items()}
    codes = {name: processes[name].stop() for name in reversed(SERVICES)}
    assert codes == dict.fromkeys(SERVICES, 0), {name: one.log.read_text() for name, one in processes.items()}
    left = psutil.wait_procs([child for found in children.values() for child in found], timeout=60)[1]
    assert not left
