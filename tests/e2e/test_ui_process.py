"""`distill ui` as a process: one per project, on a port that is free, and what it serves besides Dagster's pages."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from distill_dagster.core.paths import Home
from distill_dagster.orchestration.ui_reload import find_running_ui
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from tests.e2e.project import TASK, Project
from tests.new_task.table import build_rows, write_table
from tests.support.task import SLICES, write_small_task
from tests.support.waiting import HANG_S, wait_until


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    """A project without a task: the UI needs none."""
    (tmp_path / "tasks").mkdir()
    return Project(tmp_path)


class RunningUi:
    """`distill ui` in a process of its own."""

    def __init__(self, project: Project) -> None:
        self.port = find_free_port()
        self.log = project.root / "ui.txt"
        self.process = project.start("ui", "--port", str(self.port), log=self.log)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return f"The UI is on http://127.0.0.1:{self.port}" in self.log.read_text()

    def open(self, path: str) -> HTTPResponse:
        response: HTTPResponse = urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANG_S)
        return response

    def list_services(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def running(empty: Project) -> Iterator[RunningUi]:
    ui = RunningUi(empty)
    services: list[psutil.Process] = []
    try:
        wait_until(ui.is_ready, "the UI")
        services = ui.list_services()
        yield ui
    finally:
        ui.process.kill()
        ui.process.wait(HANG_S)
        for service in services:
            if service.is_running():
                service.kill()


def refuse(project: Project, *arguments: str) -> str:
    ended = project.start("ui", *arguments)
    _, err = ended.communicate(timeout=HANG_S)
    assert ended.returncode in (1, 2), err
    assert "Traceback" not in err
    return " ".join(err.split())


def test_a_second_ui_of_a_project_is_refused_on_any_port(empty: Project, running: RunningUi) -> None:
    for port in (running.port, find_free_port()):
        err = refuse(empty, "--port", str(port))
        assert f"already running on http://127.0.0.1:{running.port} (process {running.process.pid})" in err
    assert running.process.poll() is None, "the first goes on"


def test_ctrl_c_ends_all_of_the_ui_and_the_next_one_may_start(empty: Project, running: RunningUi) -> None:
    services = running.list_services()
    assert len(services) >= 3, "code server, webserver and daemon"
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(HANG_S) == 0
    assert "Traceback" not in running.log.read_text()
    wait_until(lambda: not any(service.is_running() for service in services), "the end of the services")
    again = RunningUi(empty)
    wait_until(again.is_ready, "the next UI")
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(HANG_S) == 0


def test_what_a_killed_ui_leaves_behind_still_counts_as_running(empty: Project, running: RunningUi) -> None:
    """Its daemon goes on and would start runs next to the daemon of a new UI."""
    running.process.kill()
    running.process.wait(HANG_S)
    assert "already running" in refuse(empty, "--port", str(find_free_port()))


def test_a_daemon_or_webserver_that_ends_by_itself_ends_the_ui(running: RunningUi) -> None:
    [webserver] = [s for s in running.list_services() if "distill_dagster.orchestration.webserver" in s.cmdline()]
    webserver.kill()
    assert running.process.wait(HANG_S) == 1
    assert "The webserver of the UI ended by itself" in " ".join(running.log.read_text().split())


def test_a_port_in_use_is_refused_with_one_that_is_free(empty: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        err = refuse(empty, "--port", str(port))
    assert f"Port {port} on 127.0.0.1 cannot be used (Address already in use)" in err
    assert "--port " in err.split("Choose another")[1]


@pytest.mark.parametrize("port", ["0", "99999", "-1", "http"])
def test_what_is_no_port_is_refused(empty: Project, port: str) -> None:
    assert "--port" in refuse(empty, "--port", port)


def test_a_new_task_folder_is_loaded_while_the_ui_runs(empty: Project, running: RunningUi) -> None:
    write_small_task(empty.root, "later")

    def list_jobs() -> str:
        query = quote("{repositoriesOrError{...on RepositoryConnection{nodes{jobs{name}}}}}")
        with running.open(f"/graphql?query={query}") as response:
            return response.read().decode()

    wait_until(lambda: "later_slices" in list_jobs(), "the job of the new task", pause_s=0.5)
    with empty.instance() as instance:
        assert instance.get_dynamic_partitions(get_slices_partitions_name("later")) == sorted(SLICES)


def test_reports_are_served_and_nothing_else(empty: Project, running: RunningUi) -> None:
    folder = empty.home / "reports" / TASK / "one"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>A report</h1>")
    (empty.home / "secret.txt").write_text("not for the browser")
    with running.open(f"/reports/{TASK}/one/report.html") as response:
        assert response.read() == b"<h1>A report</h1>"
        policy = response.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy, "a script in a report could reach nothing"
    for path in ("/reports/../secret.txt", "/reports/%2e%2e/secret.txt", f"/reports/{TASK}/one/other.html"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            running.open(path)
    with running.open("/server_info") as response:
        assert b"dagster_webserver_version" in response.read()


def test_a_new_task_is_loaded_by_a_running_ui(empty: Project, running: RunningUi) -> None:
    table = write_table(empty.root / "mail.csv", build_rows(60))
    ended = empty.distill("new", "mail", "--from", str(table))
    assert ended.code == 0, ended.err
    assert f"The UI on http://127.0.0.1:{running.port} shows it" in ended.out
    query = '{assetNodes(group: {groupName: "mail", repositoryName: "__repository__", repositoryLocationName: '
    query += '"distill_dagster.definitions"}) {assetKey {path}}}'
    with running.open(f"/graphql?query={quote(query)}") as response:
        nodes = json.load(response)["data"]["assetNodes"]
    assert ["mail", "eval_report"] in [node["assetKey"]["path"] for node in nodes]
    with empty.instance() as instance:
        assert instance.get_dynamic_partitions(get_slices_partitions_name("mail")) == ["mail"]


def test_without_a_ui_a_new_task_says_how_to_see_it(empty: Project) -> None:
    table = write_table(empty.root / "mail.csv", build_rows(60))
    assert "`distill ui` shows it" in empty.distill("new", "mail", "--from", str(table)).out
    assert find_running_ui(Home(empty.home, empty.root / "tasks")) is None
