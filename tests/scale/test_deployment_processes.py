"""The commands of the Compose file as processes, with PostgreSQL and an object store: healthy, a slice, stopped."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from distill_dagster.core.database_urls import add_driver
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.tables.object_lake.lake import ObjectLake
from tests.e2e.project import TASK, Project, create_project
from tests.e2e.test_ui_process import find_free_port
from tests.scale.compose import SET, ComposedProcess, read_compose
from tests.services.conftest import Server, database, server  # noqa: F401  (fixtures)
from tests.support.object_store import BUCKET, CREDENTIALS, FaultyProxy, run_object_store
from tests.support.provider import FakeProvider
from tests.support.task import LABELS
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.scale
LAKE = f"s3://{BUCKET}/lake"
SERVICES = ["code-location", "daemon", "webserver"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with FakeProvider(LABELS) as provider:
        yield create_project(tmp_path, provider.url)


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
    replaced = {"/app/deploy/compose/workspace.yaml": str(workspace), "0.0.0.0": "127.0.0.1", **ports}
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


def test_services_are_healthy_run_a_slice_and_stop(
    project: Project, processes: dict[str, ComposedProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = query(processes, "{workspaceOrError{... on Workspace{locationEntries{name loadStatus}}}}")
    assert nodes["workspaceOrError"]["locationEntries"] == [
        {"name": "distill_dagster.definitions", "loadStatus": "LOADED"}
    ]
    log = project.root / "backfill.txt"
    command = project.start("backfill", TASK, "--slice", "shop", "--json", log=log, **processes["daemon"].environment)
    assert command.wait(HANG_S) == 0, log.read_text()
    runs = query(processes, "{runsOrError{... on Runs{results{status jobName}}}}")["runsOrError"]["results"]
    assert {run["status"] for run in runs} == {"SUCCESS"}
    assert f"{TASK}_slices" in {run["jobName"] for run in runs}
    for name, value in processes["daemon"].environment.items():
        monkeypatch.setenv(name, value)
    lake = ObjectLake(LAKE, project.root / "cache", project.root / "reports", 2**30)
    record = lake.read_record(TASK, "scored_completions", "shop")
    assert record is not None
    assert record.missing_rows == 0

    children = {name: psutil.Process(one.process.pid).children(recursive=True) for name, one in processes.items()}
    codes = {name: processes[name].stop() for name in reversed(SERVICES)}
    assert codes == dict.fromkeys(SERVICES, 0), {name: one.log.read_text() for name, one in processes.items()}
    left = psutil.wait_procs([child for found in children.values() for child in found], timeout=60)[1]
    assert not left
